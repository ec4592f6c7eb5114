"""Records of a procedural world with its true poses, straight from the caster.

Frame pairs, views and gauge are those of the pipeline for videos; only the
poses and the scene points are known rather than found.
"""

import collections
import dataclasses
import pathlib
from typing import Any, Iterator, NamedTuple, Sequence

from jaxtyping import Bool, Float, Int
import numpy as np

from odin_jax.shared import (
  camera,
  depth_png,
  errors,
  files,
  panorama_schema,
  schema,
  world_names,
)
from preprocessing.procedural import (
  footage,
  raycaster,
  rendering,
  scenes,
  true_depth,
  true_panoramas,
)
from preprocessing.running import pool
from preprocessing.views import alignment
from preprocessing.writing import jpeg, parts, rejections, splits

_GRID_HEIGHT_PX, _GRID_WIDTH_PX = 48, 96
# A point is seen by another frame if it lies at the distance seen there.
_SAME_DISTANCE = 0.05
_MAX_ROUNDS = 20
# Side of the views whose `median_depth` is found.
_MEDIAN_PX = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairRules:
  """What records are made of a world.

  Attributes:
    num_records: how many.
    seconds: length of the walk; one frame per second.
    max_gap_s: largest time between the frames of a pair.
    size_px: of the views.
    views: how views are chosen.
    split_by: see `splits.Settings`.
    test_fraction: see `splits.Settings`.
    movers: see `scenes.build_world`.
    depth_px: side of the maps of true depth; 0: records have none.
    panorama_px: width of the panoramas that are kept, too; 0: none.
    max_fov_deg: every frame pair draws a field of view from that of `views` to
      this one; None: all have that of `views`.
  """

  num_records: int
  seconds: float
  max_gap_s: int
  size_px: int
  views: alignment.ViewRules
  split_by: str
  test_fraction: float
  movers: int | None = None
  depth_px: int = 0
  panorama_px: int = 0
  max_fov_deg: float | None = None

  def with_drawn_fov(self, rng: np.random.Generator) -> 'PairRules':
    """The same for views of one field of view, drawn where a range is given."""
    if self.max_fov_deg is None:
      return self
    fov_deg = rng.uniform(self.views.fov_deg, self.max_fov_deg)
    views = dataclasses.replace(self.views, fov_deg=float(fov_deg))
    return dataclasses.replace(self, views=views)


@dataclasses.dataclass(frozen=True)
class FrameGeometry:
  """What one panorama sees of the static scene, on a coarse grid, metres.

  Attributes:
    time_s: when.
    frame2world: its pose.
    distance: of what is seen on the grid, moving or not.
    points: the static points on the grid, in the world.
    weights: solid angles that they stand for, up to a factor.
    point_distance: of the points.
  """

  time_s: float
  frame2world: Float[np.ndarray, '3 4']
  distance: Float[np.ndarray, 'h w']
  points: Float[np.ndarray, 'n 3']
  weights: Float[np.ndarray, 'n']
  point_distance: Float[np.ndarray, 'n']


def observe(world: scenes.World, time_s: float) -> FrameGeometry:
  """What the walk's panorama sees at a time."""
  frame2world = world.walk.frame2world(time_s)
  rays = raycaster.panorama_rays(_GRID_WIDTH_PX, _GRID_HEIGHT_PX)
  turned = raycaster.rotate(frame2world[:, :3], rays)
  hits = world.scene.cast(frame2world[:, 3], turned, time_s)
  static = ~(world.scene.surface_moves | world.scene.surface_is_backdrop)[
    hits.surface
  ]
  distance = hits.distance.astype(np.float64)
  area = np.hypot(rays[..., 0], rays[..., 2]).astype(np.float64)
  return FrameGeometry(
    time_s=time_s,
    frame2world=frame2world,
    distance=distance,
    points=turned[static] * distance[static][:, None] + frame2world[:, 3],
    weights=area[static],
    point_distance=distance[static],
  )


def _is_visible(
  frame: FrameGeometry, points: Float[np.ndarray, 'n 3']
) -> Bool[np.ndarray, 'n']:
  """Which points of the world lie at the distance that a frame sees there."""
  local = camera.transform(camera.inverse(frame.frame2world), points)
  u, v = camera.direction_to_equirect(local, _GRID_WIDTH_PX, _GRID_HEIGHT_PX)
  column = u.astype(int) % _GRID_WIDTH_PX
  row = np.minimum(v.astype(int), _GRID_HEIGHT_PX - 1)
  seen_there = frame.distance[row, column]
  away = np.linalg.norm(local, axis=1)
  return np.abs(away - seen_there) < _SAME_DISTANCE * seen_there


def shared_points(
  first: FrameGeometry, second: FrameGeometry
) -> tuple[Float[np.ndarray, 'n 3'], Float[np.ndarray, 'n']]:
  """Points that both frames see, and their weights."""
  in_second = _is_visible(second, first.points)
  in_first = _is_visible(first, second.points)
  return (
    np.concatenate([first.points[in_second], second.points[in_first]]),
    np.concatenate([first.weights[in_second], second.weights[in_first]]),
  )


def gauge_m(frames: Sequence[FrameGeometry]) -> float:
  """Metres per scene unit: the median distance of static points."""
  median = np.quantile(
    np.concatenate([frame.point_distance for frame in frames]),
    0.5,
    weights=np.concatenate([frame.weights for frame in frames]),
    method='inverted_cdf',
  )
  return float(median)


def _frame_pairs(
  split_of: Sequence[str], max_gap_s: int
) -> tuple[Int[np.ndarray, 'n 2'], dict[str, int], int]:
  """Frame pairs within one split; candidates per gap; how many straddle."""
  count = len(split_of)
  candidates = {
    str(gap): max(count - gap, 0) for gap in range(1, max_gap_s + 1)
  }
  pairs = [
    (first, second)
    for first in range(count)
    for second in range(first + 1, min(first + max_gap_s, count - 1) + 1)
  ]
  inside = [
    (first, second)
    for first, second in pairs
    if split_of[first] == split_of[second]
  ]
  return (
    np.array(inside, int).reshape(-1, 2),
    candidates,
    len(pairs) - len(inside),
  )


class Made(NamedTuple):
  """What is made of one world.

  Attributes:
    records: `rules.num_records` of them, unless the walk holds fewer views that
      overlap.
    summary: for the manifest.
    dropped: rows for the ledger.
    panoramas: records of the frames, where they are kept.
  """

  records: list[schema.Record]
  summary: dict[str, Any]
  dropped: list[dict[str, Any]]
  panoramas: Iterator[schema.Record]


def make_records(
  world: scenes.World, video_id: str, rules: PairRules, *, seed: int
) -> Made:
  """Records of one world."""
  rng = np.random.default_rng([seed, 1])
  frames = [observe(world, float(t)) for t in range(int(rules.seconds) + 1)]
  split_of = splits.split_frames(
    video_id,
    len(frames),
    splits.Settings(split_by=rules.split_by, test_fraction=rules.test_fraction),
  )
  pairs, candidates, num_straddling = _frame_pairs(split_of, rules.max_gap_s)
  unit_m = gauge_m(frames)
  records: list[schema.Record] = []
  gaps: dict[tuple[int, int], str] = {}
  reasons: collections.Counter[rejections.Reason] = collections.Counter()
  for source, target in _rounds(pairs, rng):
    if len(records) >= rules.num_records:
      break
    ends = frames[source], frames[target]
    of_pair = rules.with_drawn_fov(rng)
    choice = _choose(*ends, unit_m, of_pair, rng)
    reasons.update(choice.reasons)
    for view_pair in choice.view_pairs[: rules.num_records - len(records)]:
      depths = _median_depths(world, ends, view_pair, unit_m, of_pair)
      if not all(depths.values()):
        reasons[rejections.Reason.LITTLE_OVERLAP] += 1
        continue
      records.append(
        {
          **_record(world, ends, view_pair, unit_m, of_pair),
          **depths,
          'video_id': video_id,
          'split': split_of[source],
        }
      )
      first, second = sorted((source, target))
      gaps[first, second] = str(second - first)
  unit_m /= _set_units(records)
  if rules.depth_px:
    for record in records:
      record.update(_depth(world, record, unit_m, rules.depth_px))
  kept = collections.Counter(gaps.values())
  summary = {
    'frames': len(frames),
    'components': 1,
    'frame_pairs': {
      'candidates': candidates,
      'kept': {gap: kept[gap] for gap in candidates},
    },
    'masked_share': 0.0,
    'matcher_calls': 0,
  }
  if num_straddling:
    reasons[rejections.Reason.SPLITS] = num_straddling
  rejected = rejections.counted(rejections.Stage.PAIRS, reasons)
  panoramas = true_panoramas.of_world(
    world,
    video_id,
    times_s=[frame.time_s for frame in frames],
    splits=split_of,
    unit_m=unit_m,
    width_px=rules.panorama_px,
    map_width_px=4 * rules.depth_px or _GRID_WIDTH_PX,
  )
  return Made(
    records,
    summary,
    [rejection.row() for rejection in rejected],
    panoramas if rules.panorama_px and records else iter(()),
  )


def _rounds(
  pairs: Int[np.ndarray, 'n 2'], rng: np.random.Generator
) -> Iterator[tuple[int, int]]:
  """All frame pairs in random order and direction, again and again."""
  for _ in range(_MAX_ROUNDS):
    for index in rng.permutation(len(pairs)):
      first, second = pairs[index].tolist()
      if rng.uniform() < 0.5:
        yield second, first
      else:
        yield first, second


def _choose(
  source: FrameGeometry,
  target: FrameGeometry,
  unit_m: float,
  rules: PairRules,
  rng: np.random.Generator,
) -> alignment.Choice:
  points, weights = shared_points(source, target)
  return alignment.choose_view_pairs(
    _in_units(source.frame2world, unit_m),
    _in_units(target.frame2world, unit_m),
    points / unit_m,
    weights,
    rules=rules.views,
    rng=rng,
  )


def _in_units(
  frame2world: Float[np.ndarray, '3 4'], unit_m: float
) -> Float[np.ndarray, '3 4']:
  return camera.make_pose(frame2world[:, :3], frame2world[:, 3] / unit_m)


def _record(
  world: scenes.World,
  ends: tuple[FrameGeometry, FrameGeometry],
  view_pair: alignment.ViewPair,
  unit_m: float,
  rules: PairRules,
) -> schema.Record:
  record: schema.Record = {
    'target2source': view_pair.target2source,
    'fov_deg': rules.views.fov_deg,
    'scene_id': 0,
    'overlap': view_pair.overlap,
    'confidence': 1.0,
    'hops': 1,
    'rotation_error_deg': 0.0,
    'direction_error_deg': 0.0,
    'matcher': 'procedural',
  }
  sides = zip(('source', 'target'), ends, (view_pair.source, view_pair.target))
  for side, frame, angles in sides:
    image = rendering.render_view(
      world,
      frame.time_s,
      angles,
      fov_deg=rules.views.fov_deg,
      size_px=rules.size_px,
    )
    record[f'{side}/image'] = jpeg.encode(image)
    record[f'{side}/time_s'] = frame.time_s
    record[f'{side}/yaw_deg'] = angles.yaw_deg
    record[f'{side}/pitch_deg'] = angles.pitch_deg
    record[f'{side}/unmasked_share'] = 1.0
    record[f'{side}/frame2scene'] = _in_units(frame.frame2world, unit_m)
  return record


def _median_depths(
  world: scenes.World,
  ends: tuple[FrameGeometry, FrameGeometry],
  view_pair: alignment.ViewPair,
  unit_m: float,
  rules: PairRules,
) -> dict[str, float]:
  """Those of both views; 0 of one that shows nothing that stands still."""
  angles_of = view_pair.source, view_pair.target
  return {
    name: true_depth.median_distance_m(
      world,
      frame.time_s,
      frame.frame2world,
      rendering.unit_rays(angles, rules.views.fov_deg, _MEDIAN_PX),
    )
    / unit_m
    for name, frame, angles in zip(
      schema.MEDIAN_DEPTHS, ends, angles_of, strict=True
    )
  }


def _set_units(records: list[schema.Record]) -> float:
  """Makes the median depth of the source views one, as `cutting` does.

  Returns:
    scene units per unit before.
  """
  depths = [record['median_depth'] for record in records]
  units = float(1 / np.median(depths or [1.0]))
  for record in records:
    for name in schema.MEDIAN_DEPTHS:
      record[name] *= units
    for name in ('target2source', 'source/frame2scene', 'target/frame2scene'):
      record[name] = camera.rescale(record[name], units)
  return units


def _depth(
  world: scenes.World, record: schema.Record, unit_m: float, size_px: int
) -> dict[str, bytes]:
  """True depth of both views of a record; not known where there is none."""
  depths = true_depth.depths(world, record, unit_m, size_px)
  return {
    'source/depth': depth_png.encode(depths.source_depth),
    'target/depth': depth_png.encode(depths.target_depth),
  }


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairsJob:
  """One world to make records of.

  Attributes:
    output: folder of the records.
    kinds: kinds of worlds, which take turns.
    index: number of the world.
    seed: of all worlds.
    rules: what records are made.
    fingerprint: digest of all that the records depend on.
  """

  output: pathlib.Path
  kinds: tuple[str, ...]
  index: int
  seed: int
  rules: PairRules
  fingerprint: str

  @property
  def name(self) -> str:
    """The world's `video_id`."""
    kind = self.kinds[self.index % len(self.kinds)]
    return world_names.name(self.seed, self.index, kind)

  def build_world(self) -> scenes.World:
    """The world, the same whenever it is built."""
    # Of the narrowest views, which show the finest detail.
    size_px = self.rules.size_px * rendering.supersampling(self.rules.size_px)
    focal_px = camera.intrinsics(self.rules.views.fov_deg, size_px)[0, 0]
    return footage.make_world(
      self.kinds,
      self.index,
      seed=self.seed,
      seconds=self.rules.seconds,
      px_per_rad=float(focal_px),
      movers=self.rules.movers,
    )


def rebuild_world(folder: pathlib.Path, video_id: str) -> scenes.World:
  """The world of records that `preprocessing.worlds --pairs` made.

  Args:
    folder: of the records.
    video_id: of one of them.

  Raises:
    errors.UserError: the folder was not made so, or has no such world.
  """
  path = folder / world_names.NOTE
  note = files.read_json(path, 'how worlds were made', ('settings',))
  try:
    settings = dict(note['settings'])
    seed, kinds = settings.pop('seed'), tuple(settings.pop('kinds'))
    views = alignment.ViewRules(**settings.pop('views'))
    job = PairsJob(
      output=folder,
      kinds=kinds,
      index=int(video_id.split('_')[1]),
      seed=seed,
      rules=PairRules(views=views, **settings),
      fingerprint='',
    )
  except (KeyError, TypeError, ValueError, IndexError) as error:
    raise errors.UserError(
      f'{path}: does not tell how {video_id} was made; make the records again '
      'with preprocessing.worlds --pairs'
    ) from error
  if job.name != video_id:
    raise errors.UserError(f'{path}: is not of {video_id}, but of other worlds')
  return job.build_world()


def make_part(job: PairsJob) -> str:
  """Writes the records of one world, unless they are there already.

  Returns:
    the world's `video_id`.
  """
  pool.step()
  folders = [job.output]
  panoramas = job.output / panorama_schema.FOLDER
  if job.rules.panorama_px:
    folders.append(panoramas)
  if all(parts.is_done(at, job.name, job.fingerprint) for at in folders):
    return job.name
  world = job.build_world()
  made = make_records(
    world, job.name, job.rules, seed=job.seed * 1_000_003 + job.index
  )
  if job.rules.panorama_px:
    parts.write(
      panoramas,
      job.name,
      records=made.panoramas,
      summary={'kind': world.kind},
      dropped=[],
      fingerprint=job.fingerprint,
      schema_of=panorama_schema.PANORAMAS,
    )
  parts.write(
    job.output,
    job.name,
    records=made.records,
    summary={'kind': world.kind, **made.summary},
    dropped=made.dropped,
    fingerprint=job.fingerprint,
  )
  return job.name
