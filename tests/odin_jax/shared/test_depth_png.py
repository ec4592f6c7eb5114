"""Maps of depth in PNGs: round trips, and files that are not such maps."""

import cv2
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
import numpy as np
import pytest

from odin_jax.shared import depth_png, png

# Half a step, and the rounding of float32.
_ROUNDED = 2 ** (0.5 / 2048) - 1 + 2e-6
_SQUARES = st.integers(1, 9).map(lambda side: (side, side))


def written(values):
  return cv2.imencode('.png', values)[1].tobytes()


@given(
  arrays.arrays(np.float64, _SQUARES, elements=st.floats(-20, 20, width=32))
)
@settings(max_examples=50)
def test_what_is_read_is_within_half_a_step_of_what_was_written(octaves):
  depth = np.exp2(octaves.clip(-15.9, 15.9))
  data = depth_png.encode(depth)
  found = depth_png.decode(data)
  assert found.dtype == np.float32 and found.shape == depth.shape
  np.testing.assert_allclose(found, depth, rtol=_ROUNDED)
  # What was read is written to the same bytes, so nothing drifts.
  assert depth_png.encode(found) == data


@given(arrays.arrays(np.uint16, _SQUARES))
@settings(max_examples=50)
def test_every_value_is_a_depth_of_its_own(values):
  """Also to whoever reads the PNG by the formula in the schema."""
  data = written(values)
  found = depth_png.decode(data)
  known = values > 0
  expected = 2.0 ** ((values[known].astype(float) - 32768) / 2048)
  np.testing.assert_allclose(found[known], expected, rtol=1e-6)
  assert not found[~known].any()
  np.testing.assert_array_equal(
    cv2.imdecode(
      np.frombuffer(depth_png.encode(found), np.uint8), cv2.IMREAD_UNCHANGED
    ),
    values,
  )


def test_what_is_no_depth_is_not_known_and_the_range_has_ends():
  depth = np.array(
    [[np.nan, np.inf, -np.inf], [0.0, -1.0, 1.0], [1e-9, 1e9, 65536.0]]
  )
  found = depth_png.decode(depth_png.encode(depth))
  assert not found[0].any() and not found[1, :2].any() and found[1, 2] == 1
  ends = 2.0 ** (-32767 / 2048), 2.0 ** (32767 / 2048)
  np.testing.assert_allclose(found[2], [ends[0], ends[1], ends[1]], rtol=1e-6)


_MAP = np.arange(1, 65, dtype=np.uint16).reshape(8, 8) * 900


@pytest.mark.parametrize(
  'data,words',
  [
    (b'no picture', 'no PNG'),
    (written(_MAP.astype(np.uint8)), '8 bits, not of 16'),
    (written(_MAP[:4]), '8 x 4 px, which is not square'),
    (written(np.stack([_MAP] * 3, -1)), 'colours'),
    (written(np.stack([_MAP] * 4, -1)), 'colours or transparency'),
    (written(_MAP)[:30], 'cut off'),
  ],
)
def test_what_is_no_map_is_named_by_its_first_bytes(data, words):
  for check in (png.check_header, png.check):
    with pytest.raises(ValueError, match=words):
      check(data, bits=16)
  with pytest.raises(ValueError, match=words):
    depth_png.decode(data)


@given(st.data())
@settings(max_examples=60)
def test_any_changed_or_missing_byte_is_found(data):
  content = bytearray(written(_MAP))
  position = data.draw(st.integers(0, len(content) - 1))
  if data.draw(st.booleans()):
    content[position] ^= data.draw(st.integers(1, 255))
  else:
    del content[position:]
  with pytest.raises(ValueError, match='PNG'):
    depth_png.decode(bytes(content))
