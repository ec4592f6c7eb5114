"""Views show what the camera saw, and little of what is masked."""

import math

import numpy as np
import pytest

from preprocessing import panorama
from preprocessing.reading import projections
from preprocessing.solving import masks
from preprocessing.views import alignment, visibility
from preprocessing.writing import rejections
from tests.helpers import default_rules

_ALL_AROUND = projections.NAMES['equirectangular']


def nothing(width_px=512):
  return masks.Mask(cells=np.zeros((width_px // 2, width_px), bool))


def sight(mask, layout=_ALL_AROUND, **rules):
  rules = default_rules.view_rules(**rules)
  return visibility.Sight(layout, mask, rules)


@pytest.mark.parametrize('width_px', [512, 1024])
def test_views_stay_inside_what_a_half_sphere_camera_saw(width_px):
  layout = projections.NAMES['vr180']
  front = np.full((width_px // 2, width_px // 2, 3), 255, np.uint8)
  picture = projections.to_equirectangular(front, layout, width_px)
  assert (picture == 0).mean() == pytest.approx(0.5, abs=0.01)
  seen = sight(nothing(width_px), layout, fov_deg=90.0)
  accepted = []
  for yaw_deg in np.arange(-60.0, 60.1, 1.5):
    for pitch_deg in (-16.0, 0.0, 5.0, 16.0):
      angles = alignment.Angles(float(yaw_deg), pitch_deg)
      reason = seen.refuse(angles)
      assert reason in (None, rejections.Reason.NOT_SEEN)
      if reason is None:
        accepted.append(yaw_deg)
        view = panorama.cut_view(
          picture,
          yaw_deg=angles.yaw_deg,
          pitch_deg=angles.pitch_deg,
          fov_deg=90.0,
          size_px=128,
        )
        assert view.min() > 250
  # Nearly all that fits is accepted: at pitch 0 up to 45 degrees.
  assert 42 <= max(accepted) <= 45
  assert -45 <= min(accepted) <= -42


def test_without_a_mask_every_view_is_scene():
  seen = sight(nothing(), max_masked_share=0.0)
  for angles in (alignment.Angles(0.0, -85.0), alignment.Angles(170.0, 0.0)):
    assert seen.unmasked_share(angles) == 1.0
    assert seen.refuse(angles) is None


def masked_pixels(mask, angles, fov_deg, size_px):
  """Pixel by pixel, with sines and cosines: the slow oracle."""
  height, width = mask.cells.shape
  yaw, pitch = math.radians(angles.yaw_deg), math.radians(angles.pitch_deg)
  reach = math.tan(math.radians(fov_deg) / 2)
  count = 0
  for row in range(size_px):
    for column in range(size_px):
      x = ((column + 0.5) / size_px * 2 - 1) * reach
      y = ((row + 0.5) / size_px * 2 - 1) * reach
      # Up by the pitch about the view's x, then right by the yaw about y.
      y, z = (
        y * math.cos(pitch) - math.sin(pitch),
        y * math.sin(pitch) + math.cos(pitch),
      )
      x, z = (
        x * math.cos(yaw) + z * math.sin(yaw),
        z * math.cos(yaw) - x * math.sin(yaw),
      )
      longitude, latitude = math.atan2(x, z), math.atan2(y, math.hypot(x, z))
      u = int((longitude / (2 * math.pi) + 0.5) * width) % width
      v = min(int((latitude / math.pi + 0.5) * height), height - 1)
      count += mask.cells[v, u]
  return count / size_px**2


@pytest.mark.parametrize(
  'yaw_deg, pitch_deg, fov_deg',
  [
    (170.0, 3.0, 90.0),
    (-140.0, -16.0, 90.0),
    (90.0, 10.0, 100.0),
    (0.0, -60.0, 75.0),
    (0.0, 10.0, 60.0),
  ],
)
def test_the_share_is_that_of_the_view_s_pixels(yaw_deg, pitch_deg, fov_deg):
  mask = nothing()
  # A holder behind the camera, over the seam, and the stand at the nadir.
  mask.cells[100:, :40] = mask.cells[100:, -70:] = mask.cells[230:] = True
  angles = alignment.Angles(yaw_deg, pitch_deg)
  seen = sight(mask, fov_deg=fov_deg, max_masked_share=0.2)
  expected = masked_pixels(mask, angles, fov_deg, 200)
  assert 1 - seen.unmasked_share(angles) == pytest.approx(expected, abs=0.005)
  # And what cutting makes of a picture of the mask.
  picture = np.where(mask.cells, 255, 0).astype(np.uint8)
  view = panorama.cut_view(
    np.repeat(picture[..., None], 3, axis=2),
    yaw_deg=yaw_deg,
    pitch_deg=pitch_deg,
    fov_deg=fov_deg,
    size_px=128,
  )
  assert view.mean() / 255 == pytest.approx(expected, abs=0.01)
  masked = rejections.Reason.MASKED if expected > 0.2 else None
  assert seen.refuse(angles) is masked


@pytest.mark.parametrize('rows', [(0, 20), (100, 128), (0, 10, 110, 128), ()])
def test_views_of_what_no_mask_touches_are_free_without_a_count(rows):
  cells = np.zeros((128, 256), bool)
  for first, end in zip(rows[::2], rows[1::2]):
    # One column would do.
    cells[first:end, 40:90] = True
  mask = masks.Mask(cells=cells)
  seen = sight(mask, fov_deg=70.0)
  rng = np.random.default_rng(0)
  pitches_deg = [-90.0, 90.0, *rng.uniform(-90, 90, 60)]
  free = 0
  for pitch_deg in pitches_deg:
    angles = alignment.Angles(float(rng.uniform(-180, 180)), float(pitch_deg))
    directions = panorama.view_directions(
      yaw_deg=angles.yaw_deg,
      pitch_deg=angles.pitch_deg,
      fov_deg=70.0,
      size_px=64,
    )
    assert seen.unmasked_share(angles) == 1 - mask.holds(directions).mean()
    free += seen._is_free(angles)
  assert 10 < free < 62
