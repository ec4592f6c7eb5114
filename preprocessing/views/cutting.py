"""Posed panoramas -> pairs of views -> records."""

import collections
import dataclasses
import functools
import hashlib
from typing import Any, Callable, Iterator, NamedTuple, Sequence

from jaxtyping import Float
import ml_collections
import numpy as np

from odin_jax.shared import camera, schema
from preprocessing import panorama
from preprocessing.keyframes import static_weights
from preprocessing.keyframes.keyframes import Observed, Progress
from preprocessing.solving import scene_scale, solver
from preprocessing.views import alignment
from preprocessing.writing import jpeg

# Panoramas that views are cut from; a large one takes 25 MB.
_OPEN_PANORAMAS = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class FramePair:
  """Two key frames to cut views of.

  Attributes:
    frames: the earlier and the later one.
    confidence: 0..1.
    hops: 1 = matched directly.
  """

  frames: tuple[int, int]
  confidence: float
  hops: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chosen:
  """A pair of views to cut."""

  source: int
  target: int
  views: alignment.ViewPair
  confidence: float
  hops: int

  @property
  def frames(self) -> tuple[int, int]:
    """The earlier and the later frame."""
    return min(self.source, self.target), max(self.source, self.target)


class _Directed(NamedTuple):
  """One direction of a frame pair."""

  pair: FramePair
  source: int
  target: int
  num_views: int


class Cutter:
  """Chooses and cuts the views of a solved video.

  Args:
    video_id: goes into the records, and seeds the choice of views.
    seen: the key frames.
    solution: their poses.
    config: see `configs/preprocess.py`.
    sees: whether the camera saw all that a view shows; None: it sees all.
  """

  def __init__(
    self,
    video_id: str,
    seen: Observed,
    solution: solver.Solution,
    config: ml_collections.ConfigDict,
    sees: alignment.Sees | None = None,
  ):
    self._video_id = video_id
    self._seen = seen
    self._solution = solution
    self._config = config
    self._sees = sees
    self._rules = alignment.ViewRules(
      num_views=config.views_per_pair, fov_deg=config.fov_deg, **config.views
    )

  def choose(
    self, frame_pairs: Sequence[FramePair]
  ) -> tuple[list[Chosen], list[dict[str, Any]]]:
    """View pairs of frame pairs, and ledger rows of those that are refused."""
    directed = [
      one
      for pair in sorted(frame_pairs, key=lambda pair: pair.frames)
      for one in self._directions(pair)
    ]
    choices = alignment.choose_all(
      (self._wanted(one) for one in directed),
      rules=self._rules,
      sees=self._sees,
    )
    chosen: list[Chosen] = []
    refused: dict[tuple[int, int], list[str]] = collections.defaultdict(list)
    for one, (views, reasons) in zip(directed, choices, strict=True):
      refused[one.pair.frames] += reasons
      chosen += [
        Chosen(
          source=one.source,
          target=one.target,
          views=view_pair,
          confidence=one.pair.confidence,
          hops=one.pair.hops,
        )
        for view_pair in views
      ]
    # A frame pair is lost only if all of its views are.
    kept = {item.frames for item in chosen}
    dropped = [
      {
        'stage': 'views',
        'reason': reason,
        'count': count,
        'frames': list(frames),
      }
      for frames, reasons in refused.items()
      if frames not in kept
      for reason, count in sorted(collections.Counter(reasons).items())
    ]
    return chosen, dropped

  def _directions(self, pair: FramePair) -> Iterator[_Directed]:
    """Both directions of a frame pair, with half of its views each."""
    earlier, later = pair.frames
    half = self._rules.num_views // 2
    for source, target, num_views in (
      (earlier, later, self._rules.num_views - half),
      (later, earlier, half),
    ):
      if num_views:
        yield _Directed(pair, source, target, num_views)

  def _wanted(self, one: _Directed) -> alignment.FramePair:
    source_frame2scene = self._solution.frame2scene[one.source]
    points = self._solution.points_of_pair(*one.pair.frames)
    return alignment.FramePair(
      source_frame2scene=source_frame2scene,
      target_frame2scene=self._solution.frame2scene[one.target],
      points=points,
      weights=scene_scale.direction_weights(points - source_frame2scene[:, 3]),
      num_views=one.num_views,
      rng=_generator(self._config.seed, self._video_id, one.source, one.target),
    )

  def units(self, chosen: Sequence[Chosen]) -> dict[int, float]:
    """Scene units per unit of the solution, by component.

    In scene units the median depth of a component's source views is one: the
    solution's own unit is the median distance over all directions, floor and
    ceiling too, while views look at what stands around.
    """
    depths = collections.defaultdict(list)
    for item in chosen:
      component = int(self._solution.component[item.source])
      depths[component].append(item.views.median_depth)
    return {
      component: float(1 / np.median(values))
      for component, values in depths.items()
    }

  def cut(
    self,
    chosen: Sequence[Chosen],
    *,
    splits: Sequence[str],
    matcher: str,
    progress: Progress,
  ) -> Iterator[schema.Record]:
    """Cuts the chosen views and makes records of them.

    Args:
      chosen: by their earlier frame, so that few pictures are open at a time.
      splits: of every frame.
      matcher: its name.
      progress: told of the share that is done.
    """
    units = self.units(chosen)
    panorama_of = functools.lru_cache(_OPEN_PANORAMAS)(
      lambda frame: panorama.Views(self._seen.pictures[frame])
    )
    for index, item in enumerate(chosen):
      progress('records', (index + 1) / len(chosen))
      scene_id = int(self._solution.component[item.source])
      unit = units[scene_id]
      yield {
        **self._side('source', item.source, item.views.source, panorama_of),
        **self._side('target', item.target, item.views.target, panorama_of),
        'source/frame2scene': self._pose(item.source, unit),
        'target/frame2scene': self._pose(item.target, unit),
        **self._static_weight(item),
        'target2source': camera.rescale(item.views.target2source, unit),
        'fov_deg': self._config.fov_deg,
        'video_id': self._video_id,
        'split': splits[item.source],
        'scene_id': scene_id,
        'median_depth': item.views.median_depth * unit,
        'overlap': item.views.overlap,
        'confidence': item.confidence,
        'hops': item.hops,
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
      f'{side}/time_s': self._seen.times_s[frame],
      f'{side}/yaw_deg': angles.yaw_deg,
      f'{side}/pitch_deg': angles.pitch_deg,
    }

  def _pose(self, frame: int, unit: float) -> Float[np.ndarray, '3 4']:
    return camera.rescale(self._solution.frame2scene[frame], unit)

  def _view(self, angles: alignment.Angles) -> dict[str, Any]:
    return {
      'yaw_deg': angles.yaw_deg,
      'pitch_deg': angles.pitch_deg,
      'fov_deg': self._config.fov_deg,
      'size_px': self._config.view_size_px,
    }

  def _static_weight(self, item: Chosen) -> dict[str, bytes]:
    if not self._seen.static_weights:
      return {}
    weight = static_weights.cut(
      self._seen.static_weights[item.target], **self._view(item.views.target)
    )
    return {'target/static_weight': static_weights.encode_png(weight)}


def _generator(seed: int, *names: object) -> np.random.Generator:
  """Randomness that depends on the seed and the names alone."""
  digest = hashlib.sha256('/'.join(map(str, names)).encode()).digest()
  return np.random.default_rng([seed, int.from_bytes(digest[:8], 'big')])
