"""What is scored was not trained on, whichever way records are held out."""

import shutil

import pytest

from odin_jax.benchmarks import records
from odin_jax.shared import errors, record_folder, schema
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


def test_records_to_train_on_are_not_scored_under_another_name(
  folder, tmp_path
):
  shutil.copy(
    folder / schema.shard_name('train', 0, 1),
    tmp_path / schema.shard_name('test', 0, 1),
  )
  with pytest.raises(errors.UserError, match='split: train, not test'):
    records.held_out_pairs(tmp_path, image_size_px=16, num_pairs=9, seed=0)
