"""Records -> batches, addressed by the global number of an example.

Example i of the run is a function of (records, seed, i) alone: the records in
an order that is reshuffled every epoch, each with its own random augmentation;
of panoramas (`odin_jax.panoramas`) each with views of its own, too.
Batch k holds the examples k * batch_size ... (k + 1) * batch_size - 1, of
which every host reads the rows that its devices hold. So the step is the whole state of the
input: a resume is exact, on any number of hosts.
"""

from concurrent import futures
import hashlib
import os
from typing import Iterator, Protocol, runtime_checkable

import cv2
from jaxtyping import Float32, Int, UInt8
import numpy as np

from odin_jax.shared import (
  camera,
  depth_png,
  errors,
  image_files,
  more_views,
  posed_pair,
  record_folder,
  schema,
)


def _stored_px(record: schema.Record) -> int:
  """Side of a record's images; 1, which no decoder reduces, if unreadable."""
  encoded = np.frombuffer(record['source/image'], np.uint8)
  image = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
  return 1 if image is None else image.shape[0]


def _depth_px(records: record_folder.RecordFolder) -> int:
  """Side of the first map of depth; a folder without any is read to its end."""
  for record in records:
    for name in ('source/depth', 'target/depth'):
      if name in record:
        return depth_png.side_px(record[name])
  return posed_pair.EMPTY_DEPTH_PX


class PairSource:
  """Random access to the posed pairs of a record folder, at one image size.

  Args:
    path: a folder of records.
    split: `train` or `test`.
    image_size_px: side of the images.
    cache: keep decoded pairs in memory; 6 KiB each at 32 px, and 32 KiB more
      with depth at 64 px.
    depth: read the depth of the views; maps of zeros, which say that nothing
      is known, where records have none. All maps have the side of the first.
    num_sources: views given of each scene; those beside the pair's source are
      its `more`.

  Raises:
    errors.UserError: see `RecordFolder`; an image or a map of depth that cannot
      be decoded; maps of several sides.
  """

  def __init__(
    self,
    path: str | os.PathLike[str],
    split: str,
    *,
    image_size_px: int,
    cache: bool = False,
    depth: bool = False,
    num_sources: int = 1,
  ):
    self._records = record_folder.RecordFolder(path, split)
    self._size_px = image_size_px
    self._stored_px = _stored_px(self._records[0])
    self._depth_px = _depth_px(self._records) if depth else None
    self._num_more = num_sources - 1
    self._neighbours = (
      more_views.Neighbours(self._records) if self._num_more else None
    )
    self._cache: dict[int, posed_pair.PosedPair] | None = {} if cache else None

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> posed_pair.PosedPair:
    if self._cache is None:
      return self._read(index)
    if index not in self._cache:
      self._cache[index] = self._read(index)
    return self._cache[index]

  def draw(self, index: int, rng: np.random.Generator) -> posed_pair.PosedPair:
    """The pair of the record itself: nothing is drawn."""
    del rng
    return self[index]

  def _read(self, index: int) -> posed_pair.PosedPair:
    record = self._records[index]
    try:
      source, target = (self._view(record, side) for side in more_views.SIDES)
      more = self._more(index)
    except image_files.TooSmallError as error:
      raise errors.UserError(
        f'{self._records.path}: its views have {error.side_px} px, less than '
        f'the {self._size_px} px asked for; lower the image size'
      ) from error
    except ValueError as error:
      raise errors.UserError(
        f'{self._records.path}: {self._records.split} record {index} of '
        f'{record["video_id"]}: {error}; make the records again'
      ) from error
    return posed_pair.PosedPair(
      source=source[0],
      target=target[0],
      target2source=record['target2source'],
      fov_deg=np.float32(record['fov_deg']),
      median_depth=np.float32(record['median_depth']),
      source_depth=source[1],
      target_depth=target[1],
      more=more,
    )

  def _view(
    self, record: schema.Record, side: str
  ) -> tuple[UInt8[np.ndarray, 's s 3'], Float32[np.ndarray, 'd d'] | None]:
    image = self._image(record[f'{side}/image'])
    if self._depth_px is None:
      return image, None
    return image, self._depth(record, f'{side}/depth')

  def _more(self, index: int) -> posed_pair.MoreViews | None:
    """Views beside the source; zeros where there are not so many."""
    if self._neighbours is None:
      return None
    places, target2view, fov_deg = self._neighbours.find(index, self._num_more)
    views = [self._view(self._records[record], side) for record, side in places]
    return posed_pair.more_views(
      images=[image for image, _ in views],
      target2view=list(target2view),
      fov_deg=fov_deg.tolist(),
      depths=[depth for _, depth in views],
      count=self._num_more,
      image_px=self._size_px,
      depth_px=self._depth_px,
    )

  def _depth(
    self, record: schema.Record, name: str
  ) -> Float32[np.ndarray, 'd d']:
    side_px = self._depth_px
    if name not in record:
      return np.zeros((side_px, side_px), np.float32)
    try:
      depth = depth_png.decode(record[name])
    except ValueError as error:
      raise ValueError(f'{name}: {error}') from error
    if len(depth) != side_px:
      raise ValueError(
        f'{name}: {len(depth)} px, where the first map has {side_px} px'
      )
    return depth

  def _image(self, jpeg: bytes) -> np.ndarray:
    return image_files.decode_square_jpeg(
      jpeg, self._size_px, stored_px=self._stored_px
    )

  def fingerprint(self) -> str:
    """Digest of the number and the poses of the records' first hundred."""
    digest = hashlib.sha256(str(len(self)).encode())
    for index in range(min(len(self), 100)):
      digest.update(self._records[index]['target2source'].tobytes())
    return digest.hexdigest()[:16]


def _mirrored_pose(
  pose: Float32[np.ndarray, '*b 3 4'],
) -> Float32[np.ndarray, '*b 3 4']:
  """The same motion as a mirror shows it: x -> -x in both cameras."""
  flip = np.array([-1.0, 1.0, 1.0], np.float32)
  return pose * flip[:, None] * np.append(flip, np.float32(1))


def _flipped(x: np.ndarray | None, axis: int) -> np.ndarray | None:
  return None if x is None else np.flip(x, axis)


def mirrored(pair: posed_pair.PosedPair) -> posed_pair.PosedPair:
  """The pair as a mirror shows it: x -> -x in all cameras; exact."""
  more = pair.more and pair.more._replace(
    image=_flipped(pair.more.image, 2),
    target2view=_mirrored_pose(pair.more.target2view),
    depth=_flipped(pair.more.depth, 2),
  )
  return posed_pair.PosedPair(
    source=_flipped(pair.source, 1),
    target=_flipped(pair.target, 1),
    target2source=_mirrored_pose(pair.target2source),
    fov_deg=pair.fov_deg,
    median_depth=pair.median_depth,
    source_depth=_flipped(pair.source_depth, 1),
    target_depth=_flipped(pair.target_depth, 1),
    more=more,
  )


def _median_depth(depth: Float32[np.ndarray, 'd d'] | None) -> np.float32:
  known = depth[depth > 0] if depth is not None else ()
  return np.float32(np.median(known) if len(known) else 0)


def swapped(pair: posed_pair.PosedPair) -> posed_pair.PosedPair:
  """The pair with source and target exchanged.

  Exact, but that the median depth of the target view is not known, unless its
  depths are.
  """
  pose = camera.inverse(pair.target2source.astype(np.float64))
  more = pair.more and posed_pair.as_float32(posed_pair.moved(pair.more, pose))
  return posed_pair.PosedPair(
    source=pair.target,
    target=pair.source,
    target2source=pose.astype(np.float32),
    fov_deg=pair.fov_deg,
    median_depth=_median_depth(pair.target_depth),
    source_depth=pair.target_depth,
    target_depth=pair.source_depth,
    more=more,
  )


def thinned(pair: posed_pair.PosedPair, count: int) -> posed_pair.PosedPair:
  """The pair with `count` views beside its source, or what there are."""
  more = pair.more
  is_there = more.is_there & (np.arange(len(more.is_there)) < count)
  return pair._replace(more=more._replace(is_there=is_there))


@runtime_checkable
class Source(Protocol):
  """What examples are made of."""

  def __len__(self) -> int:
    """How many make an epoch."""

  def __getitem__(self, index: int) -> posed_pair.PosedPair:
    """A pair, the same each time."""

  def draw(self, index: int, rng: np.random.Generator) -> posed_pair.PosedPair:
    """A pair for the example that takes this index in its epoch."""

  def fingerprint(self) -> str:
    """Digest that tells other records from these."""


@runtime_checkable
class Examples(Protocol):
  """A sequence without end."""

  def __getitem__(self, index: int) -> posed_pair.PosedPair:
    """Example `index`, the same each time."""


def examples(
  source: Source, *, seed: int, mirror: bool, swap: bool
) -> Examples:
  """The endless sequence of examples: `examples[i]` for any i.

  Of pairs with more than one source a random number is given, all alike.

  Args:
    source: the pairs, or what they are drawn from.
    seed: of order, drawing and augmentation.
    mirror: mirror half of the examples.
    swap: exchange source and target of half of the examples.
  """

  def example(index: int, rng: np.random.Generator) -> posed_pair.PosedPair:
    pair = source.draw(index, rng)
    wants_mirror, wants_swap = rng.random(2) < 0.5
    if mirror and wants_mirror:
      pair = mirrored(pair)
    if swap and wants_swap:
      pair = swapped(pair)
    if pair.more is None:
      return pair
    return thinned(pair, int(rng.integers(len(pair.more.is_there) + 1)))

  # Here, for a command reads its flags before what is slow to load.
  import grain

  dataset = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()
  return dataset.random_map(example)


def batches(
  dataset: Examples,
  *,
  first_step: int,
  batch_size: int,
  rows: Int[np.ndarray, 'n'] | None = None,
) -> Iterator[posed_pair.PosedPair]:
  """Every batch from `first_step` on, or the rows of it that a host needs.

  One batch is prepared ahead in a thread.

  Args:
    dataset: from `examples`.
    first_step: number of the first batch.
    batch_size: of the batch over all hosts.
    rows: of it; None: all.
  """
  wanted = range(batch_size) if rows is None else rows

  def read(step: int) -> posed_pair.PosedPair:
    start = step * batch_size
    return posed_pair.stack([dataset[start + int(row)] for row in wanted])

  with futures.ThreadPoolExecutor(max_workers=1) as pool:
    step = first_step
    ahead = pool.submit(read, step)
    while True:
      batch = ahead.result()
      step += 1
      ahead = pool.submit(read, step)
      yield batch


def sample_images(source: Source, count: int) -> UInt8[np.ndarray, 'n s s 3']:
  """Up to `count` images, spread evenly over the records."""
  chosen = np.linspace(0, len(source) - 1, min(count, len(source)))
  return np.stack([source[int(index)].source for index in chosen])
