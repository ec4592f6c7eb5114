"""Pairs that are cut from posed views, of scenes whose truth is known."""

import copy
import json

import numpy as np
import pytest

from odin_jax.benchmarks import LAYOUTS, focus, protocols, scenes
from odin_jax.shared import camera, errors
from tests.helpers import posed_scenes

# In front of all cameras, apart in their pictures; half are within seven of the
# first, not along its axis but as the crow flies.
_RAYS = np.array(
  [[-0.15, 0, 1], [0, 0.15, 1], [0.12, -0.05, 1], [0.25, 0.1, 1], [0.38, 0, 1]]
)
POINTS = (
  posed_scenes.camera2scene(0)[:, 3]
  + _RAYS
  / np.linalg.norm(_RAYS, axis=1, keepdims=True)
  * np.array([5, 9, 6.5, 8, 7.0])[:, None]
)


def table(**tables):
  """A protocol for two scenes of nerfstudio."""
  content = {
    'name': 'mine',
    'benchmark': 'nerfstudio',
    'scenes': ['a', 'b'],
    'views': {'sources': [[0], [0, 3]], 'count': 4},
    'scale': {'policy': 'resolved'},
  }
  return protocols.parse(content | tables)


def pairs_of(folder, protocol, scale='', num_sources=0, image_size_px=16):
  return scenes.posed_pairs(
    folder,
    LAYOUTS['nerfstudio'],
    protocol,
    image_size_px=image_size_px,
    scale=scale,
    num_sources=num_sources,
  )


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Two scenes, the second without the third of its views."""
  folder = tmp_path_factory.mktemp('scenes')
  posed_scenes.write(folder / 'a', points=POINTS)
  posed_scenes.write(folder / 'b', [0, 1, 2], points=POINTS)
  return folder


def numbers(pair_set):
  """Scene, source and target of every pair."""
  return [
    (row['scene'], int(row['source_view'][7:9]), int(row['target_view'][7:9]))
    for row in pair_set.facts
  ]


def test_views_are_those_of_a_centred_camera_with_square_pixels(folder):
  pair_set = pairs_of(folder, table())
  assert numbers(pair_set) == [
    *(('a', 0, target) for target in (1, 2, 3)),
    *(('b', 0, target) for target in (1, 2)),
  ]
  pairs = pair_set.pairs
  for index, (_, source, target) in enumerate(numbers(pair_set)):
    rays = camera.view_rays(float(pairs.fov_deg[index]), 16)
    for view, number in ((pairs.source, source), (pairs.target, target)):
      truth = posed_scenes.colour(
        rays @ posed_scenes.camera2scene(number)[:, :3].T
      )
      off = np.abs(view[index] - truth)
      # A box counts a pixel or not: half a pixel of the picture at most.
      assert off.mean() < 1 and off.max() < 6
  # All that the least fitting of a scene's views shows around its centre.
  half = [
    min(k[0, 2] / k[0, 0], (54 - k[1, 2]) / k[1, 1], k[1, 2] / k[1, 1])
    for k in map(posed_scenes.intrinsics, range(4))
  ]
  expected = 2 * np.rad2deg(np.arctan(min(half)))
  np.testing.assert_allclose(pairs.fov_deg[:3], expected)


def test_a_resolved_unit_is_the_depth_of_what_the_source_sees(folder):
  pair_set = pairs_of(folder, table())
  for index, (_, source, target) in enumerate(numbers(pair_set)):
    expected = camera.relative(
      posed_scenes.camera2scene(source), posed_scenes.camera2scene(target)
    )
    np.testing.assert_allclose(
      pair_set.pairs.target2source[index], camera.rescale(expected, 1 / 7)
    )
  np.testing.assert_allclose(pair_set.pairs.median_depth, 1)


def test_a_fixed_unit_is_that_of_the_table(folder):
  scale = {'policy': 'fixed', 'divisors': [2.0, 4.0]}
  pair_set = pairs_of(folder, table(scale=scale))
  free = camera.relative(
    posed_scenes.camera2scene(0), posed_scenes.camera2scene(1)
  )
  shifts = pair_set.pairs.target2source[[0, 3], :, 3]
  np.testing.assert_allclose(shifts, [free[:, 3] / 2, free[:, 3] / 4])
  np.testing.assert_allclose(pair_set.pairs.median_depth[[0, 3]], [3.5, 1.75])

  of_focus = pairs_of(folder, table(scale=scale | {'unit': 'focus'}))
  for index, count in ((0, 4), (3, 3)):
    poses = np.stack([posed_scenes.camera2scene(i) for i in range(count)])
    np.testing.assert_allclose(
      of_focus.pairs.target2source[index, :, 3] * focus.mean_distance(poses),
      shifts[index // 3],
    )


def test_of_several_sources_each_target_has_the_nearest(folder):
  pair_set = pairs_of(folder / 'a', table(), num_sources=2)
  assert numbers(pair_set) == [('a', 0, 1), ('a', 3, 2)]
  here = scenes.done_here(table(), pair_set, image_size_px=16, num_sources=2)
  assert 'nearest' in here['views.sources']


def test_sources_and_targets_of_a_split(tmp_path):
  posed_scenes.write(tmp_path / 'x', split=([2], [0, 3]), points=POINTS)
  protocol = table(scenes=[], views={'split': 'train_test_split_1.json'})
  pair_set = pairs_of(tmp_path, protocol)
  assert numbers(pair_set) == [('x', 2, 0), ('x', 2, 3)]


def test_what_is_done_otherwise_is_told(folder):
  protocol = table(image={'size_px': [40, 30], 'crop': 'none'})
  pair_set = pairs_of(folder, protocol)
  here = scenes.done_here(protocol, pair_set, image_size_px=16, num_sources=0)
  rows = {row['line']: row for row in protocols.departures(protocol, here)}
  assert rows.keys() == {'image.size_px', 'image.crop', 'views.count'}
  assert rows['views.count']['here'] == {'absent': {'b': [3]}}


def test_what_is_missing_is_named(folder, tmp_path):
  def refused(words, *arguments, **settings):
    with pytest.raises(errors.UserError, match=words) as error:
      pairs_of(*arguments, **settings)
    assert '\n' not in str(error.value)

  three = table(scenes=['a', 'b', 'c'])
  refused('lacks c, of mine', folder, three)
  refused('no such folder', tmp_path / 'none', three)
  refused('transforms.json: no such file', tmp_path, three)
  fixed = table(scale={'policy': 'fixed'})
  refused('mine fixes no scale .*resolved', folder / 'a', fixed)
  refused(
    'scale=guessed: there are fixed, resolved', folder, table(), 'guessed'
  )
  refused('num_sources=7: mine has 1, 2', folder, table(), num_sources=7)
  refused('less than the 60 px', folder, table(), image_size_px=60)
  dark = posed_scenes.write(tmp_path / 'dark')
  refused('no scale can be resolved', dark, table())
  far = table(views={'sources': [[9]], 'count': 4})
  refused('has no view 9; there are 0, 1, 2, 3', folder / 'a', far)
  split = table(views={'split': 'split.json'})
  refused('split.json: no such file', dark, split)
  (dark / 'split.json').write_text('{"train_ids": [0], "test_ids": [4]}')
  refused('split.json: needs "train_ids"', dark, split)
  for text in ('[0], "test_ids": [2, 2]', '[0, 2], "test_ids": [2]'):
    (dark / 'split.json').write_text(f'{{"train_ids": {text}}}')
    refused('split.json: needs .* different places', dark, split)


def test_scenes_that_were_not_solved_or_have_no_centre_are_refused(tmp_path):
  folder = posed_scenes.write(tmp_path / 'a', points=POINTS)
  path = folder / 'transforms.json'
  content = json.loads(path.read_text())
  outside = copy.deepcopy(content)
  outside['frames'][2] |= {'cx': -3.0, 'w': 72, 'h': 54}
  pose = content['frames'][0]['transform_matrix']
  for frame in content['frames']:
    frame['transform_matrix'] = pose
  for wrong, words in (
    (content, 'all 4 views have the same pose'),
    (outside, '02.png: its principal point lies outside'),
  ):
    path.write_text(json.dumps(wrong))
    with pytest.raises(errors.UserError, match=words):
      pairs_of(folder, table(scenes=[], views={'sources': [[0]]}))
