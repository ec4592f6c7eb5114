"""Boxes of MP4 files that say how a video is projected, and their place."""

import struct

ENTRY_PATH = [b'moov', b'trak', b'mdia', b'minf', b'stbl', b'stsd', b'avc1']
_HEADERS = {b'stsd': 8, b'avc1': 78}
_UUID = bytes.fromhex('ffcc8263f8554a938814587a02521fdd')


def box(kind: bytes, *parts: bytes) -> bytes:
  content = b''.join(parts)
  return struct.pack('>I4s', 8 + len(content), kind) + content


def full_box(kind: bytes, content: bytes) -> bytes:
  return box(kind, b'\0\0\0\0', content)


def sv3d(projection: bytes, pose=(0.0, 0.0, 0.0)) -> bytes:
  angles = struct.pack('>3i', *(int(angle * 2**16) for angle in pose))
  return box(
    b'sv3d',
    full_box(b'svhd', b'test\0'),
    box(b'proj', full_box(b'prhd', angles), projection),
  )


def equi(top=0.0, bottom=0.0, left=0.0, right=0.0) -> bytes:
  bounds = (int(bound * 2**32) for bound in (top, bottom, left, right))
  return full_box(b'equi', struct.pack('>4I', *bounds))


def st3d(mode: int) -> bytes:
  return full_box(b'st3d', bytes([mode]))


def version_1(stereo: str = '', **pixels: int) -> bytes:
  tags = {
    'Spherical': 'true',
    'Stitched': 'true',
    'StitchingSoftware': 'test',
    'ProjectionType': 'equirectangular',
    'InitialViewPitchDegrees': '30',
    **({'StereoMode': stereo} if stereo else {}),
    **{f'{name}Pixels': str(value) for name, value in pixels.items()},
  }
  lines = [
    f'<GSpherical:{name}>{value}</GSpherical:{name}>'
    for name, value in tags.items()
  ]
  xml = (
    '<?xml version="1.0"?><rdf:SphericalVideo xmlns:GSpherical='
    f'"http://ns.google.com/videos/1.0/spherical/">{"".join(lines)}'
    '</rdf:SphericalVideo>'
  )
  return box(b'uuid', _UUID, xml.encode())


def inject(data: bytes, path: list[bytes], payload: bytes) -> bytes:
  """A file with boxes added to the end of one of its boxes."""
  if not path:
    return data + payload
  output, start = b'', 0
  while start < len(data):
    size, kind = struct.unpack_from('>I4s', data, start)
    content = data[start + 8 : start + size]
    if kind == path[0]:
      skip = _HEADERS.get(kind, 0)
      content = content[:skip] + inject(content[skip:], path[1:], payload)
    output += box(kind, content)
    start += size
  return output
