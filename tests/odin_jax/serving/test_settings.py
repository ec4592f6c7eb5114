"""What fields of a request ask for."""

import numpy as np
import pytest

from odin_jax.geometry import trajectory
from odin_jax.serving import drawn_paths, settings
from odin_jax.shared import errors


def test_fields_become_settings_and_their_cameras():
  usual = settings.parse({}, 64)
  assert usual == settings.Settings()
  np.testing.assert_array_equal(
    settings.camera2scene(usual), trajectory.camera_path('orbit', 16, 0.05)
  )
  fields = {
    'trajectory': 'drawn',
    'num_frames': '5',
    'line': '0,1;1,1.5;',
    'look': 'along',
    'panorama': 'no',
    'fov_deg': '60.5',
    'seed': '3',
  }
  drawn = settings.parse(fields, 64)
  assert (drawn.panorama, drawn.fov_deg, drawn.seed) == (False, 60.5, 3)
  np.testing.assert_array_equal(
    settings.camera2scene(drawn),
    drawn_paths.camera_path([(0.0, 1.0), (1.0, 1.5)], 5, 'along'),
  )
  absent = settings.parse({'panorama': '', 'fov_deg': ''}, 64)
  assert absent.panorama is None and absent.fov_deg is None


@pytest.mark.parametrize(
  'fields,words',
  [
    ({'nothing': '1'}, "'nothing' is no setting"),
    ({'trajectory': '../x'}, "'../x' is none of backward"),
    ({'num_frames': '1'}, 'from 2 to 64'),
    ({'num_frames': '65'}, 'from 2 to 64'),
    ({'num_frames': '9' * 5000}, 'from 2 to 64'),
    ({'num_frames': '٣'}, 'from 2 to 64'),
    ({'num_frames': '1_0'}, 'from 2 to 64'),
    ({'step_length': 'nan'}, 'step_length: give a number'),
    ({'step_length': '0'}, 'step_length: give a number'),
    ({'fov_deg': 'inf'}, 'fov_deg: give a number'),
    ({'panorama': 'maybe'}, "'maybe' is none of"),
    ({'line': '0,1'}, 'of trajectory=drawn alone'),
    ({'trajectory': 'drawn'}, 'draw a longer one'),
    ({'trajectory': 'drawn', 'line': '1'}, 'corners as x,z;x,z'),
    ({'trajectory': 'drawn', 'line': '1,nan'}, 'line: give a number'),
    ({'trajectory': 'drawn', 'line': '1,1;' * 201}, 'up to 200 corners'),
  ],
)
def test_what_is_none_is_refused_in_a_line(fields, words):
  with pytest.raises(errors.UserError) as refusal:
    settings.parse(fields, 64)
  assert words in str(refusal.value) and '\n' not in str(refusal.value)
