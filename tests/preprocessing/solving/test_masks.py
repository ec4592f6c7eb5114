"""Masks of the sphere: painted by hand, resized, joined, and of a lens."""

import cv2
from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
from PIL import Image
import pytest

from odin_jax.shared import camera, errors
from preprocessing.solving import masks

BELOW = np.array([0.0, 1.0, 0.0])
ABOVE = -BELOW


def directions(count=4000, seed=0):
  rays = np.random.default_rng(seed).normal(size=(count, 3))
  return rays / np.linalg.norm(rays, axis=1, keepdims=True)


def painted(width, height):
  """White, and black where the direction is 40 degrees around one point."""
  u, v = camera.pixel_centres(width, height)
  rays = camera.equirect_to_direction(u, v, width, height)
  return np.where(operator(rays, 40.0), 0, 255).astype(np.uint8)


def operator(rays, radius_deg):
  # Across the seam of the panorama.
  centre = camera.view2frame_rotation(175.0, -40.0)[:, 2]
  return rays @ centre > np.cos(np.deg2rad(radius_deg))


def grey(picture):
  return picture


def sixteen_bits(picture):
  return picture.astype(np.uint16) * 100


def sixteen_bits_with_noise(picture):
  noise = np.random.default_rng(0).integers(0, 6000, picture.shape, np.uint16)
  return np.where(picture > 0, np.uint16(65535), noise)


def noise(picture):
  # As JPEG leaves it in what was black, in every channel its own.
  levels = np.random.default_rng(0).integers(0, 22, (*picture.shape, 3))
  return np.where(picture[..., None] > 0, 255 - levels, levels).astype(np.uint8)


def labels(picture):
  return picture // 255


def dark_grey(picture):
  # Three tenths as bright as the brightest is free.
  free = np.where(np.arange(picture.shape[1]) % 2, 255, 77).astype(np.uint8)
  return np.where(picture > 0, free, np.uint8(0))


def colour(picture):
  # Dark, but not black, where it is free.
  return np.stack([picture // 100, picture * 0, picture * 0], axis=-1)


def black_in_opaque(picture):
  return np.dstack([picture, picture, picture, np.full_like(picture, 255)])


def cut_out(picture):
  return np.dstack([np.full_like(picture, 200)] * 3 + [picture])


@pytest.mark.parametrize(
  'kind',
  [
    grey,
    sixteen_bits,
    sixteen_bits_with_noise,
    noise,
    labels,
    dark_grey,
    colour,
    black_in_opaque,
    cut_out,
  ],
)
@pytest.mark.parametrize('size', [(360, 180), (1003, 500)])
def test_black_or_transparent_is_masked(tmp_path, kind, size):
  cv2.imwrite(str(tmp_path / 'mask.png'), kind(painted(*size)))
  mask = masks.read_mask(tmp_path / 'mask.png')
  rays = directions()
  held = mask.holds(rays)
  assert held[operator(rays, 39.0)].all()
  assert not held[~operator(rays, 41.0)].any()


def test_black_and_white_without_grey_is_read(tmp_path):
  picture = painted(360, 180)
  options = [cv2.IMWRITE_PNG_BILEVEL, 1]
  cv2.imwrite(str(tmp_path / 'mask.png'), picture, options)
  # Bit depth and colour type stand in the header.
  assert (tmp_path / 'mask.png').read_bytes()[24:26] == b'\x01\x00'
  mask = masks.read_mask(tmp_path / 'mask.png')
  np.testing.assert_array_equal(mask.cells, picture == 0)


def test_colours_of_a_palette_are_read_not_their_numbers(tmp_path):
  picture = painted(360, 180)
  # Number 0 is white, number 1 black.
  image = Image.frombytes('P', (360, 180), (picture == 0).tobytes())
  image.putpalette([255, 255, 255, 0, 0, 0])
  image.save(tmp_path / 'mask.png')
  mask = masks.read_mask(tmp_path / 'mask.png')
  np.testing.assert_array_equal(mask.cells, picture == 0)


def png(picture):
  return cv2.imencode('.png', picture)[1].tobytes()


@pytest.mark.parametrize(
  ('data', 'message'),
  [
    (b'', 'no PNG picture'),
    (b'black where the operator is\n', 'no PNG picture'),
    (cv2.imencode('.jpg', painted(64, 32))[1].tobytes(), 'no PNG picture'),
    (png(painted(64, 32))[:-20], 'no PNG picture'),
    (png(painted(64, 32))[:40] + png(painted(64, 32))[60:], 'no PNG picture'),
    (png(painted(64, 64)), 'is 64 x 64'),
    (png(painted(64, 26)), 'is 64 x 26'),
    (png(np.zeros((32, 64), np.uint8)), 'masks all'),
    (png(np.arange(32 * 64).reshape(32, 64) % 20), 'is dark everywhere'),
    (png(np.full((32, 64), 9, np.uint8)), 'masks nothing'),
    (
      png(np.dstack([painted(64, 32)] * 3 + [np.zeros((32, 64), np.uint8)])),
      'masks all',
    ),
  ],
)
def test_what_is_no_mask_is_refused_by_name(tmp_path, data, message):
  path = tmp_path / 'mask.png'
  path.write_bytes(data)
  with pytest.raises(errors.UserError, match=message) as error:
    masks.read_mask(path)
  assert str(error.value).startswith(f'{path}: ')
  assert '\n' not in str(error.value)


def test_a_mask_that_is_not_there_is_refused(tmp_path):
  with pytest.raises(errors.UserError, match='no such file'):
    masks.read_mask(tmp_path / 'mask.png')


@st.composite
def cell_masks(draw):
  height = draw(st.integers(2, 10))
  width = 2 * draw(st.integers(2, 10))
  seed = draw(st.integers(0, 99))
  share = draw(st.floats(0.05, 0.6))
  rng = np.random.default_rng(seed)
  return masks.Mask(cells=rng.uniform(size=(height, width)) < share)


@settings(max_examples=40, deadline=None)
@given(mask=cell_masks(), factor=st.integers(1, 9))
def test_a_finer_mask_holds_all_of_the_coarse_one_and_little_more(mask, factor):
  height, width = mask.cells.shape
  finer = mask.resized(factor * width, factor * height)
  blocks = np.kron(mask.cells, np.ones((factor, factor), bool))
  assert finer.cells[blocks].all()
  # Nothing further than a cell away: around the seam and over the poles.
  rows = np.vstack(
    [
      np.roll(blocks[:factor], width // 2 * factor, axis=1),
      blocks,
      np.roll(blocks[-factor:], width // 2 * factor, axis=1),
    ]
  )
  near = np.hstack([rows[:, -factor:], rows, rows[:, :factor]])
  near = cv2.dilate(
    near.astype(np.uint8), np.ones((2 * factor + 1, 2 * factor + 1), np.uint8)
  )[factor:-factor, factor:-factor]
  assert not finer.cells[near == 0].any()
  assert mask.resized(width, height) is mask


@settings(max_examples=20, deadline=None)
@given(mask=cell_masks(), turn=st.integers(0, 20))
def test_a_resized_mask_has_no_seam(mask, turn):
  height, width = mask.cells.shape
  turned = masks.Mask(cells=np.roll(mask.cells, turn, axis=1))
  np.testing.assert_array_equal(
    turned.resized(5 * width, 3 * height).cells,
    np.roll(mask.resized(5 * width, 3 * height).cells, 5 * turn, axis=1),
  )


def test_union_keeps_the_resolution_of_the_painted_mask(tmp_path):
  cv2.imwrite(str(tmp_path / 'mask.png'), painted(1440, 720))
  both = masks.union(masks.below(60.0), masks.read_mask(tmp_path / 'mask.png'))
  assert both.cells.shape == (720, 1440)
  rays = directions(20_000)
  held = both.holds(rays)
  low = np.rad2deg(np.arcsin(rays[:, 1]))
  assert held[(low > 60.2) | operator(rays, 39.8)].all()
  # A cell of 5 degrees grows by 3/4 at most.
  assert not held[(low < 56) & ~operator(rays, 40.2)].any()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99))
def test_union_of_equal_cells_is_either(seed):
  rng = np.random.default_rng(seed)
  first, second = (
    masks.Mask(cells=rng.uniform(size=(36, 72)) < 0.2) for _ in range(2)
  )
  np.testing.assert_array_equal(
    masks.union(first, second).cells, first.cells | second.cells
  )


@settings(max_examples=15, deadline=None)
@given(
  yaw=st.floats(-180, 180), pitch=st.floats(-90, 90), half_fov=st.floats(60, 95)
)
def test_what_a_lens_does_not_see_is_masked(yaw, pitch, half_fov):
  axis = camera.view2frame_rotation(yaw, pitch)[:, 2]

  def sees(rays):
    return rays @ axis >= np.cos(np.deg2rad(half_fov))

  mask = masks.outside(sees)
  rays = directions()
  away_deg = camera.angle_between_deg(rays, np.broadcast_to(axis, rays.shape))
  held = mask.holds(rays)
  # To half a degree: the corner of a cell is as far from its other corner.
  assert held[away_deg > half_fov + 0.75].all()
  assert not held[away_deg < half_fov - 0.75].any()
  cap = (1 - np.cos(np.deg2rad(half_fov))) / 2
  assert mask.share == pytest.approx(1 - cap, abs=0.02)


def test_a_camera_that_sees_all_masks_nothing():
  mask = masks.outside(lambda rays: np.ones(rays.shape[:-1], bool))
  assert mask.share == 0.0


@settings(max_examples=20, deadline=None)
@given(latitude=st.floats(-80, 80), factor=st.integers(1, 8))
def test_share_is_by_solid_angle_in_cells_of_any_size(latitude, factor):
  mask = masks.below(latitude).resized(72 * factor, 36 * factor)
  cap = (1 - np.sin(np.deg2rad(latitude))) / 2
  # A row of cells, and 3/4 of one.
  assert cap - 0.05 < mask.share < cap + 0.04
  assert mask.holds(np.stack([BELOW, ABOVE])).tolist() == [True, False]


def test_directions_may_have_any_leading_shape():
  mask = masks.below(60.0)
  rays = directions(24)
  np.testing.assert_array_equal(
    mask.holds(rays.reshape(2, 3, 4, 3)), mask.holds(rays).reshape(2, 3, 4)
  )
