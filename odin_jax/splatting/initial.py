"""Where Gaussians start: at points with colours."""

import jax.numpy as jnp
from jaxtyping import Float
import numpy as np
from scipy import spatial

from odin_jax.shared import camera
from odin_jax.splatting import fitting
from odin_jax.splatting import gaussians as gaussian

Points = tuple[Float[np.ndarray, 'n 3'], Float[np.ndarray, 'n 3']]
# Standard deviation, as a share of the distance to the nearest points.
_SPREAD = 0.7
_NUM_NEAREST = 3
_LEAST_SPREAD, _MOST_SPREAD = 1e-4, 0.3
_OPACITY = 0.3
# Of all points, that are taken of those given, at most.
_GIVEN_SHARE = 0.75


def in_frusta(
  views: fitting.Views,
  count: int,
  min_depth: float,
  max_depth: float,
  rng: np.random.Generator,
) -> Points:
  """Points at random pixels of random views, with the colours of these.

  Args:
    views: what is seen.
    count: of points.
    min_depth: nearest, scene units; of panoramas a distance.
    max_depth: farthest; inverse depths are spread evenly.
    rng: the only source of randomness.

  Returns:
    points in scene axes, and sRGB colours from 0 to 1.

  Raises:
    ValueError: no pixel counts.
  """
  pixels = np.flatnonzero(views.counts)
  if not pixels.size:
    raise ValueError('no pixel of any view counts')
  view, row, column = np.unravel_index(
    rng.choice(pixels, count), views.counts.shape
  )
  rays = views.camera(0).rays()[row, column]
  if views.focal_px is not None:
    rays = rays / [views.focal_px, views.focal_px, 1.0]
  depth = 1 / rng.uniform(1 / max_depth, 1 / min_depth, count)
  camera2scene = camera.inverse(views.scene2camera)[view]
  points = camera.transform(camera2scene, (rays * depth[:, None])[:, None])
  return points[:, 0], views.images[view, row, column] / 255


def start(
  given: Points | None,
  views: fitting.Views,
  count: int,
  min_depth: float,
  max_depth: float,
  rng: np.random.Generator,
) -> tuple[Points, int]:
  """Points at which Gaussians start, and how many of them were given.

  Some are always at random depths: given points lie where views agree, which
  they do not everywhere.

  Args:
    given: points with colours, of which some are taken; None where there are
      none.
    views: see `in_frusta`.
    count: of points.
    min_depth: see `in_frusta`.
    max_depth: see `in_frusta`.
    rng: the only source of randomness.
  """
  num_random = count
  parts = []
  if given is not None:
    places, colours = given
    order = rng.permutation(len(places))[: round(_GIVEN_SHARE * count)]
    parts.append((places[order], colours[order]))
    num_random -= len(order)
  parts.append(in_frusta(views, num_random, min_depth, max_depth, rng))
  places, colours = zip(*parts)
  return (np.concatenate(places), np.concatenate(colours)), count - num_random


def gaussians(points: Points) -> gaussian.Gaussians:
  """Round Gaussians that reach about as far as the nearest others."""
  places, colours = points
  count = len(places)
  tree = spatial.cKDTree(places)
  # The nearest is the point itself.
  nearest = tree.query(places, k=min(_NUM_NEAREST + 1, count))[0]
  distance = nearest.reshape(count, -1)[:, 1:]
  spread = distance.mean(axis=1) if distance.size else np.zeros(count)
  spread = np.clip(_SPREAD * spread, _LEAST_SPREAD, _MOST_SPREAD)
  return gaussian.Gaussians(
    means=jnp.asarray(places, jnp.float32),
    log_scales=jnp.asarray(
      np.repeat(np.log(spread)[:, None], 3, axis=1), jnp.float32
    ),
    quaternions=jnp.tile(jnp.array([1.0, 0.0, 0.0, 0.0]), (count, 1)),
    opacity_logits=jnp.full(count, np.log(_OPACITY / (1 - _OPACITY))),
    colour_coefficients=jnp.asarray(
      gaussian.coefficients_of_colours(colours), jnp.float32
    ),
  )
