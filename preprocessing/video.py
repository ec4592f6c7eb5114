"""One video -> posed frames -> records, and what leaves beside them."""

import collections
import dataclasses
import os
import pathlib
from typing import Any, Iterable, Iterator, Mapping, Sequence

import cv2
import ml_collections
import numpy as np

from odin_jax.shared import binary, schema
from preprocessing import (
  alignment,
  cutting,
  frames,
  graph,
  matchers,
  observation,
  pairs,
  panorama,
  poses,
)
from preprocessing.exporting import cameras, exports
from preprocessing.reading import detection, projections
from preprocessing.solving import masks, verdicts
from preprocessing.writing import parts, splits

# Height of the panoramas in the picture of a rejected pair.
_EXAMPLE_HEIGHT_PX = 160
# A view is asked for on a grid of so many rays.
_ASKED_PX = 32
_EXAMPLE_QUALITY = [cv2.IMWRITE_JPEG_QUALITY, 80]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
  """What is made of one video.

  Attributes:
    video_id: the video's stem.
    records: its records.
    summary: its figures, for the manifest.
    dropped: rows for the ledger.
    path: its camera path, in the units of the records.
    pictures: its keyframes.
    examples: pictures of rejected pairs, by file name.
    formats: what its camera path is exported to.
    export_rules: and how.
  """

  video_id: str
  records: Iterator[schema.Record]
  summary: Mapping[str, Any]
  dropped: Sequence[Mapping[str, Any]]
  path: cameras.Path
  pictures: Sequence[np.ndarray]
  examples: Mapping[str, bytes]
  formats: Sequence[str]
  export_rules: exports.Rules

  def write(self, output: pathlib.Path, fingerprint: str) -> None:
    """Writes all of it; the part's note, which tells it whole, comes last.

    Args:
      output: the run's output folder.
      fingerprint: digest of all that the result depends on.
    """
    exports.write(
      output / 'cameras' / self.video_id,
      self.path,
      self.pictures.__getitem__,
      tuple(self.formats),
      self.export_rules,
    )
    for name, data in self.examples.items():
      file = output / name
      file.parent.mkdir(parents=True, exist_ok=True)
      with binary.atomic_path(file) as temporary:
        temporary.write_bytes(data)
    parts.write(
      output,
      self.video_id,
      records=self.records,
      summary=self.summary,
      dropped=self.dropped,
      fingerprint=fingerprint,
    )


def process(
  path: str | os.PathLike[str],
  config: ml_collections.ConfigDict,
  progress: observation.Progress = lambda stage, share: None,
  matcher: matchers.Matcher | None = None,
) -> Result:
  """Does all that is to be done with one video.

  Args:
    path: the video; its stem is the video id.
    config: see `configs/preprocess.py`.
    progress: told the stage and the share of it that is done.
    matcher: in place of the one that the config names.

  Raises:
    frames.VideoError: it is no usable 360-degree video.
    ValueError: the config names an unknown matcher or field.
  """
  video_id = pathlib.Path(path).stem
  if matcher is None:
    matcher = matchers.make(config.matcher, dict(config[config.matcher]))
  decision = detection.decide(path, config.projection)
  seen = observation.observe(path, config, matcher, decision.layout, progress)
  if not seen.slots:
    reasons = sorted({row['reason'] for row in seen.dropped})
    raise frames.VideoError(
      f'{path}: no usable frame in it ({", ".join(reasons)}); give another video'
    )
  solution = poses.Solver(
    seen.features,
    seen.arrivals,
    matcher,
    rules=verdicts.PoseRules(**config.poses),
    graph_rules=graph.GraphRules(**config.graph),
    max_gap=int(config.window_s * config.fps + 1e-6),
    pixel_rad=2 * np.pi / seen.width_px,
    mask=_known_mask(config.mask, decision.layout),
  ).solve(lambda stage: progress(stage, 0.0))
  cutter = cutting.Cutter(
    video_id,
    seen,
    solution,
    config,
    make_sees(decision.layout, config.fov_deg, seen.width_px),
  )
  split_of = splits.split_frames(
    video_id,
    len(seen.times_s),
    split_by=config.split_by,
    test_fraction=config.test_fraction,
  )
  candidates = _Candidates(seen, solution, split_of, config)
  chosen, refused = cutter.choose(candidates.frame_pairs)
  dropped = [*seen.dropped, *candidates.dropped, *solution.dropped, *refused]
  dropped = [_with_times(row, seen.times_s) for row in dropped]
  examples = _examples(video_id, dropped, seen, config.examples_per_reason)
  return Result(
    video_id=video_id,
    records=cutter.cut(
      chosen, splits=split_of, matcher=matcher.name, progress=progress
    ),
    summary={
      'projection': decision.to_dict(),
      **_summary(solution, chosen, candidates, config.fps),
    },
    dropped=dropped,
    path=cameras.of_solution(
      video_id, seen.times_s, solution, cutter.units(chosen)
    ),
    pictures=seen.pictures,
    examples=examples,
    formats=config.export_formats,
    export_rules=exports.Rules(**config.export),
  )


def _known_mask(path: str, layout: projections.Layout) -> masks.Mask | None:
  """What is known not to be scene before anything is looked at."""
  known = []
  if path:
    known.append(masks.read_mask(path))
  if not layout.full_sphere:
    known.append(masks.outside(layout.sees))
  if not known:
    return None
  return known[0] if len(known) == 1 else masks.union(*known)


def make_sees(
  layout: projections.Layout, fov_deg: float, width_px: int
) -> alignment.Sees | None:
  """Whether a camera of this layout sees all that a view shows."""
  if layout.full_sphere:
    return None
  # The outermost rays asked about are those of the view's borders, and of what
  # interpolation reads beyond them.
  border = np.tan(np.deg2rad(fov_deg) / 2) * _ASKED_PX / (_ASKED_PX - 1)
  asked_deg = 2 * np.rad2deg(np.arctan(border))
  asked_deg += 2 * panorama.MARGIN_PX * 360 / width_px

  def sees(angles: alignment.Angles) -> bool:
    directions = panorama.view_directions(
      yaw_deg=angles.yaw_deg,
      pitch_deg=angles.pitch_deg,
      fov_deg=float(min(asked_deg, 179.0)),
      size_px=_ASKED_PX,
    )
    return bool(np.all(layout.sees(directions)))

  return sees


class _Candidates:
  """The frame pairs of a solved video that views are looked for in.

  Attributes:
    frame_pairs: to cut views of.
    dropped: ledger rows of the others.
    counts: per kind and gap in slots, for the manifest.
  """

  def __init__(
    self,
    seen: observation.Observed,
    solution: poses.Solution,
    split_of: Sequence[str],
    config: ml_collections.ConfigDict,
  ):
    self._slots = seen.slots
    self.frame_pairs: list[cutting.FramePair] = []
    self.dropped: list[dict[str, Any]] = [
      {'stage': 'poses', 'reason': 'frame without a pose', 'frames': [frame]}
      for frame in np.flatnonzero(solution.component < 0).tolist()
    ]
    self.counts: dict[str, collections.Counter[int]] = collections.defaultdict(
      collections.Counter
    )
    self._window = int(config.window_s * config.fps + 1e-6)
    for pair, verdict in sorted(solution.verdicts.items()):
      kind = self._judge(pair, verdict, split_of)
      # Beyond the window: where the path returns, or keyframes are missing.
      place = f'{kind}_beyond' if self.is_beyond(pair) else kind
      self.counts[place][self.gap(pair)] += 1
    for long in solution.long_pairs:
      if split_of[long.source] == split_of[long.target]:
        self.frame_pairs.append(
          cutting.FramePair(
            frames=(long.source, long.target),
            confidence=long.confidence,
            hops=long.hops,
          )
        )

  def gap(self, pair: pairs.FramePair) -> int:
    """Slots between the frames of a pair."""
    return self._slots[pair[1]] - self._slots[pair[0]]

  def is_beyond(self, pair: pairs.FramePair) -> bool:
    """Whether the frames are further apart than the window."""
    return self.gap(pair) > self._window

  def _judge(
    self,
    pair: pairs.FramePair,
    verdict: verdicts.Verdict,
    split_of: Sequence[str],
  ) -> str:
    if split_of[pair[0]] != split_of[pair[1]]:
      reason = 'frames belong to different splits'
      self.dropped.append(
        {'stage': 'split', 'reason': reason, 'frames': list(pair)}
      )
      return 'split_apart'
    if verdict.reason:
      self.dropped.append(
        {'stage': 'poses', 'reason': verdict.reason, 'frames': list(pair)}
      )
      return 'refused'
    self.frame_pairs.append(
      cutting.FramePair(frames=pair, confidence=verdict.confidence)
    )
    return 'posed'


def _with_times(
  row: dict[str, Any], times_s: Sequence[float]
) -> dict[str, Any]:
  """A ledger row that says when, too."""
  if 'frames' not in row:
    return row
  return {**row, 'times_s': [round(times_s[f], 3) for f in row['frames']]}


def _examples(
  video_id: str,
  dropped: list[dict[str, Any]],
  seen: observation.Observed,
  limit: int,
) -> dict[str, bytes]:
  """Pictures of the first rejected pairs of every reason.

  Their rows get `picture`, the file's name in the output folder.
  """
  made: dict[str, bytes] = {}
  count: collections.Counter[tuple[str, str]] = collections.Counter()
  for row in dropped:
    key = row['stage'], row['reason']
    if 'frames' not in row or count[key] >= limit:
      continue
    count[key] += 1
    name = f'rejected/{video_id}/{len(made):03d}.jpg'
    row['picture'] = name
    made[name] = _side_by_side([seen.pictures[f] for f in row['frames']])
  return made


def _side_by_side(images: Sequence[np.ndarray]) -> bytes:
  size = (2 * _EXAMPLE_HEIGHT_PX, _EXAMPLE_HEIGHT_PX)
  small = [
    cv2.resize(image, size, interpolation=cv2.INTER_AREA) for image in images
  ]
  joined = np.concatenate(small, axis=1)[..., ::-1]
  return cv2.imencode('.jpg', joined, _EXAMPLE_QUALITY)[1].tobytes()


def _summary(
  solution: poses.Solution,
  chosen: Sequence[cutting.Chosen],
  candidates: _Candidates,
  fps: float,
) -> dict[str, Any]:
  """The video's figures for the manifest; gaps are named in seconds."""

  def per_gap(counts: Mapping[int, int]) -> dict[str, int]:
    return {f'{gap / fps:g}': counts[gap] for gap in sorted(counts)}

  def gaps(frame_pairs: Iterable[pairs.FramePair]) -> dict[str, int]:
    return per_gap(collections.Counter(map(candidates.gap, frame_pairs)))

  counts = candidates.counts
  kept = {item.frames for item in chosen if item.hops == 1}
  beyond = {pair for pair in kept if candidates.is_beyond(pair)}
  long_kept = {item.frames for item in chosen if item.hops > 1}
  calls = solution.figures['matcher_calls']
  return {
    'frames': len(solution.component),
    'frames_with_pose': int((solution.component >= 0).sum()),
    'components': int(solution.component.max(initial=-1)) + 1,
    'frame_pairs': {
      'candidates': per_gap(counts['posed'] + counts['refused']),
      'posed': per_gap(counts['posed']),
      # In no split, so no candidates.
      'split_apart': per_gap(counts['split_apart']),
      'kept': gaps(kept - beyond),
    },
    'beyond_window_frame_pairs': {
      'candidates': per_gap(counts['posed_beyond'] + counts['refused_beyond']),
      'kept': gaps(beyond),
    },
    'long_frame_pairs': {
      'candidates': gaps(
        pair.frames for pair in candidates.frame_pairs if pair.hops > 1
      ),
      'kept': gaps(long_kept),
    },
    'masked_share': round(solution.mask.share, 4),
    'matcher_calls_per_kept_pair': round(calls / max(len(kept), 1), 3),
    **solution.figures,
  }
