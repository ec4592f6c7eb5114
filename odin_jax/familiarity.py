"""How far an image is from those that a model was trained on.

An image x has features f(x): mean and contrast of its brightness and of two
differences of colour; the contrast of what each of a few scales adds, and how
evenly it is spread; how the slopes of brightness lie. They need no network, so
every model has them, and they tell noise, blur, drawings and the look of a
camera apart, not a kitchen from a church.

Of the images of training f has the mean m, the deviations s and the
correlations C. With z = (f - m) / s and n features the distance is
Mahalanobis', per feature:

  d(x)^2 = z^T ((1 - a) C + a I)^-1 z / n,  a = 0.05

which is about 1 for images of the same kind. `limit` is a quantile of d over
images of training that m, s and C were not taken from, or a least one: where
all are of one or a few videos these lie closer together than their kind does.

What is seen through another lens is unlike them, too, whatever it looks like.
"""

import dataclasses
import os
import pathlib

import cv2
from jaxtyping import Float, Float64, UInt8
import numpy as np

from odin_jax.checkpoints import pretrained
from odin_jax.shared import digests, errors, files, workdirs

NAME = 'familiarity.json'
# Of images of training that a workdir's figures are of: as many as are asked
# for, and the fewest that say something.
NUM_IMAGES, FEWEST_IMAGES = 512, 100
# Share of the images of training that is nearer than the limit.
QUANTILE = 0.98
LEAST_LIMIT = 1.5
# Focal lengths so many times shorter or longer than any of training are far off:
# of 55 degrees, 1.9 times, a model of 90 loses half of what it is ahead of the
# swept source.
_FOCAL_RATIO = 1.25
_SHRINKAGE = 0.05
_LEVELS = 4
# Of sRGB values in [0, 1]: less is no contrast.
_FLOOR = 1e-3
_FLAT = 2 / 255

Image = UInt8[np.ndarray, 's s 3']
Images = list[Image] | UInt8[np.ndarray, 'n s s 3']


@dataclasses.dataclass(frozen=True)
class Familiarity:
  """What a model's images of training are like.

  Attributes:
    mean: of each feature.
    deviation: of each feature.
    inverse: of their shrunk correlations.
    limit: what is farther is unlike them.
    fov_deg: full fields of view, the narrowest and the widest; None: not known.
  """

  mean: Float64[np.ndarray, 'f']
  deviation: Float64[np.ndarray, 'f']
  inverse: Float64[np.ndarray, 'f f']
  limit: float
  fov_deg: tuple[float, float] | None = None

  def is_of_lens(self, fov_deg: float) -> bool:
    """Whether a field of view is about one of those of training."""
    if self.fov_deg is None:
      return True
    narrowest, asked, widest = np.tan(
      np.deg2rad([self.fov_deg[0], fov_deg, self.fov_deg[1]]) / 2
    )
    return bool(narrowest / _FOCAL_RATIO <= asked <= widest * _FOCAL_RATIO)

  def distance(self, image: Image) -> float:
    """Of an image at the size of the model; see above."""
    z = (features(image) - self.mean) / self.deviation
    return float(np.sqrt(z @ self.inverse @ z / len(z)))


def _log(x: np.floating) -> float:
  return float(np.log(x + _FLOOR))


def _added(plane: Float[np.ndarray, 'h w']) -> tuple[np.ndarray, np.ndarray]:
  """A plane at half the size, and what the whole adds to that."""
  coarse = cv2.pyrDown(plane)
  return coarse, plane - cv2.pyrUp(coarse, dstsize=plane.shape[::-1])


def features(image: Image) -> Float64[np.ndarray, 'f']:
  """f of an image, see above; its size makes a difference."""
  red, green, blue = np.moveaxis(image.astype(np.float32) / 255, -1, 0)
  grey = 0.299 * red + 0.587 * green + 0.114 * blue
  colours = red - green, (red + green) / 2 - blue
  values = []
  for plane in (grey, *colours):
    values += [plane.mean(), _log(plane.std())]
  coarse = grey
  for _ in range(_LEVELS):
    coarse, added = _added(coarse)
    contrast = np.sqrt(np.square(added).mean())
    evenness = (np.abs(added).mean() + _FLOOR) / (contrast + _FLOOR)
    values += [_log(contrast), evenness]
  for plane in colours:
    _, added = _added(plane)
    values.append(_log(np.sqrt(np.square(added).mean())))
  across, down = np.diff(grey, axis=1)[:-1], np.diff(grey, axis=0)[:, :-1]
  slope = np.hypot(across, down)
  lesser = np.minimum(np.abs(across), np.abs(down))
  half = len(grey) // 2
  values += [
    _log(across.std()) - _log(down.std()),
    # 0 where all edges are level or upright, 0.7 where all are diagonal.
    lesser.sum() / (slope.sum() + _FLOOR),
    (slope < _FLAT).mean(),
    grey[:half].mean() - grey[half:].mean(),
  ]
  return np.array(values, np.float64)


def of_images(
  images: Images, fov_deg: tuple[float, float] | None = None
) -> Familiarity:
  """What images are like; every other one is for the limit alone.

  Args:
    images: some of those of training.
    fov_deg: see `Familiarity`.
  """
  rows = np.stack([features(image) for image in images])
  fitted, others = rows[::2], images[1::2]
  deviation = fitted.std(axis=0) + _FLOOR
  mean = fitted.mean(axis=0)
  z = (fitted - mean) / deviation
  shrunk = (1 - _SHRINKAGE) * z.T @ z / len(z)
  shrunk += _SHRINKAGE * np.eye(len(mean))
  found = Familiarity(mean, deviation, np.linalg.inv(shrunk), np.inf)
  distances = [found.distance(image) for image in others]
  limit = max(LEAST_LIMIT, np.quantile(distances, QUANTILE))
  return dataclasses.replace(found, limit=float(limit), fov_deg=fov_deg)


def _digest(familiarity: Familiarity) -> str:
  values = dataclasses.astuple(familiarity)
  return digests.of_arrays([np.asarray(x) for x in values if x is not None])


def write(
  workdir: str | os.PathLike[str],
  images: Images,
  fov_deg: tuple[float, float] | None = None,
) -> None:
  """Writes what images of training are like beside the checkpoints.

  Nothing where there are too few to say.

  Args:
    workdir: of the training.
    images: some of those of it.
    fov_deg: see `Familiarity`.
  """
  if len(images) < FEWEST_IMAGES:
    return
  found = of_images(images, fov_deg)
  fields = {
    name: np.asarray(value).tolist()
    for name, value in dataclasses.asdict(found).items()
    if value is not None
  }
  files.write_json(
    pathlib.Path(workdir) / NAME,
    {
      'images': len(images),
      'image_size_px': len(images[0]),
      **fields,
      'digest': _digest(found),
    },
  )


def path_of(workdir: str | os.PathLike[str]) -> pathlib.Path:
  """Where it is written of a workdir, or of the word `pretrained`."""
  if workdirs.is_pretrained(workdir):
    return pretrained.FOLDER / NAME
  return pathlib.Path(workdir) / NAME


def read(workdir: str | os.PathLike[str]) -> Familiarity | None:
  """What the images of a model are like; None where nothing is known of them.

  Raises:
    errors.UserError: the file is damaged.
  """
  path = path_of(workdir)
  if not path.exists():
    return None
  # Earlier versions have no fields of view.
  names = ['mean', 'deviation', 'inverse', 'limit']
  content = files.read_json(path, 'what a model was trained on', names)
  try:
    arrays = [np.array(content[name], np.float64) for name in names]
    lens = content.get('fov_deg')
    found = Familiarity(
      *arrays[:-1], float(arrays[-1]), lens and (float(lens[0]), float(lens[1]))
    )
    is_whole = _digest(found) == content.get('digest')
  except (TypeError, ValueError, LookupError):
    is_whole = False
  if not is_whole:
    raise errors.UserError(
      f'{path}: damaged: its figures are not those of its digest; remove it, '
      'and generate says nothing of how familiar an image is'
    )
  return found
