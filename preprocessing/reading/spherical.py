"""What a file says of its projection: spherical metadata, versions 1 and 2.

FFmpeg reads most of it, from MP4, MOV and Matroska, and hands it on with every
decoded frame: projection, pose and bounds (`SPHERICAL`, AVSphericalMapping in
libavutil/spherical.h) and packing of the eyes (`STEREO3D`, AVStereo3D). What
it leaves out of MP4 and MOV is read here from the boxes themselves: the
cropping in the XML of version 1, and that there is a mesh (`mshp`, or YouTube's
`ytmp`), which says neither EAC nor VR180 by name.

Version 1:
https://github.com/google/spatial-media/blob/master/docs/spherical-video-rfc.md
Version 2:
https://github.com/google/spatial-media/blob/master/docs/spherical-video-v2-rfc.md
"""

import dataclasses
import os
import re
import struct
from typing import BinaryIO, Iterator

import av

from preprocessing.reading import projections

# projection, yaw, pitch, roll, left, top, right, bottom, padding.
_MAPPING = struct.Struct('=i3i5I')
# AVSphericalProjection -> name; 2 is a part of an equirectangular one.
_PROJECTIONS = {
  0: 'equirectangular',
  1: 'cubemap',
  2: 'equirectangular',
  3: 'half equirectangular',
  4: 'rectilinear',
  5: 'fisheye',
}
# AVStereo3DType -> mode.
_STEREO = {0: 'mono', 1: 'left-right', 2: 'top-bottom'}
_BOUND = 2.0**-32
_ANGLE_DEG = 2.0**-16

_CONTAINER_BOXES = b'moov trak mdia minf stbl sv3d proj'.split()
# Bytes of a box before the boxes inside it.
_STSD_HEADER, _VISUAL_ENTRY_HEADER = 8, 78
_MESH_BOXES = (b'mshp', b'ytmp')
_XML_UUID = bytes.fromhex('ffcc8263f8554a938814587a02521fdd')
_MAX_XML_BYTES = 1 << 16
# A sound file has fewer.
_MAX_BOXES = 20_000
_CROP_TAG = re.compile(
  rb'<GSpherical:(FullPano|CroppedArea)(Image)?(Left|Top|Width|Height)Pixels>'
  rb'\s*(\d{1,6})\s*<'
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metadata:
  """What a file says of itself.

  Attributes:
    layout: None where nothing is said, or nothing that is known here.
    stereo: packing of the eyes, also where no projection is named; or None.
    unknown: a projection that is not known here, or empty.
    mesh: the file maps its frames by a mesh, which is not read.
  """

  layout: projections.Layout | None = None
  stereo: str | None = None
  unknown: str = ''
  mesh: bool = False


def read(path: str | os.PathLike[str], frame: av.VideoFrame) -> Metadata:
  """Reads the metadata of a video.

  Args:
    path: the file.
    frame: any decoded frame of it.
  """
  side_data = {item.type.name: bytes(item) for item in frame.side_data}
  stereo = None
  if 'STEREO3D' in side_data:
    (mode,) = struct.unpack_from('=i', side_data['STEREO3D'])
    stereo = _STEREO.get(mode)
  with open(path, 'rb') as file:
    boxes = list(_boxes(file))
  mesh = any(kind in _MESH_BOXES for kind, _ in boxes)
  if 'SPHERICAL' not in side_data:
    return Metadata(stereo=stereo, mesh=mesh)
  layout, unknown = _mapping(side_data['SPHERICAL'], stereo or 'mono')
  xml = next((content for kind, content in boxes if kind == b'uuid'), b'')
  if layout is not None and layout.full_sphere:
    layout = dataclasses.replace(layout, **_cropping(xml))
  return Metadata(layout=layout, stereo=stereo, unknown=unknown, mesh=mesh)


def _mapping(data: bytes, stereo: str) -> tuple[projections.Layout | None, str]:
  """Layout of an AVSphericalMapping, or the name of its projection.

  FFmpeg refuses files whose bounds leave nothing.
  """
  number, yaw, pitch, roll, *bounds = _MAPPING.unpack(
    data[: _MAPPING.size].ljust(_MAPPING.size, b'\0')
  )
  name = _PROJECTIONS.get(number, f'number {number}')
  pose = dict(
    yaw_deg=yaw * _ANGLE_DEG,
    pitch_deg=pitch * _ANGLE_DEG,
    roll_deg=roll * _ANGLE_DEG,
  )
  if name == 'half equirectangular':
    borders = dict(left=0.25, right=0.25)
  elif name == 'equirectangular':
    names = ('left', 'top', 'right', 'bottom')
    borders = dict(
      zip(names, (bound * _BOUND for bound in bounds), strict=False)
    )
  else:
    return None, name
  return projections.Layout(stereo=stereo, **borders, **pose), ''


def _cropping(xml: bytes) -> dict[str, float]:
  """Borders of a layout, from the XML of version 1; none where it is unsound.

  FFmpeg is followed in that tags are looked for, and the XML is not parsed.
  """
  pixels = {
    (group, side): int(value)
    for group, _, side, value in _CROP_TAG.findall(xml)
  }
  borders = {}
  for first, last, offset, length in (
    ('left', 'right', b'Left', b'Width'),
    ('top', 'bottom', b'Top', b'Height'),
  ):
    full = pixels.get((b'FullPano', length), 0)
    start = pixels.get((b'CroppedArea', offset), 0)
    size = pixels.get((b'CroppedArea', length), full)
    if size > 0 and start + size <= full:
      borders[first] = start / full
      borders[last] = (full - start - size) / full
  return borders


def _boxes(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
  """Kind of every box that matters here, and the XML of version 1."""
  end = file.seek(0, os.SEEK_END)
  # (first byte, end, kind of the box around).
  stack = [(0, end, b'')]
  for _ in range(_MAX_BOXES):
    if not stack:
      return
    start, end, parent = stack.pop()
    header = _header(file, start, end)
    if header is None:
      continue
    kind, body, box_end = header
    stack.append((box_end, end, parent))
    if kind in _MESH_BOXES:
      yield kind, b''
    elif kind == b'uuid' and box_end - body >= len(_XML_UUID):
      file.seek(body)
      content = file.read(min(box_end - body, _MAX_XML_BYTES))
      if content.startswith(_XML_UUID):
        yield kind, content
    elif parent == b'stsd':
      stack.append((body + _VISUAL_ENTRY_HEADER, box_end, kind))
    elif kind == b'stsd':
      stack.append((body + _STSD_HEADER, box_end, kind))
    elif kind in _CONTAINER_BOXES:
      stack.append((body, box_end, kind))


def _header(
  file: BinaryIO, start: int, end: int
) -> tuple[bytes, int, int] | None:
  """(kind, first byte of the body, end) of a box; None where none fits."""
  if start + 8 > end:
    return None
  file.seek(start)
  data = file.read(16)
  size, kind = struct.unpack_from('>I4s', data)
  body = start + 8
  if size == 1 and len(data) == 16:
    (size,) = struct.unpack_from('>Q', data, 8)
    body = start + 16
  elif size == 0:
    size = end - start
  if not body <= start + size <= end:
    return None
  return kind, body, start + size
