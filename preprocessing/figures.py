"""The figures of an audit: everything that audit.json says of some records.

A frame pair is two panoramas; a record is two views cut from them.
"""

import json
import pathlib
from typing import Any, Iterator, Mapping, Sequence

import cv2
import numpy as np
from tqdm import tqdm

from odin_jax.shared import binary, record_folder, schema
from preprocessing import epipolar, quality

_KEPT = ('video_id', 'scene_id', 'overlap', 'median_depth')
_EPIPOLAR_MAX_GAP_S = 2
_EPIPOLAR_MIN_OVERLAP = 0.5
_DRAWINGS = 8


def read_records(path: str) -> Iterator[schema.Record]:
  """All records of a folder, split by split."""
  manifest = read_manifest(path)
  for split in schema.SPLITS:
    if manifest['counts'][split]:
      yield from record_folder.RecordFolder(path, split)


def read_manifest(path: str) -> dict[str, Any]:
  """The manifest of a folder of records.

  Raises:
    binary.UserError: there is none, or it is damaged.
  """
  folder = binary.require_folder(path, 'a folder of records')
  manifest = binary.require_file(
    folder / 'manifest.json', 'the manifest of a finished run'
  )
  try:
    return json.loads(manifest.read_text())
  except ValueError as error:
    raise binary.UserError(
      f'{manifest}: damaged ({error}); run the pipeline again'
    ) from error


def read_truth(folder: str, video_id: str) -> dict[str, np.ndarray]:
  """The true poses of one video.

  Raises:
    binary.UserError: there are none.
  """
  path = binary.require_file(
    pathlib.Path(folder) / f'{video_id}.truth.npz', 'the truth of this video'
  )
  with np.load(path) as archive:
    names = ('time_s', 'frame2world', 'kind')
    return {name: archive[name] for name in names}


def kept_shares(summary: Mapping[str, Any]) -> dict[str, Any]:
  """Share of candidate frame pairs kept, in all and per gap."""
  candidates = summary['frame_pairs']['candidates']
  kept = summary['frame_pairs']['kept']
  total = sum(candidates.values())
  return {
    'kept_share': sum(kept.values()) / total if total else 0.0,
    'kept_share_per_gap': {
      gap: kept.get(gap, 0) / count
      for gap, count in candidates.items()
      if count
    },
  }


def video_figures(
  summary: Mapping[str, Any],
  components: Sequence[quality.Component],
  rows: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
  """What can be said of one video without truth.

  Args:
    summary: its entry in the manifest.
    components: its components that have records.
    rows: its records, without their pictures.
  """
  gaps = [
    round(later - earlier)
    for component in components
    for earlier, later in component.frame_pairs
  ]
  depths = [row['median_depth'] for row in rows]
  return {
    'video_id': summary['video_id'],
    'frames': summary['frames'],
    'components': summary['components'],
    'records': len(rows),
    'frame_pairs': len(gaps),
    'frame_pairs_per_gap': {
      str(gap): gaps.count(gap) for gap in sorted(set(gaps))
    },
    'poses_per_frame': max(
      (component.poses_per_frame for component in components), default=0
    ),
    'median_depth': float(np.median(depths)) if depths else None,
    'order': [quality.frames_behind(component) for component in components],
    **kept_shares(summary),
  }


def pose_figures(errors: Sequence[Mapping[str, np.ndarray]]) -> dict[str, Any]:
  """Medians over the frame pairs of some components."""
  rotation, direction, scale = (
    np.concatenate([error[name] for error in errors])
    for name in ('rotation_deg', 'direction_deg', 'scale')
  )
  return {
    'frame_pairs': len(rotation),
    'rotation_deg': float(np.median(rotation)),
    'direction_deg': float(np.nanmedian(direction)),
    'scale_error': float(np.nanmedian(np.abs(scale))),
    'flips': int((np.nan_to_num(direction) > 90).sum()),
  }


def by_kind(
  videos: Sequence[Mapping[str, Any]],
  errors: Mapping[str, Sequence[Mapping[str, np.ndarray]]],
  kinds: Mapping[str, str],
) -> dict[str, Any]:
  """Pose errors of all videos of a kind, and their worst other figures."""
  pose = {}
  for kind in sorted(set(kinds.values())):
    mine = [video for video in videos if kinds[video['video_id']] == kind]
    found = [error for video in mine for error in errors[video['video_id']]]
    shares = [video['kept_share_per_gap'] for video in mine]
    gaps = sorted({gap for share in shares for gap in share}, key=int)
    depths = [video['median_depth'] for video in mine]
    pose[kind] = {
      'videos': len(mine),
      **(pose_figures(found) if found else {'frame_pairs': 0}),
      'max_components': max(video['components'] for video in mine),
      'max_poses_per_frame': max(video['poses_per_frame'] for video in mine),
      'median_depth': float(np.median([d for d in depths if d] or [0.0])),
      'kept_share': float(np.mean([video['kept_share'] for video in mine])),
      'kept_share_per_gap': {
        gap: float(np.mean([share[gap] for share in shares if gap in share]))
        for gap in gaps
      },
      'min_kept_share_per_gap': min(
        (value for share in shares for value in share.values()), default=0.0
      ),
    }
  return pose


def epipolar_figures(
  path: str, rows: Sequence[Mapping[str, Any]], limit: int
) -> dict[str, Any]:
  """Sampson distances of close pairs, in all, per gap and per video."""
  close = [
    index
    for index, row in enumerate(rows)
    if _gap_s(row) <= _EPIPOLAR_MAX_GAP_S
    and row['overlap'] >= _EPIPOLAR_MIN_OVERLAP
  ]
  places = np.linspace(0, len(close) - 1, min(limit, len(close))).astype(int)
  chosen = {close[place] for place in places}
  errors: dict[int, float | None] = {}
  bar = tqdm(total=len(chosen), desc='matching', unit='record')
  for index, record in enumerate(read_records(path)):
    if index in chosen:
      errors[index] = epipolar.median_error_px(record)
      bar.update()
  bar.close()
  matched = {index: error for index, error in errors.items() if error}

  def group(key: Any) -> dict[str, float]:
    groups: dict[str, list[float]] = {}
    for index, error in matched.items():
      groups.setdefault(str(key(rows[index])), []).append(error)
    return {name: float(np.median(groups[name])) for name in sorted(groups)}

  return {
    'close_records': len(close),
    'tried': len(chosen),
    'matched': len(matched),
    'sampson_px': float(np.median(list(matched.values()))) if matched else None,
    'sampson_px_per_gap': group(_gap_s),
    'sampson_px_per_video': group(lambda row: row['video_id']),
  }


def _gap_s(row: Mapping[str, Any]) -> int:
  return round(abs(row['source/time_s'] - row['target/time_s']))


def scan(path: str) -> tuple[list[dict[str, Any]], dict[str, float]]:
  """Reads every record once.

  Returns:
    the records without their pictures, and the largest deviations of
    `target2source` from what the other fields give.
  """
  rows, rotation, translation = [], [0.0], [0.0]
  for record in tqdm(read_records(path), desc='reading', unit='record'):
    deviation = quality.pose_inconsistency(record)
    rotation.append(deviation[0])
    translation.append(deviation[1])
    names = [
      name for name in record if name.endswith(('time_s', 'frame2scene'))
    ]
    rows.append({name: record[name] for name in (*_KEPT, *names)})
  return rows, {
    'max_rotation_deg': max(rotation),
    'max_translation': max(translation),
  }


def draw_pairs(
  path: str, rows: Sequence[Mapping[str, Any]], output: pathlib.Path
) -> int:
  """Writes pairs/NNN.jpg for some well overlapping records of every video."""
  videos = list(dict.fromkeys(row['video_id'] for row in rows))
  each = -(-_DRAWINGS // max(len(videos), 1))
  chosen: set[int] = set()
  for video in videos:
    mine = [
      index
      for index, row in enumerate(rows)
      if row['video_id'] == video and row['overlap'] >= _EPIPOLAR_MIN_OVERLAP
    ]
    places = np.linspace(0, len(mine) - 1, min(each, len(mine))).astype(int)
    chosen |= {mine[place] for place in places}
  folder = output / 'pairs'
  folder.mkdir(exist_ok=True)
  for stale in folder.glob('*.jpg'):
    stale.unlink()
  count = 0
  for index, record in enumerate(read_records(path)):
    if index in chosen:
      drawing = epipolar.draw(record)[..., ::-1]
      with binary.atomic_path(folder / f'{count:03d}.jpg') as temporary:
        cv2.imwrite(str(temporary), drawing)
      count += 1
  return count


def judge(
  path: str, truth_folder: str | None, limit: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
  """All figures of audit.json, and the records without their pictures.

  Args:
    path: folder of records.
    truth_folder: folder of truths, or None.
    limit: most records to match afresh.
  """
  manifest = read_manifest(path)
  rows, consistency = scan(path)
  components = quality.gather_components(rows)
  videos, errors, kinds = [], {}, {}
  for summary in manifest['videos']:
    name = summary['video_id']
    mine = [component for component in components if component.video_id == name]
    video = video_figures(
      summary, mine, [row for row in rows if row['video_id'] == name]
    )
    if truth_folder:
      truth = read_truth(truth_folder, name)
      errors[name] = [quality.pose_errors(part, truth) for part in mine]
      kinds[name] = str(truth['kind'])
      video['kind'] = kinds[name]
      if errors[name]:
        video['pose'] = pose_figures(errors[name])
    videos.append(video)
  report: dict[str, Any] = {'records': len(rows)}
  if truth_folder:
    report['pose'] = by_kind(videos, errors, kinds)
  else:
    report['real'] = videos[0] if len(videos) == 1 else videos
  return {
    **report,
    'epipolar': epipolar_figures(path, rows, limit),
    'consistency': consistency,
    'videos': videos,
  }, rows
