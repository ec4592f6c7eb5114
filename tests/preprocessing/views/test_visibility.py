"""Views show only what the camera saw."""

import numpy as np
import pytest

from preprocessing import panorama
from preprocessing.reading import projections
from preprocessing.views import alignment, visibility


@pytest.mark.parametrize('width_px', [512, 1024])
def test_views_stay_inside_what_a_half_sphere_camera_saw(width_px):
  layout = projections.NAMES['vr180']
  front = np.full((width_px // 2, width_px // 2, 3), 255, np.uint8)
  picture = projections.to_equirectangular(front, layout, width_px)
  assert (picture == 0).mean() == pytest.approx(0.5, abs=0.01)
  is_visible = visibility.of_views(layout, fov_deg=90.0, width_px=width_px)
  accepted = []
  for yaw_deg in np.arange(-60.0, 60.1, 1.5):
    for pitch_deg in (-16.0, 0.0, 5.0, 16.0):
      angles = alignment.Angles(float(yaw_deg), pitch_deg)
      if is_visible(angles):
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


def test_a_camera_that_saw_all_is_not_asked():
  layout = projections.NAMES['equirectangular']
  assert visibility.of_views(layout, fov_deg=90.0, width_px=512) is None
