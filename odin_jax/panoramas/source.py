"""Random access to pairs of views, cut of the panoramas of a record folder.

A pair is a function of the panorama's index and of what a generator draws:
which other panorama of its component, and which view of each. So with the
generators of `odin_jax.batches.examples` example i depends on (records, seed,
i) alone, and no epoch repeats the pairs of another.
"""

import hashlib
import os
from typing import Iterator, NamedTuple

import cv2
from jaxtyping import Bool, Float, Float32, Int
import numpy as np

from odin_jax.panoramas import choice, cutting
from odin_jax.shared import (
  camera,
  depth_png,
  equirect,
  errors,
  panorama_index,
  panorama_schema,
  png,
  posed_pair,
  record_folder,
  schema,
  tfrecord,
)

# Other panoramas that are tried for one, and how often another one takes its
# place: where nothing is masked and the path goes on, the first is taken.
_MAX_PARTNERS = 3
_MAX_ATTEMPTS = 20
# A view may be this many times as fine as its panorama, and is blurred then.
_MAX_ENLARGED = 2.0
# Distances of neighbouring cells are of one surface up to this ratio.
_ONE_SURFACE = 1.25
# Columns of a map of distances per column of a view's map of depth.
_MAP_PER_VIEW = 4


class _Frame(NamedTuple):
  """A panorama as it is used.

  Attributes:
    panorama: to cut views of.
    around: what is known of its surroundings.
    frame2scene: its pose, scene units.
  """

  panorama: cutting.Panorama
  around: choice.Surroundings
  frame2scene: Float[np.ndarray, '3 4']


class _Chosen(NamedTuple):
  """Two views, and the panoramas that they are cut of.

  Attributes:
    source: index of the source's panorama.
    target: index of the target's.
    source_frame: the source's panorama.
    target_frame: the target's.
    target2source: pose of the panoramas, scene units.
    views: of them.
  """

  source: int
  target: int
  source_frame: _Frame
  target_frame: _Frame
  target2source: Float[np.ndarray, '3 4']
  views: choice.ViewPair


class PanoramaSource:
  """Pairs of views of a folder of panoramas, at one image size.

  Args:
    path: a folder of panoramas.
    split: `train` or `test`.
    image_size_px: side of the images.
    rules: what pairs are drawn.
    cache: keep decoded panoramas in memory; 0.9 MB each at 768 x 384.
    depth: give the depth of both views, from the maps of distance; of their
      resolution, a quarter as wide.
    num_sources: views given of each target; those beside the pair's source, of
      further panoramas, are its `more`.
    depth_px: side of the maps of depth, in place of a quarter.
    times: give the times of the views.

  Attributes:
    depth_px: side of the maps of depth; None where nobody asks for them.

  Raises:
    errors.UserError: see `RecordFolder`; an index or a picture that cannot be
      read, or is of other records; panoramas too coarse for the image size.
  """

  def __init__(
    self,
    path: str | os.PathLike[str],
    split: str,
    *,
    image_size_px: int,
    rules: choice.Rules,
    cache: bool = False,
    depth: bool = False,
    num_sources: int = 1,
    depth_px: int | None = None,
    times: bool = False,
  ):
    self._has_times = times
    self._num_more = num_sources - 1
    self._records = record_folder.RecordFolder(
      path, split, panorama_schema.PANORAMAS
    )
    self._index = panorama_index.read(path, split)
    if len(self._index.time_s) != len(self._records):
      raise self._other_index()
    self._rules = rules
    self._size_px = image_size_px
    # Of the finest view.
    focal = camera.intrinsics(rules.min_fov_deg, image_size_px)[0, 0]
    self._view_px_per_rad = float(focal)
    self.depth_px = None
    if depth:
      self.depth_px = depth_px or self._map_width_px() // _MAP_PER_VIEW
    self._rows = _rows_by_component(self._index)
    self._cache: dict[int, _Frame] | None = {} if cache else None

  def _other_index(self) -> errors.UserError:
    return errors.UserError(
      f'{self._records.path}/{panorama_index.FILE}: is not of these records; '
      'copy or make the folder again'
    )

  def _map_width_px(self) -> int:
    height_px = png.check_header(
      self._records.first()['distance'],
      bits=16,
      aspect=panorama_schema.MAP_ASPECT,
    )
    return height_px * panorama_schema.MAP_ASPECT

  def __len__(self) -> int:
    return len(self._records)

  def has_more(self) -> bool:
    """Whether any component has a panorama beside those of a pair."""
    return any(len(rows) > 2 for rows in self._rows.values())

  def __getitem__(self, index: int) -> posed_pair.PosedPair:
    """A pair whose source is this panorama, the same each time."""
    return self.draw(index, np.random.default_rng(index))

  def draw(self, index: int, rng: np.random.Generator) -> posed_pair.PosedPair:
    """A pair whose source is this panorama, or another where it has none.

    Raises:
      errors.UserError: a panorama cannot be read, or no two views share enough
        anywhere.
    """
    chosen = self._choose(index, rng)
    pair = self._pair(chosen)
    if not self._num_more:
      return pair
    return pair._replace(more=self._more(chosen, rng))

  def _more(
    self, chosen: _Chosen, rng: np.random.Generator
  ) -> posed_pair.MoreViews:
    """Views of other panoramas of what the target shows; zeros for the rest."""
    target_view = chosen.views.target
    views, poses = [], []
    most = 2 * self._num_more + 1
    for partner in self._partners(chosen.target, rng, most=most):
      if len(views) == self._num_more:
        break
      if partner == chosen.source:
        continue
      frame = self._frame(partner)
      target2frame = camera.relative(
        frame.frame2scene, chosen.target_frame.frame2scene
      )
      view = choice.another(
        frame.around,
        chosen.target_frame.around,
        target2frame,
        target_view,
        self._rules,
        rng,
      )
      if view is not None:
        views.append((frame, view))
        poses.append(_view_pose(target2frame, view, target_view))
    return posed_pair.more_views(
      images=[frame.panorama.cut(view, self._size_px) for frame, view in views],
      target2view=poses,
      fov_deg=[view.fov_deg for _, view in views],
      depths=[self._depth(frame.around, view) for frame, view in views],
      count=self._num_more,
      image_px=self._size_px,
      depth_px=self.depth_px,
    )

  def _choose(self, index: int, rng: np.random.Generator) -> _Chosen:
    for _ in range(_MAX_ATTEMPTS):
      if rng.random() < self._rules.single_share:
        chosen = self._single(index, rng)
      else:
        chosen = self._between(index, rng)
      if chosen is not None:
        return chosen
      index = int(rng.integers(len(self)))
    raise errors.UserError(
      f'{self._records.path}: {_MAX_ATTEMPTS} panoramas have no two views that '
      'share enough; lower config.panoramas.min_overlap or min_coverage, or '
      'raise max_gap_s, single_share or max_masked_share'
    )

  def _single(self, index: int, rng: np.random.Generator) -> _Chosen | None:
    frame = self._frame(index)
    views = choice.single(frame.around, self._rules, rng)
    if views is None:
      return None
    # Not what rounding leaves of the pose and its inverse.
    pose = camera.identity_pose()
    return _Chosen(index, index, frame, frame, pose, views)

  def _between(self, index: int, rng: np.random.Generator) -> _Chosen | None:
    source = self._frame(index)
    for partner in self._partners(index, rng, most=_MAX_PARTNERS):
      target = self._frame(partner)
      pose = camera.relative(source.frame2scene, target.frame2scene)
      views = choice.between(
        source.around, target.around, pose, self._rules, rng
      )
      if views is not None:
        return _Chosen(index, partner, source, target, pose, views)
    return None

  def _partners(
    self, index: int, rng: np.random.Generator, *, most: int
  ) -> Iterator[int]:
    """Panoramas of the same component, near in time or, now and then, far."""
    rows = self._rows[self._index.video[index], self._index.scene_id[index]]
    apart_s = np.abs(self._index.time_s[rows] - self._index.time_s[index])
    places = self._index.frame2scene[:, :, 3]
    baseline = np.linalg.norm(places[rows] - places[index], axis=1)
    is_near = apart_s <= self._rules.max_gap_s
    near = rows[is_near & (rows != index)]
    far = rows[~is_near & (baseline <= self._rules.max_baseline)]
    pool = far if rng.random() < self._rules.far_share and len(far) else near
    return iter(rng.permutation(pool)[:most].tolist())

  def _pair(self, chosen: _Chosen) -> posed_pair.PosedPair:
    views, source, target = (
      chosen.views,
      chosen.source_frame,
      chosen.target_frame,
    )
    pose = _view_pose(chosen.target2source, views.source, views.target)
    return posed_pair.PosedPair(
      source=source.panorama.cut(views.source, self._size_px),
      target=target.panorama.cut(views.target, self._size_px),
      target2source=pose.astype(np.float32),
      fov_deg=np.float32(views.source.fov_deg),
      median_depth=np.float32(source.around.median_depth(views.source)),
      target_median_depth=np.float32(target.around.median_depth(views.target)),
      source_depth=self._depth(source.around, views.source),
      target_depth=self._depth(target.around, views.target),
      times_s=self._index.time_s[[chosen.source, chosen.target]]
      if self._has_times
      else None,
    )

  def _depth(
    self, around: choice.Surroundings, view: cutting.View
  ) -> Float32[np.ndarray, 'd d'] | None:
    if self.depth_px is None:
      return None
    rays = view.rays(self.depth_px)
    distance = interpolated(around.distance, rays)
    # Rays are 1 long along the optical axis.
    return distance / np.linalg.norm(rays, axis=-1)

  def _frame(self, index: int) -> _Frame:
    if self._cache is None:
      return self._read(index)
    if index not in self._cache:
      self._cache[index] = self._read(index)
    return self._cache[index]

  def _read(self, index: int) -> _Frame:
    record = self._records[index]
    if not self._index.is_of(index, record):
      raise self._other_index()
    self._check_size(record)
    width_px, height_px = record['width_px'], record['height_px']
    divisor = cutting.reduction(width_px, height_px, self._view_px_per_rad)
    try:
      panorama = cutting.decode(record['image'], width_px, height_px, divisor)
      distance = depth_png.decode(
        record['distance'], aspect=panorama_schema.MAP_ASPECT
      )
      masked = _decode_mask(record['mask'])
    except ValueError as error:
      raise tfrecord.CorruptRecordError(
        f'{self.place(index)} of {record["video_id"]}: {error}; make the records '
        'again'
      ) from error
    return _Frame(
      panorama,
      choice.Surroundings.of(distance, masked),
      record['frame2scene'].astype(np.float64),
    )

  def _check_size(self, record: schema.Record) -> None:
    px_per_rad = record['width_px'] / (2 * np.pi)
    if self._view_px_per_rad > _MAX_ENLARGED * px_per_rad:
      raise errors.UserError(
        f'{self._records.path}: the panoramas of {record["video_id"]} have '
        f'{record["width_px"]} px, too few for views of {self._size_px} px; '
        'lower the image size, or raise config.panoramas.min_fov_deg'
      )

  def place(self, index: int) -> str:
    """Where a panorama is, for people."""
    shard, position = self._records.place(index)
    return f'{shard}: {self._records.split} panorama {position}'

  def fingerprint(self) -> str:
    """Digest of the number and the poses of all panoramas."""
    digest = hashlib.sha256(str(len(self)).encode())
    digest.update(self._index.frame2scene.tobytes())
    return digest.hexdigest()[:16]


def _view_pose(
  target2source: Float[np.ndarray, '3 4'],
  source: cutting.View,
  target: cutting.View,
) -> Float[np.ndarray, '3 4']:
  """`target2source` of two views, from that of their panoramas."""
  source_view2frame, target_view2frame = (
    camera.make_pose(view.view2frame, np.zeros(3)) for view in (source, target)
  )
  return camera.relative(
    source_view2frame, camera.compose(target2source, target_view2frame)
  )


def _decode_mask(data: bytes) -> Bool[np.ndarray, 'h w']:
  png.check(data, bits=8, aspect=panorama_schema.MAP_ASPECT)
  mask = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
  if mask is None:
    raise ValueError('mask: a damaged PNG')
  return mask > 127


def _rows_by_component(
  index: panorama_index.Index,
) -> dict[tuple[int, int], Int[np.ndarray, 'n']]:
  """The panoramas of each component, by video and `scene_id`."""
  keys = np.stack([index.video, index.scene_id], axis=1)
  order = np.lexsort(keys.T[::-1])
  starts = np.flatnonzero(np.any(np.diff(keys[order], axis=0), axis=1)) + 1
  return {
    tuple(keys[rows[0]].tolist()): np.sort(rows)
    for rows in np.split(order, starts)
  }


def interpolated(
  distance: Float32[np.ndarray, 'h w'], rays: Float32[np.ndarray, '*b 3']
) -> Float32[np.ndarray, '*b']:
  """Distances along rays, from an equirectangular map of them.

  Between four cells of one surface 1 / distance is interpolated, which on a
  plane is nearly linear; elsewhere the nearest cell holds, or 0, where it is
  not known.

  Args:
    distance: the map; 0 where not known.
    rays: of any length.
  """
  height, width = distance.shape
  padded = equirect.pad(distance, 1)
  u, v = camera.direction_to_equirect(rays, width, height)
  # Of cell centres in the padded map.
  u, v = u + 0.5, v + 0.5
  column, row = u.astype(int), v.astype(int)
  cells = np.stack(
    [padded[row + i, column + j] for i in (0, 1) for j in (0, 1)]
  )
  across, down = u - column, v - row
  shares = np.stack(
    [
      (down if i else 1 - down) * (across if j else 1 - across)
      for i in (0, 1)
      for j in (0, 1)
    ]
  )
  is_one = (cells > 0).all(0) & (cells.max(0) <= _ONE_SURFACE * cells.min(0))
  inverse = np.sum(shares / np.where(cells > 0, cells, 1), axis=0)
  nearest = np.take_along_axis(cells, shares.argmax(0)[None], 0)[0]
  return np.where(is_one, 1 / inverse, nearest).astype(np.float32)
