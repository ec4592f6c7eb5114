"""The page of a scene: to fly through its points, its mesh, its Gaussians.

One file that opens from disk. Drawn by three.js (`three/`, bundled by
launch/bundle_three.sh).
"""

import base64
import pathlib
from typing import Any

import cv2
from jaxtyping import Float, Float32, Int, Shaped, UInt8
import numpy as np

from odin_jax.reporting import pair_cells
from odin_jax.shared import page

_FOLDER = pathlib.Path(__file__).parent
_TEMPLATE = _FOLDER / 'scene_page.html'
_THREE = _FOLDER / 'three' / 'three.js'
# More make the page slow to load; a random choice of them shows the same.
MOST_POINTS = 1_000_000
# Each is four corners in the page.
MOST_SPLATS = 200_000
# Of points, of a mesh or of Gaussians.
_NONE = {'count': 0, 'all': 0, 'xyz': '', 'rgb': '', 'faces': ''}
# Of the extent, what may lie beyond what is first looked at, at either end.
_OUTLIERS_PERCENT = 5.0


def _packed(values: Shaped[np.ndarray, '...'], kind: str) -> str:
  """Numbers as the page unpacks them: little-endian, base64."""
  return base64.b64encode(values.astype(kind).tobytes()).decode()


def _uri(image: UInt8[np.ndarray, 'h w 3']) -> str:
  return pair_cells.uri(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))


def points(
  places: Float32[np.ndarray, 'n 3'], colours: UInt8[np.ndarray, 'n 3']
) -> dict[str, Any]:
  """Points for the page, in random order, so that any first ones show all."""
  order = np.random.default_rng(0).permutation(len(places))[:MOST_POINTS]
  return {
    'count': len(order),
    'all': len(places),
    'xyz': _packed(places[order], '<f4'),
    'rgb': _packed(colours[order], 'u1'),
  }


def mesh(
  vertices: Float32[np.ndarray, 'n 3'],
  faces: Int[np.ndarray, 'm 3'],
  colours: UInt8[np.ndarray, 'n 3'],
) -> dict[str, Any]:
  """A coloured mesh for the page."""
  return {
    'count': len(faces),
    'xyz': _packed(vertices, '<f4'),
    'rgb': _packed(colours, 'u1'),
    'faces': _packed(faces, '<u4'),
  }


def splats(
  places: Float32[np.ndarray, 'n 3'],
  covariances: Float32[np.ndarray, 'n 3 3'],
  colours: UInt8[np.ndarray, 'n 3'],
  opacities: Float32[np.ndarray, 'n'],
  pixel_rad: float,
) -> dict[str, Any]:
  """3D Gaussians for the page; of too many those that cover most.

  Args:
    places: their centres.
    covariances: in the axes of the scene.
    colours: sRGB.
    opacities: of the centres.
    pixel_rad: angle of a pixel of the views that they were fitted to, by which
      the low-pass filter of these views is drawn at any size.
  """
  cover = opacities * np.trace(covariances, axis1=1, axis2=2)
  order = np.sort(np.argsort(-cover, kind='stable')[:MOST_SPLATS])
  alpha = np.rint(np.clip(opacities, 0, 1) * 255).astype(np.uint8)
  return {
    'count': len(order),
    'all': len(places),
    'xyz': _packed(places[order], '<f4'),
    'rgba': _packed(np.hstack([colours, alpha[:, None]])[order], 'u1'),
    'diagonal': _packed(covariances[order][:, [0, 1, 2], [0, 1, 2]], '<f4'),
    'mixed': _packed(covariances[order][:, [0, 0, 1], [1, 2, 2]], '<f4'),
    'pixel_rad': pixel_rad,
  }


def view(
  name: str,
  image: UInt8[np.ndarray, 'h w 3'],
  camera2scene: Float[np.ndarray, '3 4'],
  truth: UInt8[np.ndarray, 'h w 3'] | None = None,
) -> dict[str, Any]:
  """A view that the scene was made of.

  Args:
    name: of its file.
    image: sRGB.
    camera2scene: its pose.
    truth: what a camera really sees there; None where that is not known.
  """
  return {
    'name': name,
    'image': _uri(image),
    'truth': None if truth is None else _uri(truth),
    'camera2scene': camera2scene.ravel().tolist(),
  }


def render(
  *,
  title: str,
  made: str,
  next_step: str,
  findings: list[page.Finding],
  fov_deg: float,
  views: list[dict[str, Any]],
  places: Float32[np.ndarray, 'n 3'],
  points: dict[str, Any] | None = None,
  mesh: dict[str, Any] | None = None,
  splats: dict[str, Any] | None = None,
) -> str:
  """The page.

  Args:
    title: of it.
    made: how it was made, and when.
    next_step: what to do next.
    findings: what is to be said of the scene.
    fov_deg: of all views.
    views: from `view`, at least one.
    places: of points, or of cameras where there are none, that tell where to
      look first.
    points: from `points`; None where there are none.
    mesh: from `mesh`, likewise.
    splats: from `splats`, likewise.
  """
  low, high = np.percentile(
    places, [_OUTLIERS_PERCENT, 100 - _OUTLIERS_PERCENT], axis=0
  )
  data = {
    'title': title,
    'made': made,
    'next': next_step,
    'verdict': page.verdict(findings),
    'fov_deg': fov_deg,
    'centre': np.median(places, axis=0).tolist(),
    'size': max(float(np.linalg.norm(high - low)), 1e-3),
    'points': points or _NONE,
    'mesh': mesh or _NONE,
    'splats': splats or _NONE,
    'views': views,
  }
  text = page.render(_TEMPLATE, data)
  return text.replace('/*THREE*/', _THREE.read_text(), 1)
