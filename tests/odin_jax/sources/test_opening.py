"""What a config makes of folders of records."""

import numpy as np
import pytest

from configs import train
from odin_jax import batches
from odin_jax.checkpoints import checkpoint
from odin_jax.shared import camera, errors
from odin_jax.sources import opening
from tests.helpers.posed_records import write_changed as write


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  root = tmp_path_factory.mktemp('records')
  return {
    'plain': write(root / 'plain', 8, overlap=lambda n: 0.25 + 0.5 * (n > 4)),
    'other': write(root / 'other', 4, seed=1),
    'deep': write(root / 'deep', 4, seed=2, depth_px=8),
    'deeper': write(root / 'deeper', 4, seed=3, depth_px=16),
  }


def a_config(**changes):
  config = train.get_config()
  config.update_from_flattened_dict(changes)
  return checkpoint.plain(config.to_dict())


def opened(*paths, depth=False, num_sources=1, times=False, **changes):
  return opening.open_sources(
    paths,
    a_config(**changes),
    depth=depth,
    num_sources=num_sources,
    times=times,
  )


def first_pairs(source, count):
  examples = batches.examples(source, seed=0, mirror=False, swap=False)
  return [examples[i] for i in range(count)]


def test_one_folder_is_what_it_was(folders):
  one = opened(folders['plain'])
  assert isinstance(one.source, batches.PairSource)
  assert one.made_of == '8 pairs' and one.read == {}
  assert one.allowance.figures() == {}
  assert one.source[0].times_s is None
  assert opened(folders['plain'], times=True).source[0].times_s.shape == (2,)


def test_maps_of_depth_have_one_side(folders):
  paths = [folders[name] for name in ('plain', 'deep')]
  mixed = opened(*paths, depth=True, **{'mixture.weights': (1, 2)})
  assert mixed.made_of == '12 pairs'
  assert mixed.read == {'mixture': {'weights': [1, 2]}}
  pairs = first_pairs(mixed.source, 6)
  # That of the records that have some.
  assert {pair.target_depth.shape for pair in pairs} == {(8, 8)}
  assert sum(bool(pair.target_depth.any()) for pair in pairs) == 4
  # Another order is another run.
  prints = {
    mixed.source.fingerprint(),
    opened(*paths[::-1]).source.fingerprint(),
  }
  assert len(prints) == 2
  with pytest.raises(errors.UserError, match='deep 8 px, .*deeper 16 px'):
    opened(folders['deep'], folders['deeper'], depth=True)


def test_filters_leave_records_out_of_every_folder(folders):
  filtered = opened(
    folders['plain'], folders['other'], **{'filters.min_overlap': 0.5}
  )
  assert filtered.made_of == '7 pairs'
  # What a run that goes on has to have, too.
  assert filtered.read == {'filters': {'min_overlap': 0.5}}


@pytest.mark.parametrize(
  'weights, words',
  [
    ((1, 2, 3), r'weights=\(1,2,3\): 3 for 2 folders'),
    ((1,), '1 for 2 folders'),
    ((1, -2), '-2 must be a number above 0'),
    ((0, 0), '0 must be'),
    ((1, 'x'), 'x must be'),
    ((1, float('inf')), 'inf must be'),
    ((1, True), 'True must be'),
  ],
)
def test_weights_that_cannot_be_are_one_line(folders, weights, words):
  with pytest.raises(errors.UserError, match=words):
    opened(folders['plain'], folders['other'], **{'mixture.weights': weights})


def test_a_folder_given_twice_is_refused(folders):
  with pytest.raises(errors.UserError, match='is given twice'):
    opened(folders['plain'], folders['plain'] + '/.')


def test_further_sources_have_to_be_somewhere(folders, tmp_path):
  # Two panoramas, whose times all records have.
  poor = write(tmp_path / 'poor', 3, **{'target/time_s': 2.0})
  with pytest.raises(
    errors.UserError, match='poor: no pair has a view of anot'
  ):
    opened(poor, num_sources=2)
  # Times enough, but each is of a place of its own.
  turned = write(
    tmp_path / 'turned',
    3,
    **{
      'target/time_s': lambda n: 2.0 + n,
      'target/yaw_deg': 0.0,
      'source/yaw_deg': 60.0,
      'target/frame2scene': lambda n: camera.make_pose(
        np.eye(3), np.array([100.0 * n, 0, 0])
      ),
    },
  )
  with pytest.raises(errors.UserError, match='turned: no pair has'):
    opened(turned, num_sources=2)
  both = opened(poor, folders['plain'], num_sources=2)
  assert any(pair.more.is_there.any() for pair in first_pairs(both.source, 20))
