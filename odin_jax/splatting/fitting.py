"""Gaussians that show what posed views show: Adam, one view per step.

The loss is that of 3DGS, 0.8 L1 + 0.2 (1 - SSIM), over the pixels that count.
The number of Gaussians is fixed, so that shapes are: those that became
transparent are put where others are, as Kheradmand et al., "3D Gaussian
splatting as Markov chain Monte Carlo", 2024 (https://arxiv.org/abs/2404.09591)
do, with their weights on opacity and extent that let useless ones fade. Their
noise on places is left out.
"""

import dataclasses
import functools
import math
from typing import Callable, Iterable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8
import numpy as np
import optax

from odin_jax.shared import errors
from odin_jax.splatting import gaussians as gaussian
from odin_jax.splatting import projection, rasterizing, relocation

# Of the loss.
_SSIM_WEIGHT = 0.2
_SSIM_WINDOW_PX, _SSIM_SIGMA_PX = 11, 1.5
# Room for pairs in a picture at the start, for each Gaussian.
_PAIRS = 8
# Of views: a window of SSIM.
LEAST_SIZE_PX = _SSIM_WINDOW_PX


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """How Gaussians are fitted.

  Attributes:
    steps: of Adam, each at one view.
    means_rate: learning rate at the start, scene units, of which the median
      depth is about 1; falls exponentially.
    last_means_rate: at the end.
    scales_rate: of `log_scales`.
    quaternions_rate: of `quaternions`.
    opacities_rate: of `opacity_logits`.
    colours_rate: of `colour_coefficients`.
    opacity_weight: of the mean opacity in the loss.
    scale_weight: of the mean standard deviation in the loss.
    relocate_every: steps.
    relocate_until: share of the steps after which none is moved.
  """

  steps: int = 2000
  means_rate: float = 2e-3
  last_means_rate: float = 2e-5
  scales_rate: float = 1e-2
  quaternions_rate: float = 5e-3
  opacities_rate: float = 5e-2
  colours_rate: float = 1e-2
  opacity_weight: float = 0.01
  scale_weight: float = 0.01
  relocate_every: int = 100
  relocate_until: float = 0.8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Views:
  """Pictures of one size, and their cameras.

  Attributes:
    images: sRGB.
    counts: 1 where a pixel is scene, 0 where it is not.
    scene2camera: poses.
    focal_px: of all; None of equirectangular panoramas.
  """

  images: UInt8[np.ndarray, 'n h w 3']
  counts: UInt8[np.ndarray, 'n h w']
  scene2camera: Float[np.ndarray, 'n 3 4']
  focal_px: float | None

  def camera(self, index: int) -> projection.Camera:
    """Of a view."""
    return _camera(self, jnp.asarray(self.scene2camera[index], jnp.float32))

  def subset(self, indices: list[int]) -> 'Views':
    """Some of the views."""
    return dataclasses.replace(
      self,
      images=self.images[indices],
      counts=self.counts[indices],
      scene2camera=self.scene2camera[indices],
    )


def _camera(views: Views, pose: Float[Array, '3 4']) -> projection.Camera:
  height, width = views.images.shape[1:3]
  return projection.Camera(
    scene2camera=pose, width=width, height=height, focal_px=views.focal_px
  )


@functools.cache
def _windows(size: int) -> Float[np.ndarray, 'n size']:
  """Row i weighs the pixels of the i-th window that fits into a line."""
  offset = np.arange(_SSIM_WINDOW_PX) - _SSIM_WINDOW_PX // 2
  kernel = np.exp(-0.5 * (offset / _SSIM_SIGMA_PX) ** 2)
  matrix = np.zeros((size - _SSIM_WINDOW_PX + 1, size), np.float32)
  for row in range(len(matrix)):
    matrix[row, row : row + _SSIM_WINDOW_PX] = kernel / kernel.sum()
  return matrix


def ssim(
  x: Float[Array, 'h w 3'], y: Float[Array, 'h w 3']
) -> Float[Array, '']:
  """Structural similarity; the same as `odin_jax.metrics.ssim`."""
  rows, columns = _windows(x.shape[0]), _windows(x.shape[1])

  def mean(image: Float[Array, 'h w 3']) -> Float[Array, 'i j 3']:
    return jnp.einsum(
      'ih,hwc,jw->ijc',
      rows,
      image,
      columns,
      precision=jax.lax.Precision.HIGHEST,
    )

  mean_x, mean_y = mean(x), mean(y)
  variances = mean(x * x) - mean_x**2 + mean(y * y) - mean_y**2
  covariance = mean(x * y) - mean_x * mean_y
  c1, c2 = 0.01**2, 0.03**2
  luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
  return jnp.mean(luminance * (2 * covariance + c2) / (variances + c2))


def _loss(
  scene: gaussian.Gaussians,
  view: projection.Camera,
  image: UInt8[Array, 'h w 3'],
  counts: UInt8[Array, 'h w'],
  settings: Settings,
  limits: rasterizing.Limits,
) -> tuple[Float[Array, ''], rasterizing.Rendering]:
  made = rasterizing.render(scene, view, limits)
  weight = counts[..., None].astype(jnp.float32)
  truth = image.astype(jnp.float32) / 255 * weight
  shown = made.image * weight
  l1 = jnp.abs(shown - truth).sum() / jnp.maximum(3 * weight.sum(), 1)
  loss = (1 - _SSIM_WEIGHT) * l1 + _SSIM_WEIGHT * (1 - ssim(shown, truth))
  loss += settings.opacity_weight * gaussian.opacities(scene).mean()
  loss += settings.scale_weight * jnp.exp(scene.log_scales).mean()
  return loss, made


# Places of a scene differ little: so does their slope.
_adam = optax.scale_by_adam(eps=1e-15)


@functools.partial(jax.jit, static_argnames=('settings', 'limits'))
def _step(
  scene: gaussian.Gaussians,
  moments: optax.OptState,
  number: int,
  view: projection.Camera,
  image: UInt8[Array, 'h w 3'],
  counts: UInt8[Array, 'h w'],
  settings: Settings,
  limits: rasterizing.Limits,
) -> tuple[
  gaussian.Gaussians,
  optax.OptState,
  Float[Array, ''],
  tuple[Int[Array, ''], Int[Array, '']],
]:
  """One step of Adam; the loss, and how many pairs the picture had and lost."""
  (loss, made), slope = jax.value_and_grad(_loss, has_aux=True)(
    scene, view, image, counts, settings, limits
  )
  updates, moments = _adam.update(slope, moments)
  fall = settings.last_means_rate / settings.means_rate
  rates = gaussian.Gaussians(
    means=settings.means_rate * fall ** (number / settings.steps),
    log_scales=settings.scales_rate,
    quaternions=settings.quaternions_rate,
    opacity_logits=settings.opacities_rate,
    colour_coefficients=settings.colours_rate,
  )
  scene = jax.tree.map(
    lambda value, update, rate: value - rate * update, scene, updates, rates
  )
  return scene, moments, loss, (made.pairs, made.dropped)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
  """A fitted scene.

  Attributes:
    scene: the Gaussians.
    limits: that hold the pictures of all steps.
    first_loss: mean over the first round through the views.
    last_loss: mean over the last one.
    relocated: how often a Gaussian was put elsewhere.
  """

  scene: gaussian.Gaussians
  limits: rasterizing.Limits
  first_loss: float
  last_loss: float
  relocated: int


def fit(
  scene: gaussian.Gaussians,
  views: Views,
  settings: Settings,
  *,
  tile_px: int,
  seed: int,
  progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> Fit:
  """Fits Gaussians to all views, which take turns in random order.

  A step whose picture the room did not hold is taken again with more of it, so
  that none is made with Gaussians left out.

  Args:
    scene: where they start.
    views: what they should show, of 11 px or more.
    settings: how.
    tile_px: see `rasterizing.Limits`.
    seed: of the order of views, and of what is relocated.
    progress: wraps the loop over steps, for a progress bar.

  Raises:
    errors.UserError: a loss that is no number, or pictures that need more
      room than there can be.
  """
  rng = np.random.default_rng(seed)
  limits = rasterizing.Limits(
    tile_px=tile_px, pairs=_PAIRS * max(len(scene.means), 128)
  )
  moments = _adam.init(scene)
  images, counts = jnp.asarray(views.images), jnp.asarray(views.counts)
  order: list[int] = []
  losses: list[float] = []
  relocated = 0
  for number in progress(range(settings.steps)):
    if not order:
      order = rng.permutation(len(images)).tolist()
    index = order.pop()
    while True:
      stepped, stepped_moments, loss, (pairs, dropped) = _step(
        scene,
        moments,
        number,
        views.camera(index),
        images[index],
        counts[index],
        settings,
        limits,
      )
      if not dropped:
        break
      limits = rasterizing.grown(limits, int(pairs))
    scene, moments = stepped, stepped_moments
    losses.append(float(loss))
    if not math.isfinite(losses[-1]):
      raise errors.UserError(
        f'the loss of step {number} is no number; check the poses of the views'
      )
    is_due = (number + 1) % settings.relocate_every == 0
    if is_due and number < settings.relocate_until * settings.steps:
      scene, moments, moved = relocation.relocate(scene, moments, rng)
      relocated += moved
  first, last = losses[: len(images)], losses[-len(images) :]
  return Fit(
    scene=scene,
    limits=limits,
    first_loss=float(np.mean(first)),
    last_loss=float(np.mean(last)),
    relocated=relocated,
  )


def pictures(
  scene: gaussian.Gaussians, views: Views, limits: rasterizing.Limits
) -> UInt8[np.ndarray, 'n h w 3']:
  """What the cameras of all views see, with nothing left out."""
  shown = np.empty_like(views.images)
  for index in range(len(shown)):
    made, limits = rasterizing.render_whole(scene, views.camera(index), limits)
    shown[index] = np.rint(np.clip(np.asarray(made.image), 0, 1) * 255)
  return shown
