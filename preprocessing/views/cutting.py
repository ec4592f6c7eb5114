"""Posed panoramas -> pairs of views -> records."""

import collections
import dataclasses
import functools
import hashlib
from typing import Any, Callable, Iterator, NamedTuple, Sequence

from jaxtyping import Float
import numpy as np

from odin_jax.shared import camera, depth_png, median_depth, schema
from preprocessing import panorama
from preprocessing.keyframes import keyframes, static_weights
from preprocessing.solving import covariance, scene_scale, solver, tracks
from preprocessing.views import (
  alignment,
  frame_pairs,
  sparse_depth,
  visibility,
)
from preprocessing.writing import jpeg, rejections

# Panoramas that views are cut from; a large one takes 25 MB.
_OPEN_PANORAMAS = 16
# What two frames alone see rests on one match, which may be wrong along the
# epipolar line, or of something that moves. Without such points views of four
# worlds lose a twentieth of their depths, a quarter of those that are off by a
# tenth, and most of those on what moves.
_MIN_FRAMES = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """Which views are cut.

  Attributes:
    rules: what views, and which pairs of them are good.
    size_px: width = height of a view.
    depth_px: width = height of the map of what depth is known of a view; 0: no
      maps.
    seed: of their choice.
  """

  rules: alignment.ViewRules
  size_px: int
  depth_px: int
  seed: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelectedViews:
  """A pair of views to cut; its median depths are in the solution's unit."""

  source: int
  target: int
  views: alignment.ViewPair
  confidence: float
  hops: int
  median_depth: float
  target_median_depth: float

  @property
  def frames(self) -> tracks.FramePair:
    """The earlier and the later frame."""
    return min(self.source, self.target), max(self.source, self.target)


class _DirectedPair(NamedTuple):
  """A frame pair in one direction, and the views to look for in it."""

  pair: frame_pairs.SelectedPair
  source: int
  target: int
  num_views: int


class Cutter:
  """Chooses and cuts the views of a solved video.

  Args:
    video_id: goes into the records, and seeds the choice of views.
    video_keyframes: see there.
    solution: their poses.
    settings: see there.
    sight: which views may be cut, and how much of each is scene.
  """

  def __init__(
    self,
    video_id: str,
    video_keyframes: keyframes.Keyframes,
    solution: solver.Solution,
    settings: Settings,
    sight: visibility.Sight,
  ):
    self._video_id = video_id
    self._keyframes = video_keyframes
    self._solution = solution
    self._settings = settings
    self._sight = sight
    self._rules = settings.rules

  def choose(
    self, selected: Sequence[frame_pairs.SelectedPair]
  ) -> tuple[list[SelectedViews], list[rejections.Rejection]]:
    """View pairs of frame pairs, and the frame pairs that none was found of."""
    directed_pairs = [
      directed
      for pair in sorted(selected, key=lambda pair: pair.frames)
      for directed in self._directions(pair)
    ]
    choices = alignment.choose_all(
      (self._posed_frames(directed) for directed in directed_pairs),
      rules=self._rules,
      refuse=self._sight.refuse,
    )
    chosen: list[SelectedViews] = []
    reasons_of: dict[
      tracks.FramePair, collections.Counter[rejections.Reason]
    ] = {}
    for directed, choice in zip(directed_pairs, choices, strict=True):
      pair = directed.pair
      views = [self._selected(directed, each) for each in choice.view_pairs]
      # The points of a choice are those of either frame: a view may show none
      # that its own frame sees.
      seen = [x for x in views if x.median_depth and x.target_median_depth]
      chosen += seen
      reasons_of.setdefault(pair.frames, collections.Counter()).update(
        choice.reasons
        + [rejections.Reason.LITTLE_OVERLAP] * (len(views) - len(seen))
      )
    # A frame pair is lost only if all of its views are.
    kept = {views.frames for views in chosen}
    rejected = [
      rejection
      for frames, reasons in reasons_of.items()
      if frames not in kept
      for rejection in rejections.counted(
        rejections.Stage.VIEWS, reasons, frames
      )
    ]
    return chosen, rejected

  def _directions(
    self, pair: frame_pairs.SelectedPair
  ) -> Iterator[_DirectedPair]:
    """Both directions of a frame pair, with half of its views each."""
    earlier, later = pair.frames
    backward = self._rules.num_views // 2
    forward = self._rules.num_views - backward
    if forward:
      yield _DirectedPair(pair, earlier, later, forward)
    if backward:
      yield _DirectedPair(pair, later, earlier, backward)

  def _posed_frames(self, directed: _DirectedPair) -> alignment.PosedFrames:
    source, target = directed.source, directed.target
    source_frame2scene = self._solution.frame2scene[source]
    points = self._solution.points_of_pair(*directed.pair.frames)
    return alignment.PosedFrames(
      source_frame2scene=source_frame2scene,
      target_frame2scene=self._solution.frame2scene[target],
      points=points,
      weights=scene_scale.direction_weights(points - source_frame2scene[:, 3]),
      num_views=directed.num_views,
      rng=_generator(self._settings.seed, self._video_id, source, target),
    )

  def _selected(
    self, directed: _DirectedPair, views: alignment.ViewPair
  ) -> SelectedViews:
    return SelectedViews(
      source=directed.source,
      target=directed.target,
      views=views,
      confidence=directed.pair.confidence,
      hops=directed.pair.hops,
      median_depth=self._median_depth(directed.source, views.source),
      target_median_depth=self._median_depth(directed.target, views.target),
    )

  def _median_depth(self, frame: int, angles: alignment.Angles) -> float:
    points = self._solution.points_of_frame(frame, min_frames=1)
    view2scene = camera.compose(
      self._solution.frame2scene[frame],
      camera.make_pose(camera.view2frame_rotation(*angles), np.zeros(3)),
    )
    return median_depth.of_points(
      camera.transform(camera.inverse(view2scene), points), self._rules.fov_deg
    )

  def units(self, chosen: Sequence[SelectedViews]) -> dict[int, float]:
    """Scene units per unit of the solution, by component.

    In scene units the median depth of a component's source views is one: the
    solution's own unit is the median distance over all directions, floor and
    ceiling too, while views look at what stands around.
    """
    depths = collections.defaultdict(list)
    for item in chosen:
      component = int(self._solution.component[item.source])
      depths[component].append(item.median_depth)
    return {
      component: float(1 / np.median(values))
      for component, values in depths.items()
    }

  def cut(
    self,
    chosen: Sequence[SelectedViews],
    *,
    splits: Sequence[str],
    matcher: str,
    progress: keyframes.Progress,
  ) -> Iterator[schema.Record]:
    """Cuts the chosen views and makes records of them.

    Args:
      chosen: by their earlier frame, so that few pictures are open at a time.
      splits: of every frame.
      matcher: its name.
      progress: told of the share that is done.
    """
    units = self.units(chosen)
    # A view is turned exactly, so its pose is as good as its panorama's.
    pose_errors = covariance.pose_errors(
      self._solution, ((item.source, item.target) for item in chosen)
    )
    panorama_of = functools.lru_cache(_OPEN_PANORAMAS)(
      lambda frame: panorama.Views(self._keyframes.pictures[frame])
    )
    for index, item in enumerate(chosen):
      progress('records', (index + 1) / len(chosen))
      scene_id = int(self._solution.component[item.source])
      unit = units[scene_id]
      error = pose_errors[item.source, item.target]
      yield {
        **self._side('source', item.source, item.views.source, panorama_of),
        **self._side('target', item.target, item.views.target, panorama_of),
        'source/frame2scene': self._pose(item.source, unit),
        'target/frame2scene': self._pose(item.target, unit),
        **self._static_weight(item),
        **self._depth(item, unit),
        'target2source': camera.rescale(item.views.target2source, unit),
        'fov_deg': self._rules.fov_deg,
        'video_id': self._video_id,
        'split': splits[item.source],
        'scene_id': scene_id,
        'median_depth': item.median_depth * unit,
        'target/median_depth': item.target_median_depth * unit,
        'overlap': item.views.overlap,
        'confidence': item.confidence,
        'hops': item.hops,
        'rotation_error_deg': error.rotation_deg,
        'direction_error_deg': error.direction_deg,
        'matcher': matcher,
      }

  def _side(
    self,
    side: str,
    frame: int,
    angles: alignment.Angles,
    panorama_of: Callable[[int], panorama.Views],
  ) -> dict[str, Any]:
    view = panorama_of(frame).cut(**self._view(angles))
    return {
      f'{side}/image': jpeg.encode(view),
      f'{side}/time_s': self._keyframes.times_s[frame],
      f'{side}/yaw_deg': angles.yaw_deg,
      f'{side}/pitch_deg': angles.pitch_deg,
      f'{side}/unmasked_share': self._sight.unmasked_share(angles),
    }

  def _pose(self, frame: int, unit: float) -> Float[np.ndarray, '3 4']:
    return camera.rescale(self._solution.frame2scene[frame], unit)

  def _view(self, angles: alignment.Angles) -> dict[str, Any]:
    return {
      'yaw_deg': angles.yaw_deg,
      'pitch_deg': angles.pitch_deg,
      'fov_deg': self._rules.fov_deg,
      'size_px': self._settings.size_px,
    }

  def _static_weight(self, item: SelectedViews) -> dict[str, bytes]:
    if not self._keyframes.static_weights:
      return {}
    weight = static_weights.cut(
      self._keyframes.static_weights[item.target],
      **self._view(item.views.target),
    )
    return {'target/static_weight': static_weights.encode_png(weight)}

  def _depth(self, item: SelectedViews, unit: float) -> dict[str, bytes]:
    """Where points are that both frames show: neither view is behind them."""
    size_px = self._settings.depth_px
    if not size_px:
      return {}
    points = self._solution.points_in_both(
      item.source, item.target, min_frames=_MIN_FRAMES
    )
    pngs = {}
    for side, frame, angles in (
      ('source', item.source, item.views.source),
      ('target', item.target, item.views.target),
    ):
      scene2frame = camera.inverse(self._solution.frame2scene[frame])
      depth = sparse_depth.rasterise(
        camera.transform(scene2frame, points) * unit,
        angles,
        fov_deg=self._rules.fov_deg,
        size_px=size_px,
      )
      pngs[f'{side}/depth'] = depth_png.encode(depth)
    return pngs


def _generator(seed: int, *names: object) -> np.random.Generator:
  """Randomness that depends on the seed and the names alone."""
  digest = hashlib.sha256('/'.join(map(str, names)).encode()).digest()
  return np.random.default_rng([seed, int.from_bytes(digest[:8], 'big')])
