"""The conventions of the project, as code: axes, pixels, poses, projections.

Axes. Camera: x right, y down, z forward (OpenCV). World: right-handed, gravity
along +y where it is known.

Poses are 3x4 matrices `[R|t]` in float64 whose name says the direction:
`a2b` maps coordinates, `x_b = R @ x_a + t`. So `target2source` holds the
target camera's centre, in the source camera's axes, as its `t`; and
`compose(b2c, a2b) == a2c`.

Pixels. Pixel centres lie at integer + 0.5 and an image spans
[0, width] x [0, height]; a centred view has its principal point at
(width / 2, height / 2).

Equirectangular images. longitude = (u / width - 1/2) * 2 pi: zero in the
centre column, positive to the right. latitude = (v / height - 1/2) * pi:
positive down. direction = (sin lon cos lat, sin lat, cos lon cos lat).

Views. A perspective view cut from a panorama is oriented by
`x_frame = R_view @ x_view` with `R_view = R_y(yaw) @ R_x(pitch)`: yaw positive
to the right, pitch positive up.

Every function takes leading batch dimensions where its annotation has `*b`.
"""

from jaxtyping import Float, Num
import numpy as np

Pose = Float[np.ndarray, '*b 3 4']
Values = Float[np.ndarray, '*b'] | float
Rotation = Float[np.ndarray, '*b 3 3']


def rotation_y(angle_rad: float) -> Float[np.ndarray, '3 3']:
  """Rotation about the down axis; positive turns the view to the right."""
  c, s = np.cos(angle_rad), np.sin(angle_rad)
  return np.array([[c, 0.0, s], [0.0, 1.0, 0.0], [-s, 0.0, c]])


def rotation_x(angle_rad: float) -> Float[np.ndarray, '3 3']:
  """Rotation about the right axis; positive turns the view up."""
  c, s = np.cos(angle_rad), np.sin(angle_rad)
  return np.array([[1.0, 0.0, 0.0], [0.0, c, -s], [0.0, s, c]])


def view2frame_rotation(
  yaw_deg: float, pitch_deg: float
) -> Float[np.ndarray, '3 3']:
  """`R_view`, which turns view coordinates into those of its panorama."""
  return rotation_y(np.deg2rad(yaw_deg)) @ rotation_x(np.deg2rad(pitch_deg))


def yaw_pitch_deg(direction: Num[np.ndarray, '3']) -> tuple[float, float]:
  """Yaw and pitch of the view whose optical axis points along `direction`."""
  x, y, z = direction
  return (
    float(np.rad2deg(np.arctan2(x, z))),
    float(np.rad2deg(np.arctan2(-y, np.hypot(x, z)))),
  )


def make_pose(
  rotation: Float[np.ndarray, '*b 3 3'], translation: Float[np.ndarray, '*b 3']
) -> Pose:
  """`[R|t]` in float64 from its two parts."""
  rotation = np.asarray(rotation, np.float64)
  translation = np.asarray(translation, np.float64)
  return np.concatenate([rotation, translation[..., None]], axis=-1)


def identity_pose() -> Float[np.ndarray, '3 4']:
  """The pose that changes nothing."""
  return np.eye(3, 4)


def inverse(a2b: Pose) -> Pose:
  """`b2a` of `a2b`."""
  rotation = np.swapaxes(a2b[..., :3], -1, -2)
  return make_pose(rotation, -(rotation @ a2b[..., 3:])[..., 0])


def compose(b2c: Pose, a2b: Pose) -> Pose:
  """`a2c`: first `a2b`, then `b2c`."""
  rotation = b2c[..., :3] @ a2b[..., :3]
  translation = b2c[..., :3] @ a2b[..., 3:] + b2c[..., 3:]
  return make_pose(rotation, translation[..., 0])


def relative(source2scene: Pose, target2scene: Pose) -> Pose:
  """`target2source` of two cameras that stand in one scene."""
  return compose(inverse(source2scene), target2scene)


def rescale(a2b: Pose, factor: float) -> Pose:
  """The pose in units of which there are `factor` to one before."""
  return make_pose(a2b[..., :3], a2b[..., 3] * factor)


def transform(
  a2b: Pose, points_a: Float[np.ndarray, '*b n 3']
) -> Float[np.ndarray, '*b n 3']:
  """Points in frame b of points in frame a."""
  return points_a @ np.swapaxes(a2b[..., :3], -1, -2) + np.swapaxes(
    a2b[..., 3:], -1, -2
  )


def relative_view_pose(
  source_frame2scene: Float[np.ndarray, '3 4'],
  target_frame2scene: Float[np.ndarray, '3 4'],
  source_angles_deg: tuple[float, float],
  target_angles_deg: tuple[float, float],
) -> Float[np.ndarray, '3 4']:
  """`target2source` of two views, from their panoramas' poses and angles.

  Args:
    source_frame2scene: pose of the source panorama.
    target_frame2scene: pose of the target panorama.
    source_angles_deg: (yaw, pitch) of the source view in its panorama.
    target_angles_deg: (yaw, pitch) of the target view in its panorama.
  """
  zero = np.zeros(3)
  source_view2frame = make_pose(view2frame_rotation(*source_angles_deg), zero)
  target_view2frame = make_pose(view2frame_rotation(*target_angles_deg), zero)
  target_frame2source_frame = relative(source_frame2scene, target_frame2scene)
  return relative(
    source_view2frame,
    compose(target_frame2source_frame, target_view2frame),
  )


def is_rotation(matrix: Num[np.ndarray, '3 3'], tolerance: float) -> bool:
  """Whether a matrix is orthonormal and does not mirror.

  Args:
    matrix: finite numbers.
    tolerance: by which products of its rows may be off.
  """
  # In plain numbers, for records have three each: arrays take five times as
  # long.
  (a, b, c), (d, e, f), (g, h, i) = matrix.tolist()
  lengths = (
    a * a + b * b + c * c,
    d * d + e * e + f * f,
    g * g + h * h + i * i,
  )
  products = (
    a * d + b * e + c * f,
    a * g + b * h + c * i,
    d * g + e * h + f * i,
  )
  determinant = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
  return (
    max(lengths) <= 1 + tolerance
    and min(lengths) >= 1 - tolerance
    and max(products) <= tolerance
    and min(products) >= -tolerance
    and determinant >= 0
  )


def rotation_angle_deg(
  rotation: Rotation,
) -> Values:
  """Angle of a rotation, in degrees; accurate for small angles too."""
  # atan2 of |sin| and cos: arccos alone loses half the digits near zero.
  skew = rotation - np.swapaxes(rotation, -1, -2)
  sine = (
    np.linalg.norm(
      np.stack([skew[..., 2, 1], skew[..., 0, 2], skew[..., 1, 0]], -1), axis=-1
    )
    / 2
  )
  cosine = (np.trace(rotation, axis1=-2, axis2=-1) - 1) / 2
  return np.rad2deg(np.arctan2(sine, cosine))


def angle_between_deg(
  a: Float[np.ndarray, '*b 3'], b: Float[np.ndarray, '*b 3']
) -> Values:
  """Angle between two vectors of any length, in degrees."""
  cross = np.linalg.norm(np.cross(a, b), axis=-1)
  return np.rad2deg(np.arctan2(cross, np.sum(a * b, axis=-1)))


def pixel_centres(
  width: int, height: int
) -> tuple[Float[np.ndarray, 'h w'], Float[np.ndarray, 'h w']]:
  """(u, v) of every pixel centre of an image."""
  u, v = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
  return u, v


def equirect_to_direction(
  u: Values,
  v: Values,
  width: int,
  height: int,
) -> Float[np.ndarray, '*b 3']:
  """Unit directions of equirectangular pixel coordinates."""
  longitude = (u / width - 0.5) * 2 * np.pi
  latitude = (v / height - 0.5) * np.pi
  return np.stack(
    [
      np.sin(longitude) * np.cos(latitude),
      np.sin(latitude),
      np.cos(longitude) * np.cos(latitude),
    ],
    axis=-1,
  )


def direction_to_equirect(
  direction: Float[np.ndarray, '*b 3'], width: int, height: int
) -> tuple[Values, Values]:
  """Equirectangular (u, v) of directions of any length; u in [0, width]."""
  x, y, z = np.moveaxis(direction, -1, 0)
  longitude = np.arctan2(x, z)
  latitude = np.arctan2(y, np.hypot(x, z))
  return (
    (longitude / (2 * np.pi) + 0.5) * width,
    (latitude / np.pi + 0.5) * height,
  )


def intrinsics(fov_deg: float, size_px: int) -> Float[np.ndarray, '3 3']:
  """K of a square, centred view with equal horizontal and vertical fov."""
  focal_px = 0.5 * size_px / np.tan(np.deg2rad(fov_deg) / 2)
  centre = size_px / 2
  return np.array(
    [[focal_px, 0.0, centre], [0.0, focal_px, centre], [0.0, 0.0, 1.0]]
  )


def square_fov_deg(
  focal_px: tuple[float, float], size_px: tuple[float | int, float | int]
) -> float:
  """Full field of view of a picture's square middle: what both sides have.

  Args:
    focal_px: along x and y.
    size_px: width and height.
  """
  half_side = min(np.divide(size_px, focal_px)) / 2
  return float(np.rad2deg(2 * np.arctan(half_side)))


def view_rays(fov_deg: float, size_px: int) -> Float[np.ndarray, 's s 3']:
  """Rays through the pixel centres of a square view, with z = 1."""
  u, v = pixel_centres(size_px, size_px)
  pixels = np.stack([u, v, np.ones_like(u)], axis=-1)
  return pixels @ np.linalg.inv(intrinsics(fov_deg, size_px)).T


def project(
  points: Float[np.ndarray, '*b 3'], matrix: Float[np.ndarray, '3 3']
) -> tuple[Float[np.ndarray, '*b 2'], Values]:
  """Pixel coordinates and depth (z) of points in camera axes.

  A point with depth <= 0 lies behind the camera: its pixel means nothing, and
  the caller has to look at the depth.
  """
  homogeneous = points @ matrix.T
  depth = homogeneous[..., 2]
  safe = np.where(np.abs(depth) < 1e-12, 1e-12, depth)
  return homogeneous[..., :2] / safe[..., None], depth


def cross_matrix(
  vector: Float[np.ndarray, '*b 3'],
) -> Float[np.ndarray, '*b 3 3']:
  """`[v]_x`, with `[v]_x @ w == cross(v, w)`."""
  x, y, z = np.moveaxis(vector, -1, 0)
  zero = np.zeros_like(x)
  rows = [[zero, -z, y], [z, zero, -x], [-y, x, zero]]
  return np.stack([np.stack(row, -1) for row in rows], -2)


def essential_matrix(target2source: Pose) -> Float[np.ndarray, '*b 3 3']:
  """E with `ray_source^T E ray_target == 0` for the same scene point."""
  return cross_matrix(target2source[..., 3]) @ target2source[..., :3]
