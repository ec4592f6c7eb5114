"""How far predicted pictures are from true ones as sets: FID and KID.

Both compare features of pictures, x of the one set and y of the other, rows
[n d] that a network of the user's gives. With the means m and the covariances S
of their rows (dividing by n - 1),

  FID = |m_x - m_y|^2 + tr S_x + tr S_y - 2 tr (S_x^1/2 S_y S_x^1/2)^1/2

is the squared Frechet distance of two Gaussians (Heusel et al. 1706.08500,
equation 6). With k(a, b) = (a.b / d + 1)^3,

  KID = mean k(x, x') + mean k(y, y') - 2 mean k(x, y),   x' not x, y' not y

is the unbiased squared maximum mean discrepancy (Binkowski et al. 1801.01401,
section 4), as the mean and the standard deviation over subsets that are drawn
at random. torch-fidelity has the same two formulas
(https://github.com/toshas/torch-fidelity, metric_fid.py and metric_kid.py).

FID is biased: fewer pictures give a larger one, and with fewer than features a
covariance has no full rank, so that it says mostly how many there were. KID is
not biased.
"""

import importlib.util
import os
import pathlib
from typing import Any, Callable

from jaxtyping import Float, UInt8
import numpy as np

from odin_jax.shared import digests, errors, files, progress

# Two sets need not have as many rows.
Features = Float[np.ndarray, '_ d']
Images = UInt8[np.ndarray, 'n s s 3']

# Of torch-fidelity, and of the paper's code.
_SUBSETS, _SUBSET_SIZE = 100, 1000
_SEED = 0
# Two subsets of two pictures: what KID takes.
MIN_IMAGES = 4
# Pictures that the network sees at a time.
_BATCH = 64
_DEFINITIONS = {
  'fid': 'squared Frechet distance of Gaussians, Heusel et al. 2017, of the '
  'features of all predictions and of all truths, as 8-bit pictures; float64',
  'kid': 'unbiased squared MMD, Binkowski et al. 2018, kernel (x.y / d + 1)^3: '
  f'mean and standard deviation over {_SUBSETS} subsets of {_SUBSET_SIZE} '
  'pictures, or of half of them where there are no more than that',
}


# -- The distances -------------------------------------------------------------


def _root(centred: Features) -> Features:
  """R with R^T R the covariance; no more rows than columns."""
  factor = np.linalg.qr(centred, mode='r')
  return factor / np.sqrt(len(centred) - 1)


def frechet_distance(x: Features, y: Features) -> float:
  """FID, in float64.

  The last trace is the sum of the singular values of R_x R_y^T for any R with
  R^T R = S. Of them none is a root of a difference, so that rounding is not
  magnified where covariances have no full rank.

  Args:
    x: features of one set, two rows or more.
    y: of the other.
  """
  x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
  root_x, root_y = _root(x - x.mean(0)), _root(y - y.mean(0))
  overlap = np.linalg.svd(root_x @ root_y.T, compute_uv=False).sum()
  shift = np.square(x.mean(0) - y.mean(0)).sum()
  spread = np.square(root_x).sum() + np.square(root_y).sum()
  # Of equal sets it is zero but for rounding.
  return float(max(shift + spread - 2 * overlap, 0.0))


def _kernel(a: Features, b: Features) -> Float[np.ndarray, 'm n']:
  return (a @ b.T / a.shape[1] + 1) ** 3


def _among(a: Features) -> float:
  """Mean kernel of two different rows."""
  values = _kernel(a, a)
  return float((values.sum() - np.trace(values)) / (len(a) * (len(a) - 1)))


def squared_mmd(x: Features, y: Features) -> float:
  """The unbiased estimate, which may be negative; float64.

  Args:
    x: features of one set, two rows or more.
    y: of the other.
  """
  x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)

  return float(_among(x) + _among(y) - 2 * _kernel(x, y).mean())


def kernel_distance(x: Features, y: Features) -> tuple[float, float]:
  """KID: mean and standard deviation over subsets, with a fixed seed.

  Args:
    x: features of one set, `MIN_IMAGES` rows or more.
    y: of the other.
  """
  generator = np.random.default_rng(_SEED)
  count = min(len(x), len(y))
  size = _SUBSET_SIZE if count > _SUBSET_SIZE else count // 2

  def drawn(features: Features) -> Features:
    return features[generator.choice(len(features), size, replace=False)]

  values = [squared_mmd(drawn(x), drawn(y)) for _ in range(_SUBSETS)]
  return float(np.mean(values)), float(np.std(values))


def distances(x: Features, y: Features) -> dict[str, float | int]:
  """`fid`, `kid`, `kid_std` and `num_features`, for JSON.

  Args:
    x: features of one set, `MIN_IMAGES` rows or more.
    y: of the other.

  Raises:
    errors.UserError: features are so large that their products are infinite.
  """
  # What is infinite is told below.
  with np.errstate(over='ignore', invalid='ignore'):
    kid, kid_std = kernel_distance(x, y)
    fid = frechet_distance(x, y)
  if not np.isfinite([fid, kid, kid_std]).all():
    raise errors.UserError(
      f'--features: as large as {max(np.abs(x).max(), np.abs(y).max()):.1g}, of '
      'which FID and KID are infinite; scale them down'
    )
  return {
    'fid': fid,
    'kid': kid,
    'kid_std': kid_std,
    'num_features': x.shape[1],
  }


# -- The network of the user ---------------------------------------------------


class FeatureNetwork:
  """A function of the user's: uint8 pictures [n s s 3] -> floats [n d].

  Args:
    text: `FILE.py:FUNCTION`.

  Raises:
    errors.UserError: no such file or function, or the file does not load.
  """

  def __init__(self, text: str):
    file, _, name = text.rpartition(':')
    if not file or not name.isidentifier():
      raise errors.UserError(
        f'--features={text}: takes FILE.py:FUNCTION, a function of pictures'
      )
    path = files.require_file(file, 'a file with the function of --features')
    self.name = f'{path.name}:{name}'
    self._function = _load(path, name)
    self.protocol = {
      'features': self.name,
      'features_sha256': digests.of_arrays(
        [np.frombuffer(path.read_bytes(), np.uint8)]
      ),
      **_DEFINITIONS,
    }

  def __call__(self, images: Images) -> Features:
    """Features of all pictures, in float64.

    Raises:
      errors.UserError: fewer than `MIN_IMAGES` pictures; the function fails,
        or what it gives is not one row of finite numbers for each picture, all
        of one length, or the same for all pictures.
    """
    if len(images) < MIN_IMAGES:
      raise errors.UserError(
        f'--features={self.name}: {len(images)} pictures; FID and KID take '
        f'{MIN_IMAGES} or more'
      )
    rows: list[np.ndarray] = []
    starts = range(0, len(images), _BATCH)
    for start in progress.each(starts, 'batch', desc='features'):
      batch = images[start : start + _BATCH]
      rows.append(self._checked(self._call(batch), len(batch)))
    if len({row.shape[1] for row in rows}) > 1:
      raise errors.UserError(
        f'--features={self.name}: gives {rows[0].shape[1]} features of a '
        f'picture, then {rows[-1].shape[1]}'
      )
    features = np.concatenate(rows)
    if not np.ptp(features, axis=0).any() and np.ptp(images, axis=0).any():
      raise errors.UserError(
        f'--features={self.name}: gives the same features for {len(images)} '
        'different pictures; it does not look at them'
      )
    return features

  def _call(self, batch: Images) -> Any:
    try:
      # A copy: networks normalise in place, and pictures are still needed.
      return np.array(self._function(batch.copy()))
    # It is the user's, and may fail or end in any way.
    except (Exception, SystemExit) as error:  # noqa: BLE001
      raise errors.UserError(
        f'--features={self.name}: fails on pictures {batch.shape} of uint8 '
        f'({type(error).__name__}: {error})'
      ) from error

  def _checked(self, rows: np.ndarray, count: int) -> Features:
    is_shape = rows.ndim == 2 and len(rows) == count and rows.shape[1] > 0
    if not is_shape or rows.dtype.kind not in 'fiu':
      raise errors.UserError(
        f'--features={self.name}: gives {rows.dtype} {rows.shape} for {count} '
        f'pictures, not floats [{count} d]'
      )
    rows = rows.astype(np.float64)
    if not np.isfinite(rows).all():
      raise errors.UserError(
        f'--features={self.name}: gives features that are no numbers (NaN or '
        'infinite)'
      )
    return rows


def _load(
  path: str | os.PathLike[str], name: str
) -> Callable[[Images], np.ndarray]:
  path = pathlib.Path(path)
  # By the path: a file of any suffix would do.
  spec = importlib.util.spec_from_file_location(f'features_{path.stem}', path)
  if spec is None or spec.loader is None:
    raise errors.UserError(f'{path}: is no Python file; give FILE.py:FUNCTION')
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
  # It is the user's, and may fail or end in any way.
  except (Exception, SystemExit) as error:  # noqa: BLE001
    raise errors.UserError(
      f'{path}: does not load ({type(error).__name__}: {error})'
    ) from error
  function = getattr(module, name, None)
  if not callable(function):
    raise errors.UserError(
      f'{path}: has no function {name}; --features=FILE.py:FUNCTION'
    )
  return function
