"""Depth of square views whose poses are known, from a DUSt3R network.

Of a pair of views the network gives pointmaps up to one scale, in the axes of
the first (`dust3r_network`). With known poses that scale is a number s per
pair: a point P that view two shows along its ray r stands at

  y = R s P + t  in the axes of view two,  r x y = 0,

of which each of its pixels says 1 / s, linear in what the network errs, the
better the more t moves it. A pair whose pixels do not agree on one scale, or
that t hardly moves, is not believed. A view's depth is the
median over the pairs that it is the first of. The networks for 512 pixels were
trained on 4:3 and wider, so of a square view its middle rows are looked at.
"""

import dataclasses
from typing import Iterable, Sequence

import cv2
from jaxtyping import Bool, Float, Float32, UInt8
import numpy as np

from odin_jax.shared import camera
from preprocessing.matchers import dust3r_network, pointmaps

# Far fewer points than this mean nothing.
_MIN_POINTS = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rules:
  """What is looked at, and what is believed; `RULES` has the usual values.

  Attributes:
    size_px: side of the views.
    height_px: rows of them that are looked at; sides and rows are multiples of
      the network's patch size.
    min_confidence: of a scene point; the network's start at 1.
    max_error_px: how far a point of view two may lie off its pixel.
      and the least by which t moves those of a pair, in the median.
    min_agreement: smallest share of a pair's confident points that do not.
  """

  size_px: int = 512
  height_px: int = 384
  min_confidence: float = 1.5
  max_error_px: float = 5.0
  min_agreement: float = 0.5


RULES = Rules()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Depth:
  """Depth of one view, along its optical axis.

  Attributes:
    depth: in the unit of the poses; 0 where it is not known.
    num_pairs: pairs that were believed.
  """

  depth: Float32[np.ndarray, 's s']
  num_pairs: int


def depths(
  network: dust3r_network.Network,
  images: UInt8[np.ndarray, 'n s s 3'],
  camera2scene: Float[np.ndarray, 'n 3 4'],
  fov_deg: float,
  others: Iterable[Sequence[int]],
  rules: Rules,
) -> list[Depth]:
  """Depths of all views.

  Args:
    network: the network.
    images: views of `rules.size_px`.
    camera2scene: their poses.
    fov_deg: full field of view of all of them.
    others: of each view those that it is paired with, at other places.
    rules: see there.
  """
  margin = (rules.size_px - rules.height_px) // 2
  rows = slice(margin, margin + rules.height_px)
  tokens = network.encode(np.ascontiguousarray(images[:, rows]))
  found = []
  for index, partners in enumerate(others):
    pairs = [(tokens[index], tokens[other]) for other in partners]
    maps = []
    for other, pair in zip(partners, network.decode(pairs), strict=True):
      pose = camera.relative(camera2scene[other], camera2scene[index])
      scale = scale_of_pair(pair, pose, fov_deg, rules)
      if scale is not None:
        z = pair.points_one[..., 2] * scale
        good = (pair.confidence_one >= rules.min_confidence) & (z > 0)
        maps.append(np.where(good, z, np.nan))
    depth = np.zeros((rules.size_px, rules.size_px), np.float32)
    if maps:
      depth[rows] = _median(np.stack(maps))
    found.append(Depth(depth=depth, num_pairs=len(maps)))
  return found


def _median(maps: Float[np.ndarray, 'p h w']) -> Float[np.ndarray, 'h w']:
  """Of what is known of each pixel; 0 where nothing is."""
  known = np.isfinite(maps).any(axis=0)
  median = np.zeros(maps.shape[1:])
  median[known] = np.nanmedian(maps[:, known], axis=0)
  return median


def scale_of_pair(
  maps: dust3r_network.PairMaps,
  one2two: Float[np.ndarray, '3 4'],
  fov_deg: float,
  rules: Rules,
) -> float | None:
  """Units of the pose per unit of the pointmaps; None where none fits.

  Args:
    maps: of the pair.
    one2two: pose that takes points in the axes of view one to those of two.
    fov_deg: horizontal field of view of view two.
    rules: what is believed.
  """
  height, width = maps.confidence_two.shape
  matrix = pointmaps.intrinsics(fov_deg, width, height)
  u, v = camera.pixel_centres(width, height)
  pixels = np.stack([u, v], -1)
  good = (maps.confidence_two >= rules.min_confidence) & np.isfinite(
    maps.points_two
  ).all(-1)
  if good.sum() < _MIN_POINTS:
    return None
  pixels, points = pixels[good], maps.points_two[good].astype(np.float64)
  rays = cv2.convertPointsToHomogeneous(pixels)[:, 0] @ np.linalg.inv(matrix).T
  rays /= np.linalg.norm(rays, axis=1, keepdims=True)
  turned = points @ one2two[:, :3].T
  across, moved = np.cross(rays, turned), -np.cross(rays, one2two[:, 3])
  leverage = np.linalg.norm(moved, axis=1)
  tells = leverage > 0
  if not tells.any():
    return None
  inverse = _weighted_median(
    (across * moved).sum(1)[tells] / leverage[tells] ** 2,
    leverage[tells] / np.maximum(np.linalg.norm(turned[tells], axis=1), 1e-12),
  )
  if not inverse > 0:
    return None
  scale = 1 / inverse
  if _moved_px(turned * scale, one2two[:, 3], matrix) < rules.max_error_px:
    return None
  agree = _agree(turned * scale + one2two[:, 3], pixels, matrix, rules)
  return scale if agree.mean() >= rules.min_agreement else None


def _moved_px(
  turned: Float[np.ndarray, 'n 3'],
  translation: Float[np.ndarray, '3'],
  matrix: Float[np.ndarray, '3 3'],
) -> float:
  """By how much a translation moves points, median."""
  (before, _), (after, _) = (
    camera.project(points, matrix) for points in (turned, turned + translation)
  )
  return float(np.median(np.linalg.norm(after - before, axis=1)))


def _agree(
  points: Float[np.ndarray, 'n 3'],
  pixels: Float[np.ndarray, 'n 2'],
  matrix: Float[np.ndarray, '3 3'],
  rules: Rules,
) -> Bool[np.ndarray, 'n']:
  """Which points view two shows where they belong."""
  projected, depth = camera.project(points, matrix)
  error_px = np.linalg.norm(projected - pixels, axis=1)
  return (depth > 0) & (error_px < rules.max_error_px)


def _weighted_median(
  values: Float[np.ndarray, 'n'], weights: Float[np.ndarray, 'n']
) -> float:
  order = np.argsort(values)
  total = np.cumsum(weights[order])
  return float(values[order][np.searchsorted(total, total[-1] / 2)])
