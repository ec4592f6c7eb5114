"""Panoramas of a procedural world as records, with true poses and distances."""

from typing import Iterator, Sequence

import numpy as np

from odin_jax.shared import camera, depth_png, panorama_schema, schema
from preprocessing.procedural import footage, raycaster, scenes
from preprocessing.views import panorama_records
from preprocessing.writing import jpeg


def of_world(
  world: scenes.World,
  video_id: str,
  *,
  times_s: Sequence[float],
  splits: Sequence[str],
  unit_m: float,
  width_px: int,
  map_width_px: int,
) -> Iterator[schema.Record]:
  """A record of every frame of a walk.

  Args:
    world: what is seen.
    video_id: of the world.
    times_s: of the frames.
    splits: of the frames.
    unit_m: metres per scene unit.
    width_px: of the panoramas.
    map_width_px: of their maps of true distance.
  """
  height_px = width_px // 2
  map_height_px = map_width_px // panorama_schema.MAP_ASPECT
  rays = raycaster.panorama_rays(map_width_px, map_height_px)
  mask = panorama_records.encode_mask(
    np.zeros((map_height_px, map_width_px), bool)
  )
  for time_s, split in zip(times_s, splits, strict=True):
    frame2world = world.walk.frame2world(time_s)
    turned = raycaster.rotate(frame2world[:, :3], rays)
    hits = world.scene.cast(frame2world[:, 3], turned, time_s)
    # As of a video: nobody can tell how far away the sky is, or what moves.
    scene = world.scene
    known = ~(scene.surface_moves | scene.surface_is_backdrop)[hits.surface]
    distance = np.where(known, hits.distance / unit_m, np.inf)
    picture = footage.render_panorama(
      world, time_s, width=width_px, height=height_px
    )
    yield {
      'image': jpeg.encode(picture),
      'width_px': width_px,
      'height_px': height_px,
      'frame2scene': camera.rescale(frame2world, 1 / unit_m),
      'time_s': time_s,
      'video_id': video_id,
      'split': split,
      'scene_id': 0,
      'distance': depth_png.encode(distance),
      'mask': mask,
      'matcher': 'procedural',
    }
