"""One video -> posed frames -> records."""

import collections
import dataclasses
import hashlib
import os
import pathlib
from typing import Any, Callable, Iterator

import cv2
from jaxtyping import Float, UInt8
import ml_collections
import numpy as np

from odin_jax.shared import camera, schema
from preprocessing import (
  alignment,
  frames,
  gauge,
  jpeg,
  matchers,
  panorama,
  poses,
  splits,
  tracking,
  verdicts,
)

Progress = Callable[[str, float], None]


@dataclasses.dataclass
class Observed:
  """What is kept of a video while it is read, once.

  Attributes:
    times_s: of the keyframes.
    pictures: the keyframes as PNG, which loses nothing and saves memory.
    features: of the keyframes.
    arrivals: where the points of each keyframe but the last are in the next.
    width_px: of the panoramas.
  """

  times_s: list[float] = dataclasses.field(default_factory=list)
  pictures: list[bytes] = dataclasses.field(default_factory=list)
  features: list[matchers.Features] = dataclasses.field(default_factory=list)
  arrivals: list[Float[np.ndarray, 'n 3']] = dataclasses.field(
    default_factory=list
  )
  width_px: int = 0

  def panorama(self, frame: int) -> UInt8[np.ndarray, 'h w 3']:
    """A keyframe's picture."""
    data = np.frombuffer(self.pictures[frame], np.uint8)
    return cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1].copy()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
  """All that `parts.write` needs of a video."""

  records: Iterator[schema.Record]
  summary: dict[str, Any]
  dropped: list[dict[str, Any]]


def observe(
  path: str | os.PathLike[str],
  config: ml_collections.ConfigDict,
  matcher: matchers.Matcher,
  progress: Progress = lambda stage, share: None,
) -> Observed:
  """Reads a video, describes its keyframes and follows their points.

  Raises:
    frames.VideoError: it is no usable 360-degree video.
  """
  seen = Observed()
  tracker: tracking.FlowTracker | None = None
  last_slot = -1
  rate = config.fps * config.substeps
  length = max(frames.probe(path).duration_s, 1 / rate)
  for frame in frames.read_frames(path, rate):
    image = _reduced(frame.image, config.max_panorama_width_px)
    if tracker is not None:
      tracker.step(image)
    # A keyframe is the first frame at or after k / fps.
    slot = round(frame.time_s * rate) // config.substeps
    if slot > last_slot:
      last_slot = slot
      features = matcher.describe(image)
      if tracker is not None:
        seen.arrivals.append(tracker.rays())
      tracker = tracking.FlowTracker(image, features.rays)
      seen.times_s.append(frame.time_s)
      seen.features.append(features)
      seen.pictures.append(_png(image))
      seen.width_px = image.shape[1]
      progress('frames', min(1.0, frame.time_s / length))
  return seen


def _reduced(
  image: UInt8[np.ndarray, 'h w 3'], max_width_px: int
) -> UInt8[np.ndarray, 'h w 3']:
  height, width = image.shape[:2]
  if width <= max_width_px:
    return image
  size = (max_width_px, round(height * max_width_px / width))
  return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def _png(image: UInt8[np.ndarray, 'h w 3']) -> bytes:
  options = [cv2.IMWRITE_PNG_COMPRESSION, 1]
  return cv2.imencode('.png', image[..., ::-1], options)[1].tobytes()


def process(
  path: str | os.PathLike[str],
  config: ml_collections.ConfigDict,
  progress: Progress = lambda stage, share: None,
) -> Result:
  """The records of one video.

  Args:
    path: the video; its stem is the video id.
    config: see `configs/preprocess.py`.
    progress: told the stage and the share of it that is done.

  Raises:
    frames.VideoError: it is no usable 360-degree video.
    ValueError: the config names an unknown matcher or field.
  """
  video_id = pathlib.Path(path).stem
  matcher = matchers.make(config.matcher, dict(config[config.matcher]))
  rules = verdicts.PoseRules(**config.poses)
  view_rules = alignment.ViewRules(
    num_views=config.views_per_pair, fov_deg=config.fov_deg, **config.views
  )
  seen = observe(path, config, matcher, progress)
  solution = poses.Solver(
    seen.features,
    seen.arrivals,
    matcher,
    rules=rules,
    max_gap=int(config.window_s * config.fps + 1e-6),
    pixel_rad=2 * np.pi / seen.width_px,
  ).solve(lambda stage: progress(stage, 0.0))
  cutter = _Cutter(video_id, seen, solution, config, view_rules)
  chosen, dropped = cutter.choose()
  cutter.set_units(chosen)
  return Result(
    records=cutter.cut(chosen, matcher.name, progress),
    summary=_summary(solution, chosen, cutter.splits, config.fps),
    dropped=dropped,
  )


@dataclasses.dataclass(frozen=True)
class _Chosen:
  source: int
  target: int
  views: alignment.ViewPair
  confidence: float


class _Cutter:
  """Chooses and cuts the views of a solved video."""

  def __init__(
    self,
    video_id: str,
    seen: Observed,
    solution: poses.Solution,
    config: ml_collections.ConfigDict,
    rules: alignment.ViewRules,
  ):
    self._video_id = video_id
    self._seen = seen
    self._solution = solution
    self._config = config
    self._rules = rules
    self.splits = splits.split_frames(
      video_id,
      len(seen.times_s),
      split_by=config.split_by,
      test_fraction=config.test_fraction,
    )

  def choose(self) -> tuple[list[_Chosen], list[dict[str, Any]]]:
    """View pairs of all kept frame pairs, and rows for the ledger."""
    chosen: list[_Chosen] = []
    dropped = [
      {'stage': 'poses', 'reason': 'frame without a pose', 'frame': frame}
      for frame in np.flatnonzero(self._solution.component < 0).tolist()
    ]
    for (source, target), verdict in sorted(self._solution.verdicts.items()):
      row = {'frames': [source, target]}
      if len(_ends(self.splits, (source, target))) > 1:
        reason = 'frames belong to different splits'
        dropped.append({'stage': 'split', 'reason': reason, **row})
      elif verdict.reason:
        dropped.append({'stage': 'poses', 'reason': verdict.reason, **row})
      else:
        views, reasons = self._views(source, target, verdict.confidence)
        chosen += views
        for reason, count in sorted(collections.Counter(reasons).items()):
          dropped.append(
            {'stage': 'views', 'reason': reason, 'count': count, **row}
          )
    return chosen, dropped

  def _views(
    self, earlier: int, later: int, confidence: float
  ) -> tuple[list[_Chosen], list[str]]:
    """View pairs of a frame pair, half of them in each direction."""
    rng = _generator(self._config.seed, self._video_id, earlier, later)
    points = self._solution.points_of_pair(earlier, later)
    chosen, reasons = [], []
    half = self._rules.num_views // 2
    for source, target, num_views in (
      (earlier, later, self._rules.num_views - half),
      (later, earlier, half),
    ):
      views, refused = alignment.choose_view_pairs(
        self._solution.frame2scene[source],
        self._solution.frame2scene[target],
        points,
        gauge.direction_weights(
          points - self._solution.frame2scene[source][:, 3]
        ),
        rules=dataclasses.replace(self._rules, num_views=num_views),
        rng=rng,
      )
      chosen += [_Chosen(source, target, pair, confidence) for pair in views]
      reasons += refused
    return chosen, reasons if not chosen else []

  def set_units(self, chosen: list[_Chosen]) -> None:
    """Makes the median depth of a component's source views one.

    The solution's own unit is the median distance over all directions, floor
    and ceiling too; views look at what stands around.
    """
    depths = collections.defaultdict(list)
    for item in chosen:
      component = self._solution.component[item.source]
      depths[int(component)].append(item.views.median_depth)
    self._units_per_gauge = {
      component: float(1 / np.median(values))
      for component, values in depths.items()
    }

  def cut(
    self, chosen: list[_Chosen], matcher: str, progress: Progress
  ) -> Iterator[schema.Record]:
    """Cuts the chosen views and makes records of them."""
    panoramas: dict[int, np.ndarray] = {}
    for index, item in enumerate(chosen):
      # Chosen pairs come by their earlier frame, so few pictures are needed
      # at a time.
      earliest = min(item.source, item.target)
      for frame in [frame for frame in panoramas if frame < earliest]:
        del panoramas[frame]
      for frame in (item.source, item.target):
        if frame not in panoramas:
          panoramas[frame] = self._seen.panorama(frame)
      progress('records', (index + 1) / len(chosen))
      scene_id = int(self._solution.component[item.source])
      units = self._units_per_gauge[scene_id]
      yield {
        **self._side('source', item.source, item.views.source, panoramas),
        **self._side('target', item.target, item.views.target, panoramas),
        'target2source': camera.rescale(item.views.target2source, units),
        'fov_deg': self._config.fov_deg,
        'video_id': self._video_id,
        'split': self.splits[item.source],
        'scene_id': scene_id,
        'median_depth': item.views.median_depth * units,
        'overlap': item.views.overlap,
        'confidence': item.confidence,
        'hops': 1,
        'matcher': matcher,
      }

  def _side(
    self,
    side: str,
    frame: int,
    angles: alignment.Angles,
    panoramas: dict[int, UInt8[np.ndarray, 'h w 3']],
  ) -> dict[str, Any]:
    view = panorama.cut_view(
      panoramas[frame],
      yaw_deg=angles.yaw_deg,
      pitch_deg=angles.pitch_deg,
      fov_deg=self._config.fov_deg,
      size_px=self._config.view_size_px,
    )
    return {
      f'{side}/image': jpeg.encode(view),
      f'{side}/time_s': self._seen.times_s[frame],
      f'{side}/yaw_deg': angles.yaw_deg,
      f'{side}/pitch_deg': angles.pitch_deg,
      f'{side}/frame2scene': camera.rescale(
        self._solution.frame2scene[frame],
        self._units_per_gauge[int(self._solution.component[frame])],
      ),
    }


def _generator(seed: int, *names: object) -> np.random.Generator:
  """Randomness that depends on the seed and the names alone."""
  digest = hashlib.sha256('/'.join(map(str, names)).encode()).digest()
  return np.random.default_rng([seed, int.from_bytes(digest[:8], 'big')])


def _ends(splits: list[str], pair: tuple[int, int]) -> set[str]:
  return {splits[frame] for frame in pair}


def _summary(
  solution: poses.Solution,
  chosen: list[_Chosen],
  splits: list[str],
  fps: float,
) -> dict[str, Any]:
  """The video's figures for the manifest; gaps are named in seconds."""

  def per_gap(frame_pairs: list[tuple[int, int]]) -> dict[str, int]:
    counts = collections.Counter(later - first for first, later in frame_pairs)
    return {f'{gap / fps:g}': counts[gap] for gap in sorted(counts)}

  kept = {
    (min(item.source, item.target), max(item.source, item.target))
    for item in chosen
  }
  apart = [pair for pair in solution.verdicts if len(_ends(splits, pair)) > 1]
  candidates = [pair for pair in solution.verdicts if pair not in set(apart)]
  return {
    'frames': len(splits),
    'frames_with_pose': int((solution.component >= 0).sum()),
    'components': int(solution.component.max(initial=-1)) + 1,
    'frame_pairs': {
      'candidates': per_gap(candidates),
      'posed': per_gap(
        [pair for pair in candidates if not solution.verdicts[pair].reason]
      ),
      # In no split, so no candidates.
      'split_apart': per_gap(apart),
      'kept': per_gap(sorted(kept)),
    },
    'masked_share': round(solution.mask.share, 4),
    **solution.figures,
  }
