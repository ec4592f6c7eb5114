"""The held-out records of a preprocessing run as a benchmark."""

import collections
import os
import pathlib
from typing import Any, Mapping

from jaxtyping import UInt8
import numpy as np

from odin_jax.benchmarks import pairs
from odin_jax.shared import (
  camera,
  depth_files,
  errors,
  image_files,
  more_views,
  posed_pair,
  record_folder,
  schema,
  world_names,
)

SPLIT = 'test'
_FACTS = (
  'video_id',
  'scene_id',
  'source/time_s',
  'target/time_s',
  'source/yaw_deg',
  'target/yaw_deg',
  'source/pitch_deg',
  'target/pitch_deg',
  'fov_deg',
  'overlap',
  'confidence',
  'hops',
)


def choose(video_ids: list[str], num_pairs: int, seed: int) -> list[int]:
  """Positions of `num_pairs` records, spread evenly over the videos.

  Videos take turns, each giving its records in a seeded random order, until
  there are enough: a long video cannot crowd out the others.

  Args:
    video_ids: the video of every record.
    num_pairs: how many to choose; all where there are fewer.
    seed: same seed and records, same choice.

  Returns:
    positions in ascending order.
  """
  generator = np.random.default_rng(seed)
  of_video = collections.defaultdict(list)
  for position in generator.permutation(len(video_ids)):
    of_video[video_ids[position]].append(int(position))
  turns = [
    (turn, video, position)
    for video, positions in of_video.items()
    for turn, position in enumerate(positions)
  ]
  return sorted(position for _, _, position in sorted(turns)[:num_pairs])


def _view(data: bytes, size_px: int, where: str) -> UInt8[np.ndarray, 's s 3']:
  try:
    return image_files.decode_square_jpeg(data, size_px)
  except image_files.TooSmallError as error:
    raise errors.UserError(
      f'{where}: its views have {error.side_px} px, less than the '
      f'{size_px} px asked for; lower the image size'
    ) from error
  except ValueError as error:
    raise errors.UserError(f'{where}: its image is no square JPEG') from error


def _more(
  records: record_folder.RecordFolder,
  neighbours: more_views.Neighbours,
  position: int,
  num_more: int,
  size_px: int,
) -> posed_pair.MoreViews:
  """What of the split is given beside a record's source.

  Raises:
    errors.UserError: there are not so many.
  """
  places, target2view, fov_deg = neighbours.find(position, num_more)
  if len(places) < num_more:
    raise errors.UserError(
      f'{records.path}: {records.split} record {position}: {len(places) + 1} '
      f'views of other panoramas show what its target shows, not '
      f'{num_more + 1}; lower num_sources'
    )
  images = [
    _view(
      records[record][f'{side}/image'],
      size_px,
      f'{records.path}: {records.split} record {record}',
    )
    for record, side in places
  ]
  return posed_pair.MoreViews(
    image=np.stack(images),
    target2view=target2view,
    fov_deg=fov_deg,
    is_there=np.ones(num_more, bool),
  )


def _pair(
  record: schema.Record, size_px: int, where: str
) -> posed_pair.PosedPair:
  return posed_pair.PosedPair(
    source=_view(record['source/image'], size_px, where),
    target=_view(record['target/image'], size_px, where),
    target2source=record['target2source'].astype(np.float64),
    fov_deg=np.float64(record['fov_deg']),
    median_depth=np.float64(record['median_depth']),
    times_s=np.array([record[f'{side}/time_s'] for side in more_views.SIDES]),
  )


def _facts(
  record: schema.Record, position: int, seeds: Mapping[str, int]
) -> dict[str, Any]:
  """What is known of a record, with the seed of a procedural world."""
  video_id = record['video_id']
  seed = seeds.get(video_id, world_names.seed_of(video_id))
  target2source = record['target2source'].astype(np.float64)
  return {
    'record': position,
    **({} if seed is None else {record_folder.SEED: seed}),
    **{name.replace('/', '_'): record[name] for name in _FACTS},
    'rotation_deg': float(camera.rotation_angle_deg(target2source[:, :3])),
    'translation': float(np.linalg.norm(target2source[:, 3])),
  }


def held_out_pairs(
  folder: str | os.PathLike[str],
  *,
  image_size_px: int,
  num_pairs: int,
  seed: int,
  truth: str | None = None,
  num_sources: int = 1,
) -> pairs.PairSet:
  """A fixed subset of the test split, the same for every predictor.

  Args:
    folder: output of `preprocessing.run` or `preprocessing.worlds`.
    image_size_px: views are reduced to this size by area averaging.
    num_pairs: how many; all where the split has fewer.
    seed: of the choice.
    truth: folder of their true depth, if it is known.
    num_sources: views given of each pair: its source, and others of the split
      that show most of what its target shows, none of the target's panorama.

  Raises:
    errors.UserError: no such folder, no test records, a damaged record, one
      that is to be trained on, views smaller than `image_size_px`, not so many
      sources, or a truth of other records or another size.
  """
  records = record_folder.RecordFolder(folder, SPLIT)
  video_ids = [record['video_id'] for record in records]
  seeds = records.world_seeds()
  chosen = choose(video_ids, num_pairs, seed)
  chosen_records = {position: records[position] for position in chosen}
  posed_pairs = [
    _pair(record, image_size_px, f'{folder}: {SPLIT} record {position}')
    for position, record in chosen_records.items()
  ]
  if num_sources > 1:
    neighbours = more_views.Neighbours(records)
    posed_pairs = [
      pair._replace(
        more=_more(
          records, neighbours, position, num_sources - 1, image_size_px
        )
      )
      for position, pair in zip(chosen, posed_pairs, strict=True)
    ]
  known = None
  if truth is not None:
    depths = depth_files.read(
      pathlib.Path(truth), records, chosen, image_size_px
    )
    known = pairs.PairTruth(*depths)
  return pairs.PairSet(
    truth=known,
    pairs=posed_pair.stack(posed_pairs),
    facts=[
      _facts(record, position, seeds)
      for position, record in chosen_records.items()
    ],
    protocol={
      'split': SPLIT,
      'records_in_split': len(records),
      'videos_in_split': len(set(video_ids)),
      'num_pairs': len(posed_pairs),
      'num_sources': num_sources,
      'choice': 'videos take turns, each giving its records in an order drawn '
      'with the seed',
      'resize': 'area average of the decoded JPEG (cv2.INTER_AREA)',
    },
  )
