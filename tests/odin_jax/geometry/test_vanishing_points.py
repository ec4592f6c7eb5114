"""Fields of view that lines at right angles tell, and those that none tell."""

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from odin_jax.geometry import vanishing_points


def drawn(fov_deg, turn_deg, size=(480, 360), half=(2.0, 1.5, 3.0)):
  """A room whose walls have grids of lines, from a camera in it that turned."""
  width, height = size
  focal = min(size) / 2 / np.tan(np.deg2rad(fov_deg) / 2)
  rotation = Rotation.from_euler('yxz', turn_deg, degrees=True).as_matrix()
  image = np.full((height, width, 3), 255, np.uint8)
  for axis in range(3):
    others = [other for other in range(3) if other != axis]
    for wall in (-half[others[0]], half[others[0]]):
      for swap in (False, True):
        a, b = others[::-1] if swap else others
        level = wall if not swap else wall / half[b] * half[a]
        for place in np.linspace(-half[b], half[b], 9):
          ends = np.zeros((60, 3))
          ends[:, axis] = np.linspace(-half[axis], half[axis], 60)
          ends[:, a], ends[:, b] = level, place
          seen = (ends - [0.3, -0.2, -0.5]) @ rotation
          seen = seen[seen[:, 2] > 0.05]
          if len(seen) > 1:
            pixels = seen[:, :2] / seen[:, 2:] * focal + [width / 2, height / 2]
            for first, last in zip(pixels[:-1], pixels[1:]):
              if np.abs([first, last]).max() < 3000:
                cv2.line(
                  image,
                  *(tuple(np.int32(p * 16)) for p in (first, last)),
                  (20, 40, 60),
                  2,
                  cv2.LINE_AA,
                  4,
                )
  return image


TURNS_DEG = ((30, 10, 0), (-40, -20, 8), (130, 15, -5))


@pytest.mark.parametrize('fov_deg', [40.0, 65.0, 90.0])
def test_a_room_tells_the_field_of_view_of_the_shorter_side(fov_deg):
  found = [
    vanishing_points.estimate(drawn(fov_deg, turn_deg, size))
    for turn_deg in TURNS_DEG
    for size in ((480, 360), (360, 480))
  ]
  np.testing.assert_allclose([x.fov_deg for x in found], fov_deg, atol=1.5)
  assert sum(x.is_sure for x in found) >= 4


def test_it_is_the_same_of_any_size_and_any_call():
  image = drawn(65.0, (30, 10, 0), size=(1600, 1200))
  first, again = (vanishing_points.estimate(image) for _ in range(2))
  assert first == again and first.is_sure
  assert first.fov_deg == pytest.approx(65, abs=1.5)


def drawn_of(directions, size=(480, 360)):
  """Many lines of each of some directions, from a camera that turned."""
  width, height = size
  focal = height / 2 / np.tan(np.deg2rad(65) / 2)
  rotation = Rotation.from_euler('yxz', (-35, 10, -4), degrees=True).as_matrix()
  rng, image = np.random.default_rng(2), np.full((height, width, 3), 255, 'u1')
  for direction in directions:
    for start in rng.uniform((-4, -2, 2), (4, 2, 8), (40, 3)):
      ends = start + np.outer([-1, 1], direction)
      ends = ends @ rotation
      if ends[:, 2].min() > 0.3:
        pixels = ends[:, :2] / ends[:, 2:] * focal + [width / 2, height / 2]
        first, last = (tuple(map(int, place)) for place in pixels)
        cv2.line(image, first, last, (20, 40, 60), 2, cv2.LINE_AA)
  return image


def noise():
  return np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)


def sticks():
  """Lines of all directions."""
  rng, image = np.random.default_rng(1), np.full((300, 400, 3), 255, np.uint8)
  for start, end in rng.integers(0, 400, (80, 2, 2)):
    cv2.line(image, tuple(map(int, start)), tuple(map(int, end)), (0, 0, 0), 2)
  return image


@pytest.mark.parametrize(
  'image',
  [
    np.full((300, 400, 3), 128, np.uint8),
    np.zeros((1, 5, 3), np.uint8),
    noise(),
    sticks(),
    # Straight at a wall: no lines meet but in the middle.
    drawn(65.0, (0, 0, 0)),
    # Floor lines that are not at right angles, and uprights.
    drawn_of([(1, 0, 0), (0.5, 0, 0.87), (0, 1, 0)]),
    # Long and narrow: made smaller it has no lines.
    np.zeros((200, 330_000, 3), np.uint8),
    # Too small for lines.
    drawn(65.0, (30, 10, 0), size=(64, 64)),
  ],
  ids=[
    'grey',
    'a row',
    'noise',
    'sticks',
    'ahead',
    'at 60 degrees',
    'narrow',
    'small',
  ],
)
def test_what_does_not_tell_it_is_not_believed(image):
  found = vanishing_points.estimate(image)
  assert found is None or not found.is_sure


def test_boxes_on_real_photographs_tell_theirs(shared_data):
  folder = shared_data / 'dtu_scan24'
  true_deg = 23.5
  sure = []
  for path in sorted((folder / 'image').glob('*.png')):
    found = vanishing_points.estimate(cv2.imread(str(path))[..., ::-1].copy())
    if found is not None and found.is_sure:
      sure.append(found.fov_deg)
  assert len(sure) >= 5
  np.testing.assert_allclose(sure, true_deg, atol=1.0)
