"""The record of a panorama: one posed frame of a video, stored once.

Views are cut of it when it is read (`odin_jax.panoramas`), so that a frame
gives any number of pairs. Its maps, of distance and of what is masked, are
equirectangular, twice as wide as high, and of sizes of their own.
"""

from typing import Any, Mapping

from odin_jax.shared import schema

# Below a folder of pairs, that of the panoramas which the pairs are cut from.
FOLDER = 'panoramas'
# Width / height of the maps; the picture may have any.
MAP_ASPECT = 2

FEATURES: dict[str, schema.Feature] = {
  'image': schema.Feature(
    kind='bytes',
    meaning='JPEG, equirectangular, sRGB; its height spans 180 degrees',
  ),
  'width_px': schema.Feature(kind='int', meaning='of the image, even'),
  'height_px': schema.Feature(kind='int', meaning='of the image'),
  'frame2scene': schema.Feature(
    kind='float',
    shape=(3, 4),
    meaning='pose of the panorama in its component, scene units (those of the '
    'pairs of the same video)',
  ),
  'time_s': schema.Feature(kind='float', meaning='time in the video'),
  'video_id': schema.Feature(kind='text', meaning="the video file's stem"),
  'split': schema.Feature(kind='text', meaning='train or test'),
  'scene_id': schema.Feature(kind='int', meaning='component within the video'),
  'distance': schema.Feature(
    kind='bytes',
    encoding='png',
    bits=16,
    aspect=MAP_ASPECT,
    meaning='PNG, grey, 16 bits: distance along the ray of what '
    'stands still, at pixel centres or of the nearest known point in a cell, '
    '2 ** ((value - 32768) / 2048) scene units; 0 = not known '
    '(odin_jax.shared.depth_png)',
  ),
  'mask': schema.Feature(
    kind='bytes',
    encoding='png',
    aspect=MAP_ASPECT,
    meaning='PNG, grey: 255 = never scene (operator, stand, not filmed), 0 = '
    'scene',
  ),
  'matcher': schema.Feature(
    kind='text', meaning='name of the matcher; procedural: true poses'
  ),
}


def _check(record: Mapping[str, Any]) -> None:
  width_px, height_px = record.get('width_px', 2), record.get('height_px', 1)
  if width_px < 2 or width_px % 2 or height_px < 1:
    raise schema.SchemaError(
      f'width_px, height_px: no panorama has {width_px} x {height_px} px'
    )


PANORAMAS = schema.Schema(
  name='odin_panoramas',
  description='Posed panoramas, frames of 360-degree videos.',
  features=FEATURES,
  check=_check,
)
