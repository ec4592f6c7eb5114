"""Pictures in the layouts of 360-degree videos, and files that hold them."""

import fractions
import functools
import pathlib
from typing import Callable, Sequence

import av
import numpy as np

from odin_jax.shared import camera
from preprocessing.procedural import footage, scenes

Maker = Callable[[np.ndarray], np.ndarray]


@functools.cache
def panorama(kind: str = 'unique_room', time_s: float = 0.0) -> np.ndarray:
  """[256, 512, 3]; a procedural world at a time."""
  world = scenes.build_world(
    kind, np.random.default_rng(0), seconds=6.0, texel_per_m=30.0
  )
  return footage.render_panorama(world, time_s, width=512, height=256)


def direction_image(width: int) -> np.ndarray:
  """[width / 2, width, 3]; a panorama whose colours are its directions."""
  centres = camera.pixel_centres(width, width // 2)
  directions = camera.equirect_to_direction(*centres, width, width // 2)
  return np.round((directions + 1) * 127.5).astype(np.uint8)


def shown_directions(image: np.ndarray) -> np.ndarray:
  """[h, w, 3]; the unit directions that colours stand for."""
  directions = image / 127.5 - 1
  return directions / np.linalg.norm(directions, axis=-1, keepdims=True)


def v360(image: np.ndarray, options: str) -> np.ndarray:
  """A picture through FFmpeg's filter between layouts."""
  graph = av.filter.Graph()
  height, width = image.shape[:2]
  nodes = [
    graph.add_buffer(
      width=width,
      height=height,
      format='rgb24',
      time_base=fractions.Fraction(1, 30),
    ),
    graph.add('v360', options),
    graph.add('format', 'rgb24'),
    graph.add('buffersink'),
  ]
  graph.link_nodes(*nodes).configure()
  frame = av.VideoFrame.from_ndarray(image, format='rgb24')
  frame.pts = 0
  graph.push(frame)
  return graph.pull().to_ndarray(format='rgb24')


def eac(image: np.ndarray, width: int = 640, height: int = 360) -> np.ndarray:
  """A panorama as an equi-angular cubemap, by FFmpeg."""
  return v360(image, f'e:eac:interp=cubic:w={width}:h={height}')


def other_eye(image: np.ndarray) -> np.ndarray:
  """What stands in for the right eye's panorama."""
  return np.roll(image, 4, axis=1)


def front(image: np.ndarray) -> np.ndarray:
  """The front half of a panorama."""
  width = image.shape[1]
  return image[:, width // 4 : 3 * width // 4]


def _padded(image: np.ndarray) -> np.ndarray:
  output = np.zeros_like(image)
  width = image.shape[1]
  output[:, width // 4 : 3 * width // 4] = front(image)
  return output


def _packed(view: Callable[[np.ndarray], np.ndarray], axis: int) -> Maker:
  return lambda image: np.concatenate(
    [view(image), view(other_eye(image))], axis=axis
  )


# Makers of every layout that content tells, by name, from a panorama.
MAKERS: dict[str, Maker] = {
  'equirectangular': np.copy,
  'equirectangular-tb': _packed(np.copy, 0),
  'equirectangular-sbs': _packed(np.copy, 1),
  'eac': eac,
  'eac-tb': _packed(eac, 0),
  'vr180-tb': _packed(front, 0),
  'vr180-sbs': _packed(front, 1),
  'vr180-padded': _padded,
}


def write_video(
  path: pathlib.Path,
  images: Sequence[np.ndarray],
  *,
  rate: int = 30,
  options: dict[str, str] | None = None,
  muxer: dict[str, str] | None = None,
  rotation: tuple[int, bool] | None = None,
) -> None:
  """Encodes pictures as H.264.

  Args:
    path: to write.
    images: of even width and height.
    rate: frames per second.
    options: of the encoder.
    muxer: options of the container.
    rotation: degrees to turn it by when it is shown, and whether to mirror it.
  """
  with av.open(str(path), 'w', options=muxer or {}) as container:
    stream = container.add_stream('libx264', rate=rate)
    stream.height, stream.width = images[0].shape[:2]
    stream.pix_fmt = 'yuv420p'
    stream.options = options or {}
    if rotation is not None:
      stream.set_display_rotation(rotation[0], hflip=rotation[1])
    for image in images:
      frame = av.VideoFrame.from_ndarray(image, format='rgb24')
      container.mux(stream.encode(frame))
    container.mux(stream.encode())
