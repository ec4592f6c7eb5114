"""One video -> posed frames -> records, and what leaves beside them."""

import collections
import dataclasses
import os
import pathlib
from typing import Any, Iterable, Iterator, Mapping, Sequence

import numpy as np

from odin_jax.shared import files, panorama_schema, schema
from preprocessing import matchers
from preprocessing import settings as run_settings
from preprocessing.exporting import cameras, exports
from preprocessing.keyframes import keyframes
from preprocessing.reading import detection, frames
from preprocessing.solving import solver, tracks
from preprocessing.views import (
  cutting,
  frame_pairs,
  panorama_records,
  visibility,
)
from preprocessing.writing import parts, rejected_pictures, splits


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
    exporting: what its camera path is exported to, and how.
    panoramas: records of its keyframes; None where they are not kept.
  """

  video_id: str
  records: Iterator[schema.Record]
  summary: Mapping[str, Any]
  dropped: Sequence[Mapping[str, Any]]
  path: cameras.CameraPath
  pictures: Sequence[np.ndarray]
  examples: Mapping[str, bytes]
  exporting: exports.Settings
  panoramas: Iterator[schema.Record] | None

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
      self.exporting,
    )
    for name, data in self.examples.items():
      file = output / name
      file.parent.mkdir(parents=True, exist_ok=True)
      with files.atomic_path(file) as temporary:
        temporary.write_bytes(data)
    if self.panoramas is not None:
      parts.write(
        output / panorama_schema.FOLDER,
        self.video_id,
        records=self.panoramas,
        summary={},
        dropped=[],
        fingerprint=fingerprint,
        schema_of=panorama_schema.PANORAMAS,
      )
    parts.write(
      output,
      self.video_id,
      records=self.records,
      summary=self.summary,
      dropped=self.dropped,
      fingerprint=fingerprint,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Posed:
  """A video whose poses are known, and nothing else yet.

  Attributes:
    decision: how its frames are laid out.
    keyframes: what is used of it.
    solution: their poses.
  """

  decision: detection.Decision
  keyframes: keyframes.Keyframes
  solution: solver.Solution


def pose(
  path: str | os.PathLike[str],
  settings: run_settings.Settings,
  matcher: matchers.Matcher,
  progress: keyframes.Progress = lambda phase, share: None,
) -> Posed:
  """Reads a video and solves it.

  Args:
    path: the video.
    settings: see there.
    matcher: what describes and matches its keyframes.
    progress: told the phase and the share of it that is done.

  Raises:
    frames.VideoError: it is no usable 360-degree video.
  """
  decision = detection.decide(
    path,
    settings.reading.projection,
    trusted=settings.reading.trust_projection,
  )
  video_keyframes = keyframes.extract(
    path,
    settings.keyframes,
    matcher,
    decision.layout,
    max_width_px=settings.reading.max_width_px,
    progress=progress,
  )
  if not video_keyframes.slots:
    reasons = sorted({item.reason.value for item in video_keyframes.rejected})
    raise frames.VideoError(
      f'{path}: no usable frame in it ({", ".join(reasons)}); '
      'give another video'
    )
  solution = solver.Solver(
    video_keyframes.features,
    video_keyframes.tracked_rays,
    matcher,
    rules=settings.solving.poses,
    graph_rules=settings.solving.graph,
    max_gap=settings.solving.max_gap,
    pixel_rad=2 * np.pi / video_keyframes.width_px,
    mask=visibility.known_mask(settings.solving.mask, decision.layout),
  ).solve(lambda phase: progress(phase, 0.0))
  return Posed(decision=decision, keyframes=video_keyframes, solution=solution)


def process(
  path: str | os.PathLike[str],
  settings: run_settings.Settings,
  progress: keyframes.Progress = lambda phase, share: None,
  matcher: matchers.Matcher | None = None,
) -> Result:
  """Does all that is to be done with one video.

  Args:
    path: the video; its stem is the video id.
    settings: see there.
    progress: told the phase and the share of it that is done.
    matcher: in place of the one that the settings name.

  Raises:
    frames.VideoError: it is no usable 360-degree video.
  """
  video_id = pathlib.Path(path).stem
  if matcher is None:
    matcher = settings.matching.make()
  posed = pose(path, settings, matcher, progress)
  video_keyframes, solution = posed.keyframes, posed.solution
  height_px, width_px = video_keyframes.pictures[0].shape[:2]
  cutter = cutting.Cutter(
    video_id,
    video_keyframes,
    solution,
    settings.views,
    visibility.Sight(
      posed.decision.layout,
      solution.mask.resized(width_px, height_px),
      settings.views.rules,
    ),
  )
  split_of = splits.split_frames(
    video_id, len(video_keyframes.times_s), settings.splits
  )
  selection = frame_pairs.select(
    solution,
    slots=video_keyframes.slots,
    split_of=split_of,
    window=settings.solving.max_gap,
  )
  chosen, without_views = cutter.choose(selection.frame_pairs)
  dropped, examples = rejected_pictures.rows_and_pictures(
    video_id,
    [
      *video_keyframes.rejected,
      *selection.rejected,
      *solution.rejected,
      *without_views,
    ],
    times_s=video_keyframes.times_s,
    panoramas=video_keyframes.pictures,
    limit=settings.examples_per_reason,
  )
  units = cutter.units(chosen)
  panoramas = panorama_records.of_solution(
    video_id,
    video_keyframes,
    solution,
    units,
    splits=split_of,
    matcher=matcher.name,
  )
  return Result(
    video_id=video_id,
    records=cutter.cut(
      chosen, splits=split_of, matcher=matcher.name, progress=progress
    ),
    summary={
      'projection': posed.decision.to_dict(),
      'colours': frames.describe_colours(path),
      **_summary(solution, chosen, selection, settings.keyframes.fps),
    },
    dropped=dropped,
    path=cameras.of_solution(
      video_id, video_keyframes.times_s, solution, units
    ),
    pictures=video_keyframes.pictures,
    examples=examples,
    exporting=settings.exporting,
    panoramas=panoramas if settings.panorama_records else None,
  )


def _summary(
  solution: solver.Solution,
  chosen: Sequence[cutting.SelectedViews],
  selection: frame_pairs.Selection,
  fps: float,
) -> dict[str, Any]:
  """The video's figures for the manifest; gaps are named in seconds."""

  def per_gap(counts: Mapping[int, int]) -> dict[str, int]:
    return {f'{gap / fps:g}': counts[gap] for gap in sorted(counts)}

  def gaps(pairs: Iterable[tracks.FramePair]) -> dict[str, int]:
    return per_gap(collections.Counter(map(selection.gap, pairs)))

  counts = selection.counts
  kept = {item.frames for item in chosen if item.hops == 1}
  beyond = {pair for pair in kept if selection.is_beyond(pair)}
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
        pair.frames for pair in selection.frame_pairs if pair.hops > 1
      ),
      'kept': gaps(long_kept),
    },
    'masked_share': round(solution.mask.share, 4),
    'matcher_calls_per_kept_pair': round(calls / max(len(kept), 1), 3),
    **solution.figures,
  }
