"""The panoramas of a video themselves, as records.

Views of any direction are cut of them when they are read
(`odin_jax.panoramas`), in the same scene units as the pairs beside them.
"""

from typing import Iterator, Mapping, Sequence

import cv2
from jaxtyping import Bool, Float
import numpy as np

from odin_jax.shared import camera, depth_png, panorama_schema, schema
from preprocessing.keyframes import keyframes
from preprocessing.solving import solver
from preprocessing.writing import jpeg

# Columns of the maps of distance and mask: 1.4 degrees, as of 64 px in a view
# of 90.
MAP_WIDTH_PX = 256
# As for the depth of pairs: what fewer frames see rests on one match.
_MIN_FRAMES = 3


def rasterise(
  points_frame: Float[np.ndarray, 'n 3'], width_px: int
) -> Float[np.ndarray, 'h w']:
  """The distance of the nearest point in each cell of an equirectangular map.

  Args:
    points_frame: in the axes of the panorama.
    width_px: of the map.

  Returns:
    along the ray, in the units of the points; inf in cells without any.
  """
  height_px = width_px // panorama_schema.MAP_ASPECT
  u, v = camera.direction_to_equirect(points_frame, width_px, height_px)
  column = u.astype(int) % width_px
  row = np.minimum(v.astype(int), height_px - 1)
  nearest = np.full((height_px, width_px), np.inf)
  np.minimum.at(nearest, (row, column), np.linalg.norm(points_frame, axis=1))
  return nearest


def encode_mask(cells: Bool[np.ndarray, 'h w']) -> bytes:
  """The PNG of what is masked: 255, and 0 elsewhere."""
  return cv2.imencode('.png', cells.astype(np.uint8) * 255)[1].tobytes()


def of_solution(
  video_id: str,
  video_keyframes: keyframes.Keyframes,
  solution: solver.Solution,
  units: Mapping[int, float],
  *,
  splits: Sequence[str],
  matcher: str,
) -> Iterator[schema.Record]:
  """A record of every keyframe whose component gave pairs.

  Args:
    video_id: the video's stem.
    video_keyframes: see there.
    solution: their poses.
    units: scene units per unit of the solution, by component.
    splits: of every keyframe.
    matcher: its name.
  """
  height_px = MAP_WIDTH_PX // panorama_schema.MAP_ASPECT
  mask = encode_mask(solution.mask.resized(MAP_WIDTH_PX, height_px).cells)
  for frame, component in enumerate(solution.component.tolist()):
    if component not in units:
      continue
    unit = units[component]
    frame2scene = solution.frame2scene[frame]
    points = camera.transform(
      camera.inverse(frame2scene),
      solution.points_of_frame(frame, min_frames=_MIN_FRAMES),
    )
    picture = video_keyframes.pictures[frame]
    yield {
      'image': jpeg.encode(picture),
      'width_px': picture.shape[1],
      'height_px': picture.shape[0],
      'frame2scene': camera.rescale(frame2scene, unit),
      'time_s': video_keyframes.times_s[frame],
      'video_id': video_id,
      'split': splits[frame],
      'scene_id': component,
      'distance': depth_png.encode(rasterise(points * unit, MAP_WIDTH_PX)),
      'mask': mask,
      'matcher': matcher,
    }
