"""The figures of an audit: everything that audit.json says of some records.

A frame pair is two panoramas; a record is two views cut from them.
"""

import collections
import pathlib
from typing import Any, Callable, Iterable, Mapping, NamedTuple, Sequence

import numpy as np

from odin_jax.shared import files, progress
from preprocessing.auditing import (
  calibration,
  epipolar,
  held_out,
  quality,
  records,
)
from preprocessing.writing import jpeg

_KEPT = ('video_id', 'scene_id', 'overlap', 'median_depth', 'hops')
_UNMASKED_SHARES = ('source/unmasked_share', 'target/unmasked_share')
_EPIPOLAR_MAX_GAP_S = 2
_EPIPOLAR_MIN_OVERLAP = 0.5
_DRAWINGS = 8
_ERRORS = ('rotation_deg', 'direction_deg')


class Judgement(NamedTuple):
  """What an audit finds of the records.

  Attributes:
    report: the figures of audit.json.
    rows: the records without their pictures, with their `place`.
    measures: values by what is measured, to compare the splits by.
  """

  report: dict[str, Any]
  rows: list[dict[str, Any]]
  measures: dict[str, list[held_out.Measured]]


def read_truth(folder: str, video_id: str) -> dict[str, np.ndarray]:
  """The true poses of one video.

  Raises:
    errors.UserError: there are none.
  """
  path = files.require_file(
    pathlib.Path(folder) / f'{video_id}.truth.npz', 'the truth of this video'
  )
  with np.load(path) as archive:
    names = ('time_s', 'frame2world', 'kind')
    return {name: archive[name] for name in names}


def kept_shares(summary: Mapping[str, Any]) -> dict[str, Any]:
  """Candidate frame pairs; share of them kept, in all and per gap."""
  candidates = summary['frame_pairs']['candidates']
  kept = summary['frame_pairs']['kept']
  total = sum(candidates.values())
  return {
    'frame_pair_candidates': total,
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
    f'{round(later - earlier, 1):g}'
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
    'long_frame_pairs': sum(
      len(component.long_pairs) for component in components
    ),
    'frame_pairs_per_gap': {
      gap: gaps.count(gap) for gap in sorted(set(gaps), key=float)
    },
    'poses_per_frame': max(
      (component.poses_per_frame for component in components), default=0
    ),
    'median_depth': float(np.median(depths)) if depths else None,
    **unmasked_shares(rows),
    'order': [quality.frames_behind(component) for component in components],
    **kept_shares(summary),
  }


def unmasked_shares(
  rows: Sequence[Mapping[str, Any]],
) -> dict[str, float | None]:
  """How much of the views is scene, not the operator: their mean and least.

  None where the records do not say, as those of earlier versions.
  """
  shares = [
    row[name] for row in rows for name in _UNMASKED_SHARES if name in row
  ]
  return {
    'unmasked_share': float(np.mean(shares)) if shares else None,
    'min_unmasked_share': float(np.min(shares)) if shares else None,
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
  stated: Mapping[str, Sequence[calibration.Stated]],
  kinds: Mapping[str, str],
) -> dict[str, Any]:
  """Pose errors of all videos of a kind, and their worst other figures."""
  pose = {}
  for kind in sorted(set(kinds.values())):
    of_kind = [video for video in videos if kinds[video['video_id']] == kind]
    pose_errors = [
      error for video in of_kind for error in errors[video['video_id']]
    ]
    pose_stated = [
      item for video in of_kind for item in stated[video['video_id']]
    ]
    shares = [video['kept_share_per_gap'] for video in of_kind]
    gaps = sorted({gap for share in shares for gap in share}, key=float)
    depths = [video['median_depth'] for video in of_kind]
    pose[kind] = {
      'videos': len(of_kind),
      **(pose_figures(pose_errors) if pose_errors else {'frame_pairs': 0}),
      **calibration.figures(pose_stated),
      'max_components': max(video['components'] for video in of_kind),
      'max_poses_per_frame': max(video['poses_per_frame'] for video in of_kind),
      'median_depth': float(np.median([d for d in depths if d] or [0.0])),
      'kept_share': float(np.mean([video['kept_share'] for video in of_kind])),
      'kept_share_per_gap': {
        gap: float(np.mean([share[gap] for share in shares if gap in share]))
        for gap in gaps
      },
      'min_kept_share_per_gap': min(
        (value for share in shares for value in share.values()), default=0.0
      ),
    }
  return pose


class FreshMatches(NamedTuple):
  """Close pairs that were matched afresh.

  Attributes:
    num_close: records of close frames and much overlap.
    num_tried: of them, those that were matched.
    found: those with enough matches, and their median Sampson distance.
  """

  num_close: int
  num_tried: int
  found: list[tuple[Mapping[str, Any], float]]


def match_close(
  folder: records.Records, rows: Sequence[Mapping[str, Any]], limit: int
) -> FreshMatches:
  """Matches at most so many close pairs, spread evenly."""
  close = [
    row
    for row in rows
    if gap_s(row) <= _EPIPOLAR_MAX_GAP_S
    and row['overlap'] >= _EPIPOLAR_MIN_OVERLAP
  ]
  tried = spread(close, limit)
  found = []
  for row in progress.each(tried, 'record', desc='matching'):
    error = epipolar.median_error_px(folder[row['place']])
    if error is not None:
      found.append((row, error))
  return FreshMatches(len(close), len(tried), found)


def epipolar_figures(matches: FreshMatches) -> dict[str, Any]:
  """Sampson distances of close pairs, in all, per gap and per video."""

  def group(key: Any) -> dict[str, float]:
    groups: dict[str, list[float]] = {}
    for row, error in matches.found:
      groups.setdefault(key(row), []).append(error)
    return {name: float(np.median(groups[name])) for name in sorted(groups)}

  errors = [error for _, error in matches.found]
  return {
    'close_records': matches.num_close,
    'tried': matches.num_tried,
    'matched': len(errors),
    'sampson_px': float(np.median(errors)) if errors else None,
    'sampson_px_per_gap': group(lambda row: f'{gap_s(row):g}'),
    'sampson_px_per_video': group(lambda row: row['video_id']),
  }


def measures_of(
  rows: Sequence[Mapping[str, Any]],
  matches: FreshMatches,
  truths: Mapping[str, Mapping[str, np.ndarray]],
) -> dict[str, list[held_out.Measured]]:
  """What the splits are compared by: fresh matches, and errors of all pairs.

  Args:
    rows: all records.
    matches: of some of them.
    truths: by video; errors are of videos whose truth is known.
  """
  measures: dict[str, list[held_out.Measured]] = {
    'sampson_px': [
      held_out.Measured(
        row['place'].split,
        (row['video_id'], row['scene_id']),
        gap_s(row),
        error,
      )
      for row, error in matches.found
    ]
  }
  for split, of_split in _by(rows, lambda row: row['place'].split).items():
    for component in quality.gather_components(of_split):
      if component.video_id not in truths:
        continue
      errors = quality.pose_errors(
        component,
        truths[component.video_id],
        component.frame_pairs | component.long_pairs,
      )
      scene = component.video_id, component.scene_id
      gaps_s = np.round(errors['gap_s'], 1).tolist()
      for name in _ERRORS:
        measures.setdefault(name, []).extend(
          held_out.Measured(split, scene, gap, value)
          for gap, value in zip(gaps_s, errors[name].tolist())
          if np.isfinite(value)
        )
  return measures


def spread(items: Sequence[Any], limit: int) -> list[Any]:
  """At most so many of the items, evenly from first to last."""
  places = np.linspace(0, len(items) - 1, min(limit, len(items)))
  return [items[place] for place in places.astype(int)]


def gap_s(row: Mapping[str, Any]) -> float:
  """Time between the two frames of a record, to a tenth of a second."""
  return round(abs(row['source/time_s'] - row['target/time_s']), 1)


def histograms(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """How records are spread over overlap, baseline and time between frames.

  Returns:
    by quantity, `edges` of n + 1 and `counts` of n bins; baselines in scene
    units, up to their 99th percentile, what is beyond in the last bin.
  """
  gaps = [gap_s(row) for row in rows]
  baselines = np.array([row['baseline'] for row in rows] or [0.0])
  longest = max(float(np.percentile(baselines, 99)), 1e-6)
  binned = {
    'overlap': ([row['overlap'] for row in rows], np.linspace(0, 1, 21)),
    'baseline': (np.minimum(baselines, longest), np.linspace(0, longest, 21)),
    'gap_s': (gaps, _edges_around(gaps)),
  }
  binned_counts = {}
  for name, (values, edges) in binned.items():
    counts, edges = np.histogram(values, edges)
    binned_counts[name] = {'edges': edges.tolist(), 'counts': counts.tolist()}
  return binned_counts


def _edges_around(gaps: Sequence[float]) -> np.ndarray:
  """Edges of bins about the multiples of the smallest gap."""
  step = min((gap for gap in gaps if gap), default=1.0)
  count = round(max(gaps, default=0.0) / step)
  return (np.arange(count + 2) - 0.5) * step


def scan(
  folder: records.Records,
) -> tuple[list[dict[str, Any]], dict[str, float]]:
  """Reads every record once.

  Returns:
    the records without their pictures, with their `place`; and the largest
    deviations of `target2source` from what the other fields give.
  """
  rows, rotation, translation = [], [0.0], [0.0]
  for place, record in progress.each(folder.places(), 'record', desc='reading'):
    deviation = quality.pose_inconsistency(record)
    rotation.append(deviation[0])
    translation.append(deviation[1])
    names = [
      name
      for name in record
      if name.endswith(('time_s', 'frame2scene', 'unmasked_share', 'error_deg'))
    ]
    row = {name: record[name] for name in (*_KEPT, *names)}
    row['place'] = place
    row['baseline'] = float(np.linalg.norm(record['target2source'][:, 3]))
    rows.append(row)
  return rows, {
    'max_rotation_deg': max(rotation),
    'max_translation': max(translation),
  }


def draw_pairs(
  audited: records.Records,
  rows: Sequence[Mapping[str, Any]],
  output: pathlib.Path,
) -> int:
  """Writes pairs/NNN.jpg for some well overlapping records of every video."""
  videos = list(dict.fromkeys(row['video_id'] for row in rows))
  each = -(-_DRAWINGS // max(len(videos), 1))
  folder = output / 'pairs'
  folder.mkdir(exist_ok=True)
  for stale in folder.glob('*.jpg'):
    stale.unlink()
  chosen = [
    row
    for video in spread(videos, _DRAWINGS)
    for row in spread(
      [
        row
        for row in rows
        if row['video_id'] == video and row['overlap'] >= _EPIPOLAR_MIN_OVERLAP
      ],
      each,
    )
  ]
  for number, row in enumerate(chosen):
    drawing = epipolar.draw(audited[row['place']])
    with files.atomic_path(folder / f'{number:03d}.jpg') as temporary:
      temporary.write_bytes(jpeg.encode(drawing))
  return len(chosen)


def _by(
  items: Iterable[Any], key: Callable[[Any], str]
) -> dict[str, list[Any]]:
  groups = collections.defaultdict(list)
  for item in items:
    groups[key(item)].append(item)
  return groups


def compute(
  folder: records.Records, truth_folder: str | None, limit: int
) -> Judgement:
  """All that is found without a sample.

  Args:
    folder: the records.
    truth_folder: folder of truths, or None.
    limit: most records to match afresh.
  """
  rows, consistency = scan(folder)
  components_of = _by(
    quality.gather_components(rows), lambda component: component.video_id
  )
  rows_of = _by(rows, lambda row: row['video_id'])
  truths: dict[str, dict[str, np.ndarray]] = {}
  videos, errors, stated, kinds = [], {}, {}, {}
  for summary in folder.manifest['videos']:
    name = summary['video_id']
    components = components_of[name]
    video = video_figures(summary, components, rows_of[name])
    if truth_folder:
      truths[name] = read_truth(truth_folder, name)
    stated[name] = [
      calibration.of_component(component, truths.get(name))
      for component in components
    ]
    video.update(calibration.figures(stated[name]))
    if truth_folder:
      truth = truths[name]
      errors[name] = [
        quality.pose_errors(component, truth) for component in components
      ]
      kinds[name] = str(truth['kind'])
      video['kind'] = kinds[name]
      if errors[name]:
        video['pose'] = pose_figures(errors[name])
      long = [
        quality.pose_errors(component, truth, component.long_pairs)
        for component in components
      ]
      if any(len(error['gap_s']) for error in long):
        video['pose_of_long_pairs'] = pose_figures(long)
    videos.append(video)
  matches = match_close(folder, rows, limit)
  report: dict[str, Any] = {'records': len(rows)}
  if truth_folder:
    report['pose'] = by_kind(videos, errors, stated, kinds)
  else:
    report['real'] = videos[0] if len(videos) == 1 else videos
  report = {
    **report,
    'calibration': calibration.figures(
      [item for of_video in stated.values() for item in of_video]
    ),
    'epipolar': epipolar_figures(matches),
    'histograms': histograms(rows),
    **unmasked_shares(rows),
    'consistency': consistency,
    'videos': videos,
  }
  return Judgement(report, rows, measures_of(rows, matches, truths))
