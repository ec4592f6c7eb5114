"""What the source shows of the target, where that is known exactly."""

import hypothesis
from hypothesis import strategies
import numpy as np
import pytest

from odin_jax.geometry import visibility
from odin_jax.shared import camera

FOV_DEG = 90.0
SIZE = 16
FOCAL_PX = SIZE / 2


def plane_depth(normal, offset, camera2plane):
  """Depth of the plane `normal @ x == offset` at the pixels of a camera."""
  rays = camera.view_rays(FOV_DEG, SIZE)
  towards = rays @ camera2plane[:, :3].T @ normal
  return (offset - camera2plane[:, 3] @ normal) / towards


def test_what_a_panel_hides_from_the_source_is_not_seen():
  """A wall 4 away, before it a panel 2 away; the target stands 1 to the right.

  Between the views the wall moves by 2 pixels and the panel by 4: it stands
  before columns 8 to 11 of the source and 4 to 7 of the target. So the source
  shows the wall from its column 12 on, which is column 10 of the target.
  """
  pose = camera.make_pose(np.eye(3), np.array([1.0, 0, 0]))
  source, target = np.full((2, SIZE, SIZE), 4.0)
  source[:, 8:12] = 2.0
  target[:, 4:8] = 2.0
  seen = visibility.project(pose, FOV_DEG, source, target).seen
  # Of the wall: columns 8 and 9 are hidden, 14 and 15 are out of the picture.
  expected = np.ones((SIZE, SIZE), bool)
  expected[:, [8, 9, 14, 15]] = False
  np.testing.assert_array_equal(seen, expected)
  # The colours are those of the columns that show the same surface.
  picture = np.arange(SIZE**2 * 3).reshape(SIZE, SIZE, 3) / 1000
  view = visibility.warp(picture, pose, FOV_DEG, source, target)
  np.testing.assert_allclose(view[:, :4], picture[:, 2:6])
  np.testing.assert_allclose(view[:, 4:8], picture[:, 8:12])
  np.testing.assert_allclose(view[:, 10:14], picture[:, 12:16])
  np.testing.assert_allclose(
    view[:, 8:10], np.broadcast_to(picture.mean((0, 1)), (SIZE, 2, 3))
  )


def test_the_same_place_sees_all():
  depth = np.random.default_rng(0).uniform(1, 9, (SIZE, SIZE))
  picture = np.random.default_rng(1).uniform(size=(SIZE, SIZE, 3))
  args = camera.identity_pose(), FOV_DEG, depth, depth
  assert visibility.project(*args).seen.all()
  np.testing.assert_allclose(visibility.warp(picture, *args), picture)


def slow_project(pose, source_depth, target_depth):
  """As `visibility.project`, pixel by pixel: u, v or None, seen."""
  places = np.full((SIZE, SIZE, 2), np.nan)
  seen = np.zeros((SIZE, SIZE), bool)
  for row in range(SIZE):
    for column in range(SIZE):
      depth = target_depth[row, column]
      if np.isinf(depth):
        continue
      ray = [
        (column + 0.5 - SIZE / 2) / FOCAL_PX,
        (row + 0.5 - SIZE / 2) / FOCAL_PX,
        1.0,
      ]
      x, y, z = pose[:, :3] @ (np.array(ray) * depth) + pose[:, 3]
      if z <= 0:
        continue
      u, v = FOCAL_PX * x / z + SIZE / 2, FOCAL_PX * y / z + SIZE / 2
      if not (0 <= u <= SIZE and 0 <= v <= SIZE):
        continue
      # Pixels whose centres are less than one away; the border goes on.
      u_in, v_in = (min(max(w, 0.5), SIZE - 0.5) for w in (u, v))
      around = [
        source_depth[i, j]
        for i in range(SIZE)
        for j in range(SIZE)
        if abs(i + 0.5 - v_in) < 1 and abs(j + 0.5 - u_in) < 1
      ]
      around = [d for d in around if np.isfinite(d)]
      seen[row, column] = bool(around) and (
        0.98 * min(around) <= z <= 1.02 * max(around)
      )
      places[row, column] = u, v
  return places, seen


@pytest.mark.parametrize('seed', range(3))
def test_as_a_slow_look_at_each_pixel_has_it(seed):
  rng = np.random.default_rng(seed)
  turn = camera.view2frame_rotation(*rng.uniform(-30, 30, 2))
  pose = camera.make_pose(turn, rng.uniform(-1, 1, 3))
  depths = rng.uniform(1, 4, (2, SIZE, SIZE))
  # A step in depth, a hole without surface, and things behind the camera.
  depths[:, :, 9:] *= 2
  depths[:, 3:7, 4:9] = np.inf
  depths[1, 12:, :4] = 0.05
  places, seen = slow_project(pose, *depths)
  found = visibility.project(pose, FOV_DEG, *depths)
  np.testing.assert_array_equal(found.seen, seen)
  assert 0.1 < seen.mean() < 0.9
  np.testing.assert_allclose(found.u[seen], places[seen][:, 0])
  np.testing.assert_allclose(found.v[seen], places[seen][:, 1])


@hypothesis.given(
  tilt_deg=strategies.tuples(
    strategies.floats(-70, 70), strategies.floats(-70, 70)
  ),
  turn_deg=strategies.floats(-20, 20),
  place=strategies.tuples(*[strategies.floats(-0.5, 0.5)] * 3),
)
@hypothesis.settings(max_examples=60, deadline=None)
def test_of_a_plane_all_is_seen_that_is_in_the_picture(
  tilt_deg, turn_deg, place
):
  pose = camera.make_pose(
    camera.view2frame_rotation(turn_deg, 0.0), np.array(place)
  )
  normal = camera.view2frame_rotation(*tilt_deg)[:, 2]
  source = plane_depth(normal, 3.0, camera.identity_pose())
  target = plane_depth(normal, 3.0, pose)
  # Beyond its horizon a plane is not seen; at it, depth has no end.
  has_plane = (source > 0) & (source < 50)
  source = np.where(has_plane, source, np.inf)
  target = np.where((target > 0) & (target < 50), target, np.inf)
  seen = visibility.project(pose, FOV_DEG, source, target).seen
  rays = camera.view_rays(FOV_DEG, SIZE)
  depth = np.where(np.isfinite(target), target, 1)
  pixels, z = camera.project(
    camera.transform(pose, (rays * depth[..., None]).reshape(-1, 3)),
    camera.intrinsics(FOV_DEG, SIZE),
  )
  # Beyond the outermost centres the plane is not what the border shows.
  inside = (z > 0) & np.all((pixels > 0.5) & (pixels < SIZE - 0.5), axis=-1)
  low = np.floor(pixels - 0.5).clip(0, SIZE - 2).astype(int)
  whole = np.ones(len(low), bool)
  for dy in range(2):
    for dx in range(2):
      whole &= has_plane[low[:, 1] + dy, low[:, 0] + dx]
  expected = (inside & whole).reshape(SIZE, SIZE) & np.isfinite(target)
  assert seen[expected].all()


def test_what_has_no_surface_is_of_neither_kind_and_keeps_its_colour():
  source, target = np.full((2, SIZE, SIZE), 2.0)
  source[:4], target[:, :5] = np.inf, np.inf
  picture = np.zeros((SIZE, SIZE, 3))
  picture[:4] = 1.0
  pose = camera.identity_pose()
  masks = visibility.masks(
    pose[None], np.array([FOV_DEG]), source[None], target[None], None
  )
  assert not masks['seen'][0, :4].any() and masks['seen'][0, 4:, 5:].all()
  assert masks['unseen'][0, :4, 5:].all()
  assert not (masks['seen'] | masks['unseen'])[0, :, :5].any()
  view = visibility.warp(picture, pose, FOV_DEG, source, target)
  assert (view[:, :5] == 1).all() and (view[4:, 5:] == 0).all()
  np.testing.assert_allclose(view[:4, 5:], 0.25)


def test_what_has_moved_is_not_seen():
  depth = np.full((1, SIZE, SIZE), 2.0)
  moving = np.zeros(depth.shape, bool)
  moving[:, :3] = True
  masks = visibility.masks(
    camera.identity_pose()[None], np.array([FOV_DEG]), depth, depth, moving
  )
  np.testing.assert_array_equal(masks['moving'], moving)
  np.testing.assert_array_equal(masks['unseen'], moving)
  np.testing.assert_array_equal(masks['static'], ~moving)
  np.testing.assert_array_equal(masks['seen'], ~moving)
  # Of what nobody knows whether it moves, neither is measured.
  masks = visibility.masks(
    camera.identity_pose()[None], np.array([FOV_DEG]), depth, depth, None
  )
  assert masks['seen'].all()
  assert not masks['static'].any() and not masks['moving'].any()
