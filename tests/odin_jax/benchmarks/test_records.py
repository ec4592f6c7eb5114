"""What is scored was not trained on, whichever way records are held out."""

import shutil

import numpy as np
import pytest

from odin_jax.benchmarks import records
from odin_jax.shared import (
  camera,
  errors,
  image_files,
  more_views,
  record_folder,
  schema,
)
from preprocessing.procedural import footage, true_pairs
from preprocessing.writing import merging, parts
from tests.helpers import default_rules

SPLIT_BY = ('video', 'time')
# By their names the first is held out of the two, where videos are.
VIDEOS = ('a', 'b')


@pytest.fixture(scope='module')
def world():
  return footage.make_world(
    ['unique_corridor'], 0, seed=2, seconds=5.0, px_per_rad=16.0
  )


@pytest.fixture(scope='module', params=SPLIT_BY)
def folder(request, world, tmp_path_factory):
  """Records of two short walks, half of the frames or videos held out."""
  output = tmp_path_factory.mktemp('records') / request.param
  output.mkdir()
  rules = true_pairs.PairRules(
    num_records=12,
    seconds=5.0,
    max_gap_s=5,
    size_px=16,
    views=default_rules.view_rules(num_views=2, num_tries=4),
    split_by=request.param,
    test_fraction=0.5,
  )
  for video in VIDEOS:
    made, summary, dropped, _ = true_pairs.make_records(
      world, video, rules, seed=0
    )
    parts.write(
      output,
      video,
      records=made,
      summary=summary,
      dropped=dropped,
      fingerprint='a',
    )
  merging.merge(output, video_ids=VIDEOS, config={}, tool='test')
  return output


def frames(rows, slash):
  """The frames that records, or facts of them, are views of."""
  return {
    (row['video_id'], row[f'{side}{slash}time_s'])
    for row in rows
    for side in ('source', 'target')
  }


def test_no_frame_that_is_scored_was_trained_on(folder):
  pair_set = records.held_out_pairs(
    folder, image_size_px=16, num_pairs=1000, seed=0
  )
  trained_on = list(record_folder.RecordFolder(folder, 'train'))
  scored, seen = frames(pair_set.facts, '_'), frames(trained_on, '/')
  assert len(scored) > 3 and len(seen) > 3
  assert not scored & seen
  videos = [{video for video, _ in of} for of in (scored, seen)]
  # Of the held-out places nothing was seen, or other moments of them were.
  assert bool(videos[0] & videos[1]) == (folder.name == 'time')


def _angles(record, side):
  return tuple(float(record[f'{side}/{x}_deg']) for x in ('yaw', 'pitch'))


def test_more_sources_stand_where_their_records_say(folder):
  chosen = record_folder.RecordFolder(folder, records.SPLIT)
  neighbours = more_views.Neighbours(chosen)
  found = 0
  for index, record in enumerate(chosen):
    places, poses, fov_deg = neighbours.find(index, 3)
    times = {float(record[f'{side}/time_s']) for side in more_views.SIDES}
    for place, pose, fov in zip(places, poses, fov_deg, strict=True):
      other, side = chosen[place.record], place.side
      expected = camera.relative_view_pose(
        other[f'{side}/frame2scene'].astype(float),
        record['target/frame2scene'].astype(float),
        _angles(other, side),
        _angles(record, 'target'),
      )
      np.testing.assert_allclose(pose, expected, atol=1e-9)
      assert fov == other['fov_deg']
      assert other['video_id'] == record['video_id']
      # Neither what is asked for nor what is given, nor the same one twice.
      time_s = float(other[f'{side}/time_s'])
      assert time_s not in times
      times.add(time_s)
    found += len(places)
  assert found >= len(chosen)


def test_pairs_are_given_more_sources_or_are_refused(folder):
  given = {'image_size_px': 16, 'num_pairs': 4, 'seed': 0}
  one = records.held_out_pairs(folder, **given)
  two = records.held_out_pairs(folder, **given, num_sources=2)
  more = two.pairs.more
  assert one.pairs.more is None and more.image.shape == (4, 1, 16, 16, 3)
  assert more.is_there.all() and two.protocol['num_sources'] == 2
  np.testing.assert_array_equal(one.pairs.source, two.pairs.source)
  chosen = record_folder.RecordFolder(folder, records.SPLIT)
  neighbours = more_views.Neighbours(chosen)
  for row, facts in enumerate(two.facts):
    (place,), poses, _ = neighbours.find(facts['record'], 1)
    np.testing.assert_array_equal(more.target2view[row], poses)
    image = image_files.decode_square_jpeg(
      chosen[place.record][f'{place.side}/image'], 16
    )
    np.testing.assert_array_equal(more.image[row, 0], image)
  with pytest.raises(errors.UserError, match='not 50; lower num_sources'):
    records.held_out_pairs(folder, **given, num_sources=50)


def test_records_to_train_on_are_not_scored_under_another_name(
  folder, tmp_path
):
  shutil.copy(
    folder / schema.shard_name('train', 0, 1),
    tmp_path / schema.shard_name('test', 0, 1),
  )
  with pytest.raises(errors.UserError, match='split: train, not test'):
    records.held_out_pairs(tmp_path, image_size_px=16, num_pairs=9, seed=0)
