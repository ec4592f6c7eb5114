"""Depth of views in files: to look at, and to compute with.

    depth/000.png           inverse depth in colours, near is bright; black where
                            it is not believed
    depth_maps/000.png      one channel of 16 bits: depth divided by a scale
                            factor, one for all views; 0 where it is not known
    agreeing_views/000.png  one channel of 16 bits: how many other views agree
                            on that depth; 0 where it is not known

Depth is what `odin_jax.geometry.lenses` means by it, at pixel centres: along the
optical axis of a perspective view, the distance in a panorama. nerfstudio reads
such maps, the nearest pixel where views are larger, and calls the factor
`depth_unit_scale_factor`; in steps of one length they are not those of records
(`odin_jax.shared.depth_png`).
"""

import pathlib

import cv2
from jaxtyping import Float32, UInt8, UInt16
import numpy as np

from odin_jax.geometry import fusion
from odin_jax.shared import image_files

_FOLDERS = {
  'depth_file': 'depth',
  'depth_map_file': 'depth_maps',
  'agreeing_views_file': 'agreeing_views',
}
# Of the usual range, which ends at 10, the factor is 0.001, as nerfstudio takes
# it unless told. Nothing beyond the range is believed; 16 bits hold 6.5 of it.
_STEPS_OF_RANGE = 10_000
_LARGEST = 65535


def scale_factor(max_depth: float) -> float:
  """Scene units that 1 stands for, of the farthest depth searched for."""
  return max_depth / _STEPS_OF_RANGE


def write(
  folder: pathlib.Path, result: fusion.Reconstruction, scale: float
) -> list[dict[str, str]]:
  """Writes the files of every view, and removes those of an earlier run.

  Args:
    folder: to write them in.
    result: has the depths.
    scale: scene units that 1 stands for.

  Returns:
    of each view its `depth_file` (the colours), `depth_map_file` and
    `agreeing_views_file`, relative to the folder.
  """
  for name in _FOLDERS.values():
    (folder / name).mkdir(exist_ok=True)
    for old in (folder / name).glob('*.png'):
      old.unlink()
  inverse_depths = result.inverse_depths
  believed = inverse_depths[inverse_depths > 0]
  brightest = float(np.percentile(believed, 98)) if believed.size else 1.0
  digits = max(3, len(str(len(inverse_depths) - 1)))
  written = []
  for index, inverse in enumerate(inverse_depths):
    depth = encode(inverse, scale)
    agreeing = np.where(depth > 0, result.num_agreeing[index], np.uint16(0))
    names = {
      key: f'{name}/{index:0{digits}d}.png' for key, name in _FOLDERS.items()
    }
    image_files.write(
      folder / names['depth_file'], _coloured(inverse, brightest)
    )
    image_files.write(folder / names['depth_map_file'], depth)
    image_files.write(folder / names['agreeing_views_file'], agreeing)
    written.append(names)
  return written


def encode(
  inverse_depth: Float32[np.ndarray, 'h w'], scale: float
) -> UInt16[np.ndarray, 'h w']:
  """Depth in multiples of `scale`, rounded.

  Args:
    inverse_depth: 0 where it is not known.
    scale: scene units that 1 stands for.

  Returns:
    0 where it is not known, or not within what 16 bits hold.
  """
  known = inverse_depth > 0
  depth = 1 / np.where(known, inverse_depth, np.float32(1))
  multiples = np.rint(depth.astype(np.float64) / scale)
  known &= multiples <= _LARGEST
  return np.where(known, multiples, 0).astype(np.uint16)


def _coloured(
  inverse_depth: Float32[np.ndarray, 'h w'], brightest: float
) -> UInt8[np.ndarray, 'h w 3']:
  level = np.clip(inverse_depth / brightest, 0, 1) * 255
  image = cv2.applyColorMap(level.astype(np.uint8), cv2.COLORMAP_TURBO)
  image[inverse_depth == 0] = 0
  # OpenCV's colour maps are BGR.
  return image[..., ::-1]
