"""The posed pair: one shape for all that happens to it after preprocessing.

Batches of training, benchmarks and predictors hold it, with or without a
leading batch axis. JAX takes it for a tree of arrays.
"""

from typing import Any, Callable, NamedTuple, Sequence

from jaxtyping import Shaped
import numpy as np

from odin_jax.shared import camera

# Of NumPy or JAX.
Array = Any
# Side of the maps of depth of records that have none.
EMPTY_DEPTH_PX = 32


class MoreViews(NamedTuple):
  """Views that are given beside the source, v of them; or a batch of such.

  Attributes:
    image: [*b v s s 3] uint8 sRGB.
    target2view: [*b v 3 4], as `PosedPair.target2source`.
    fov_deg: [*b v], full field of view.
    is_there: [*b v]; the rest of those that are not means nothing.
    depth: [*b v d d], as `PosedPair.source_depth`.
  """

  image: Array
  target2view: Array
  fov_deg: Array
  is_there: Array
  depth: Array | None = None


class Encoded(NamedTuple):
  """What frozen encoders make of a view, in the type that they compute in.

  Attributes:
    moments: [*b n n 2c], mean and log variance of its latent, unscaled.
    embedding: [*b d], of its image encoder; None where there is none.
    mirrored: of the mirrored view, where examples may be mirrored.
  """

  moments: Array
  embedding: Array | None = None
  mirrored: 'Encoded | None' = None


class PosedPair(NamedTuple):
  """Two square views and the pose between them, or a batch of such.

  Attributes:
    source: [*b s s 3] uint8 sRGB, the view that is given; None where it is
      `source_encoded`.
    target: [*b s s 3] uint8 sRGB, the view that is to be predicted; None where
      it is not known or nobody's business.
    target2source: [*b 3 4], `x_source = R @ x_target + t`, scene units.
    fov_deg: [*b], full field of view of both views.
    median_depth: [*b], of the source view, scene units; 0 where not known; see
      `odin_jax.shared.median_depth`.
    source_depth: [*b d d] float32, along the optical axis at pixel centres,
      scene units, 0 where not known; None where nobody asks for it.
    target_depth: likewise.
    more: what else shows the scene; None where nobody asks for it.
    source_encoded: of the source, in place of the image; None: not encoded.
    target_encoded: likewise.
    times_s: [*b 2] float32, of source and target in their video, seconds; None
      where nobody asks for them, or they are not known.
    target_median_depth: as `median_depth`, of the target view; None where
      nobody asks for it, such as in a batch.
  """

  source: Array | None
  target: Array | None
  target2source: Array
  fov_deg: Array
  median_depth: Array
  source_depth: Array | None = None
  target_depth: Array | None = None
  more: MoreViews | None = None
  source_encoded: Encoded | None = None
  target_encoded: Encoded | None = None
  times_s: Array | None = None
  target_median_depth: Array | None = None


def more_views(
  *,
  images: Sequence[Array],
  target2view: Sequence[Array],
  fov_deg: Sequence[float],
  depths: Sequence[Array | None],
  count: int,
  image_px: int,
  depth_px: int | None,
) -> MoreViews:
  """`count` views, of which the first ones are there.

  Args:
    images: of those that are there, `image_px` square.
    target2view: of them.
    fov_deg: of them.
    depths: of them, `depth_px` square.
    count: how many in all; those that are not there are zeros, with a pose and
      a field of view that are harmless.
    image_px: side of the images.
    depth_px: side of the maps of depth; None where nobody asks for them.
  """
  there = len(images)
  image = np.zeros((count, image_px, image_px, 3), np.uint8)
  poses = np.tile(np.eye(3, 4, dtype=np.float32), (count, 1, 1))
  fovs = np.full(count, 90.0, np.float32)
  depth = None
  if depth_px is not None:
    depth = np.zeros((count, depth_px, depth_px), np.float32)
  for row in range(there):
    image[row], poses[row] = images[row], target2view[row]
    fovs[row] = fov_deg[row]
    if depth is not None:
      depth[row] = depths[row]
  return MoreViews(image, poses, fovs, np.arange(count) < there, depth)


def _combine(function: Callable[..., Any], *parts: Any) -> Any:
  """A function of the arrays, part by part; None where the first has None."""
  if parts[0] is None:
    return None
  if isinstance(parts[0], (PosedPair, MoreViews, Encoded)):
    values = (_combine(function, *x) for x in zip(*parts, strict=True))
    return type(parts[0])(*values)
  return function(*parts)


def aimed(pairs: PosedPair, target2source: Array) -> PosedPair:
  """Pairs without targets, whose cameras are asked to be somewhere else.

  All views that are given stay where they are to each other.

  Args:
    pairs: one, or a batch.
    target2source: [*b 3 4], in place of theirs.
  """
  more = pairs.more
  if more is not None:
    new2old = camera.compose(camera.inverse(pairs.target2source), target2source)
    more = moved(more, new2old)
  return pairs._replace(target=None, target2source=target2source, more=more)


def moved(more: MoreViews, new2old: Array) -> MoreViews:
  """The views of a target that was moved, by the pose [*b 3 4] of the new one."""
  new2old = np.broadcast_to(new2old[..., None, :, :], more.target2view.shape)
  return more._replace(target2view=camera.compose(more.target2view, new2old))


def rescaled(pairs: PosedPair, factor: float) -> PosedPair:
  """Pairs in units of which there are `factor` to one before, but for depths."""
  more = pairs.more and pairs.more._replace(
    target2view=camera.rescale(pairs.more.target2view, factor)
  )
  pose = camera.rescale(pairs.target2source, factor)
  return pairs._replace(target2source=pose, more=more)


def alike(pairs: Sequence[PosedPair]) -> list[PosedPair]:
  """The pairs with as many views beside their source each, some not there."""
  counts = [len(pair.more.is_there) if pair.more else 0 for pair in pairs]
  most = max(counts)
  first = next((pair.more for pair in pairs if pair.more), None)

  def padded(pair: PosedPair, count: int) -> PosedPair:
    if count == most:
      return pair
    # What is not there means nothing; numbers that are poses harm nobody.
    filling = _combine(lambda x: np.repeat(x[:1], most - count, axis=0), first)
    filling = filling._replace(is_there=np.zeros(most - count, bool))
    if pair.more is None:
      return pair._replace(more=filling)
    both = _combine(lambda *x: np.concatenate(x), pair.more, filling)
    return pair._replace(more=both)

  return [padded(*row) for row in zip(pairs, counts, strict=True)]


def stack(pairs: Sequence[PosedPair]) -> PosedPair:
  """A batch of pairs; what one of them lacks, all of them lack."""
  return _combine(lambda *values: np.stack(values), *pairs)


def empty(
  pair: PosedPair,
  count: int,
  make: Callable[[tuple[int, ...], np.dtype], np.ndarray] = np.empty,
) -> PosedPair:
  """A batch for `count` pairs like this one, to `put` them into.

  Args:
    pair: one of them.
    count: of pairs.
    make: makes an array of a shape and a type.
  """
  return _combine(
    lambda x: make((count, *np.shape(x)), np.asarray(x).dtype), pair
  )


def put(
  batch: PosedPair | MoreViews | Encoded,
  row: int,
  pair: PosedPair | MoreViews | Encoded,
  copy: Callable[[np.ndarray, np.ndarray], None],
) -> None:
  """Writes a pair into a row of a batch, which has what the pair has.

  Args:
    batch: from `empty`.
    row: of the batch.
    pair: of the same shapes and types.
    copy: writes its second argument into its first.

  Raises:
    ValueError: the pair's arrays are of other shapes or types.
  """
  for values, value in zip(batch, pair, strict=True):
    if values is None:
      continue
    if isinstance(values, tuple):
      put(values, row, value, copy)
      continue
    own, value = values[row, ...], np.asarray(value)
    if own.shape != value.shape or own.dtype != value.dtype:
      raise ValueError(
        f'a pair has {value.dtype}{value.shape}, others have '
        f'{own.dtype}{own.shape}'
      )
    copy(own, value)


def select(
  pairs: PosedPair, rows: slice | Shaped[np.ndarray, 'n']
) -> PosedPair:
  """Some pairs of a batch, as a batch."""
  return _combine(lambda values: values[rows], pairs)


def as_float32(pairs: PosedPair | MoreViews) -> PosedPair | MoreViews:
  """Poses and figures as networks take them; images stay as they are."""

  def convert(values: Array) -> Array:
    wide = values.dtype == np.float64
    return values.astype(np.float32) if wide else values

  return _combine(convert, pairs)
