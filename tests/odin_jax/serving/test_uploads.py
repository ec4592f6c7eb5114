"""What people send: received up to a limit, and known to be an image."""

import asyncio
import io
import struct
import zlib

import cv2
import numpy as np
from PIL import Image
import pytest

from odin_jax.serving import image_check, settings, uploads
from odin_jax.shared import errors
from tests.helpers import served

USUAL = settings.Settings()


@pytest.mark.parametrize(
  'name,shown,file',
  [
    ('photo.JPG', 'photo.JPG', 'input.jpg'),
    ('../../etc/passwd', 'passwd', 'input'),
    ('C:\\temp\\a b.png', 'a b.png', 'input.png'),
    ('.bashrc', 'bashrc', 'input'),
    ('a\n\x00\u202eb.webp', 'ab.webp', 'input.webp'),
    ('', 'image', 'input'),
    ('..', 'image', 'input'),
    ('x' * 500 + '.tiff', 'x' * 75 + '.tiff', 'input.tiff'),
    ('evil.html', 'evil.html', 'input'),
  ],
)
def test_names_are_made_safe(name, shown, file):
  assert uploads.safe_name(name) == shown
  assert uploads.file_name(uploads.safe_name(name)) == file


def test_no_more_is_read_than_may_be_sent(tmp_path):
  read = []

  async def chunks(count):
    for _ in range(count):
      read.append(1)
      yield bytes(1000)

  path = tmp_path / 'input'
  asyncio.run(uploads.receive(chunks(3), path, 3000))
  assert path.stat().st_size == 3000
  read.clear()
  with pytest.raises(uploads.TooLargeError, match='more than 0.003 MB'):
    asyncio.run(uploads.receive(chunks(10**6), path, 3000))
  assert len(read) == 4
  with pytest.raises(errors.UserError, match='is empty'):
    asyncio.run(uploads.receive(chunks(0), path, 3000))


def bomb(width, height):
  """A PNG whose header promises many pixels, in few bytes."""

  def chunk(kind, data):
    checksum = zlib.crc32(kind + data)
    return (
      struct.pack('>I', len(data)) + kind + data + struct.pack('>I', checksum)
    )

  header = struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, 0)
  rows = zlib.compress(bytes(1000))
  return b'\x89PNG\r\n\x1a\n' + b''.join(
    [chunk(b'IHDR', header), chunk(b'IDAT', rows), chunk(b'IEND', b'')]
  )


def animation():
  file = io.BytesIO()
  frames = [Image.new('L', (20, 20), level) for level in (0, 255)]
  frames[0].save(file, 'GIF', save_all=True, append_images=frames[1:])
  return file.getvalue()


@pytest.mark.parametrize(
  'content,words',
  [
    (b'no image', 'cannot be read as an image'),
    (served.image()[:-100], 'damaged or not whole'),
    (bomb(2**15, 2**15), 'more pixels than 134 million'),
    (bomb(2000, 2000), 'more than the 1 million that this server takes'),
    (animation(), 'holds 2 pictures'),
    (b'<svg onload="alert(1)"/>', 'is SVG'),
  ],
)
def test_what_is_no_image_of_fair_size_is_refused(tmp_path, content, words):
  path = tmp_path / 'input'
  path.write_bytes(content)
  thumbnail = tmp_path / 'thumbnail.jpg'
  with pytest.raises(errors.UserError, match=words):
    image_check.check(
      path, thumbnail, most_pixels=10**6, panorama=None, fov_deg=None
    )
  assert not thumbnail.exists()


def test_an_image_is_checked_in_a_process_of_its_own(tmp_path):
  path, thumbnail = tmp_path / 'input', tmp_path / 'thumbnail.jpg'
  image = np.zeros((500, 1000, 3), np.uint8)
  image[:, 500:] = 255
  path.write_bytes(cv2.imencode('.png', image)[1].tobytes())
  wanted = settings.Settings(panorama=True, fov_deg=70.0)

  async def both():
    facts = await uploads.check(path, thumbnail, wanted, 10**6)
    path.write_bytes(b'')
    with pytest.raises(errors.UserError) as refusal:
      await uploads.check(path, thumbnail, wanted, 10**6)
    return facts, str(refusal.value)

  facts, refusal = asyncio.run(both())
  assert facts == {
    'width': 1000,
    'height': 500,
    'fov_deg': 70.0,
    'fov_from': 'flag',
    'is_panorama': True,
  }
  small = cv2.imread(str(thumbnail))
  assert small.shape == (240, 480, 3)
  assert small[:, :200].max() < 30 and small[:, 280:].min() > 220
  # The name is of the file, and nothing tells where it is.
  assert (
    refusal.startswith('input: is an empty') and str(tmp_path) not in refusal
  )
