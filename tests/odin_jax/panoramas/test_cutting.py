"""Views of panoramas against a slow oracle; seam and poles."""

import cv2
import numpy as np
import pytest

from odin_jax.panoramas import choice, cutting
from odin_jax.shared import camera

WIDTH, HEIGHT, SIZE = 1024, 512, 64
# The oracle takes so many samples along the side of a pixel.
FINER = 12


@pytest.fixture(scope='module')
def panorama():
  """Noise of all scales down to the pixel, continued across the seam."""
  generator = np.random.default_rng(0)
  image = np.zeros((HEIGHT, WIDTH, 3), np.float32)
  for octave in range(8):
    shape = (HEIGHT >> octave, WIDTH >> octave)
    noise = generator.normal(0, 14, (*shape, 3)).astype(np.float32)
    image += np.repeat(np.repeat(noise, 1 << octave, 0), 1 << octave, 1)
  image = np.clip(image + 128, 0, 255).astype(np.uint8)
  jpeg = cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, 100])[1]
  return jpeg.tobytes(), cv2.imdecode(jpeg, cv2.IMREAD_COLOR)[..., ::-1]


def a_view(yaw_deg, pitch_deg, roll_deg=0.0, fov_deg=90.0):
  turn = camera.view2frame_rotation(yaw_deg, pitch_deg)
  roll = choice.rotation_z(np.deg2rad(roll_deg))
  return cutting.View(turn @ roll, fov_deg)


def sampled(image, view, finer):
  """The nearest pixels at `finer` x `finer` places in every pixel, averaged."""
  rays = camera.view_rays(view.fov_deg, SIZE * finer) @ view.view2frame.T
  u, v = camera.direction_to_equirect(rays, WIDTH, HEIGHT)
  samples = image[np.minimum(v.astype(int), HEIGHT - 1), u.astype(int) % WIDTH]
  blocks = samples.reshape(SIZE, finer, SIZE, finer, 3)
  return blocks.mean(axis=(1, 3), dtype=np.float64)


@pytest.mark.parametrize(
  'angles',
  [(0.0, 0.0), (180.0, 5.0), (-178.0, -10.0)]
  + [(30.0, 88.0), (70.0, -80.0), (20.0, 5.0, 30.0)],
)
def test_a_view_is_the_average_over_its_pixels(panorama, angles):
  jpeg, image = panorama
  view = a_view(*angles)
  divisor = cutting.reduction(WIDTH, HEIGHT, SIZE / 2)
  assert divisor == 2
  cut = cutting.decode(jpeg, WIDTH, HEIGHT, divisor).cut(view, SIZE)
  truth = sampled(image, view, FINER)
  error = np.abs(cut - truth).mean()
  aliased = np.abs(sampled(image, view, 1) - truth).mean()
  assert error < 2.5
  assert error < aliased / 4


def test_a_view_across_the_seam_is_that_of_the_turned_panorama(panorama):
  _, image = panorama
  turned = np.roll(image, WIDTH // 2, axis=1)

  def cut(pixels, yaw_deg):
    png = cv2.imencode('.png', pixels[..., ::-1])[1].tobytes()
    return cutting.decode(png, WIDTH, HEIGHT, 1).cut(
      a_view(yaw_deg, 20.0), SIZE
    )

  difference = cut(image, 180.0).astype(int) - cut(turned, 0.0)
  # Angles are float32.
  assert np.abs(difference).max() <= 2


def test_rays_are_those_of_the_conventions():
  view = a_view(37.0, 12.0, 8.0, 75.0)
  rays = camera.view_rays(75.0, 9) @ view.view2frame.T
  np.testing.assert_allclose(view.rays(9), rays, atol=1e-6)


@pytest.mark.parametrize(
  'width, height, px_per_rad, divisor',
  [(1024, 512, 32.0, 2), (1024, 512, 100.0, 1), (4096, 2048, 32.0, 8)]
  # Where the decoder would round the size up, all is decoded.
  + [(1022, 511, 32.0, 1), (640, 322, 16.0, 2)],
)
def test_a_panorama_stays_twice_as_fine_as_its_views(
  width, height, px_per_rad, divisor
):
  assert cutting.reduction(width, height, px_per_rad) == divisor


def test_a_picture_of_another_size_is_refused(panorama):
  with pytest.raises(ValueError, match='no JPEG of 512 x 256 px'):
    cutting.decode(panorama[0], 512, 256, 1)
  with pytest.raises(ValueError, match='none'):
    cutting.decode(b'no picture', 512, 256, 1)
