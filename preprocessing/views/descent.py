"""Turns pairs of views by gradient descent until they share enough.

A view whose half field of view is h holds the unit direction (x, y, z) if
z sin h - |x| cos h >= 0 and z sin h - |y| cos h >= 0: these are the sines of
the angles to its borders. They need no division by z, so points beside and
behind a view have a gradient too. With a sigmoid of each over a width T, point
i lies inside the source view by s_i and inside the target view by t_i, both in
[0, 1], and with its weight w_i

  overlap = sum(w s t) / sum(w s)    coverage = sum(w s t) / sum(w t).

Over yaw and pitch of both views, Adam minimises

  max(0, goal - overlap)^2 + max(0, goal - coverage)^2
    + c_1 |angles - start|_1 + c_2 max(0, turn - turn limit)^2

while T falls; the norm is smooth at 0. Views that share as much as the goal
stay where they are: more would only make the target a copy of the source.
Pitch is held within its limits by projection. Views of equal content by descent
on pitch and yaw: M. Wallingford et al., "From an Image to a Scene", NeurIPS
2024, arXiv 2412.07770; Adam: D. Kingma and J. Ba, ICLR 2015, arXiv 1412.6980.
"""

import contextlib
import dataclasses
from typing import Any, Iterator

from jaxtyping import Float, Int
import numpy as np

# torch.Tensor; torch is imported where it is used.
Tensor = Any
# Directions per view pair.
_SAMPLES = 256
# View pairs at a time, so that what a step touches stays in the cache.
_BATCH = 64
_STEPS = 24
# Size of a step, and width of the borders as a sine: at first and at last.
_STEP_RAD = (0.2, 0.01)
_WIDTH = (0.12, 0.04)
# Pull towards the start, the same at any distance beyond the second figure: it
# settles what the shares leave open, and hardly fights them.
_STAY, _NEAR_RAD = 0.02, 0.05
_TURN = 10.0
# The penalty holds turns near their limit; this much inside it.
_TURN_MARGIN_RAD = 0.03
_MOMENTUM, _MEMORY = 0.8, 0.9
# Gradients below this are no reason to move.
_SMALL_GRADIENT = 1e-3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
  """One pair of views.

  Attributes:
    source_points: points in the source frame.
    target_points: the same points in the target frame.
    weights: of the points; not negative.
    target2source: rotation of the frames.
    fov_rad: full field of view of both views.
    start_rad: yaw and pitch of the source, yaw and pitch of the target view.
    max_pitch_rad: of the source and of the target view.
    max_turn_rad: largest angle between the views' axes.
  """

  source_points: Float[np.ndarray, 'n 3']
  target_points: Float[np.ndarray, 'n 3']
  weights: Float[np.ndarray, 'n']
  target2source: Float[np.ndarray, '3 3']
  fov_rad: float
  start_rad: Float[np.ndarray, '4']
  max_pitch_rad: Float[np.ndarray, '2']
  max_turn_rad: float


def descend(
  problems: list[Problem], *, goal: float
) -> Float[np.ndarray, 'b 4']:
  """Yaw and pitch of the source and the target view of every problem.

  Args:
    problems: any number; the answer to one does not depend on the others.
    goal: share at which overlap and coverage are enough.
  """
  angles_rad = [np.zeros((0, 4))]
  with _one_thread():
    for first in range(0, len(problems), _BATCH):
      batch = _Batch(problems[first : first + _BATCH], goal)
      angles_rad.append(batch.descend())
  return np.concatenate(angles_rad)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
  """Sums in one order on any machine, and no threads beside the workers'."""
  import torch

  before = torch.get_num_threads()
  torch.set_num_threads(1)
  try:
    yield
  finally:
    torch.set_num_threads(before)


def _sample(weights: Float[np.ndarray, 'n']) -> Int[np.ndarray, 'm']:
  """Indices of points, each as often as its weight says (systematic)."""
  cumulative = np.cumsum(weights)
  places = (np.arange(_SAMPLES) + 0.5) / _SAMPLES * cumulative[-1]
  return np.searchsorted(cumulative, places)


def _rays(points: list[np.ndarray], samples: list[np.ndarray]) -> Tensor:
  """Unit directions of the sampled points: [3, b, m]."""
  import torch

  chosen = np.stack([p[index] for p, index in zip(points, samples)])
  chosen /= np.linalg.norm(chosen, axis=2, keepdims=True)
  return torch.from_numpy(chosen.transpose(2, 0, 1).copy())


class _Batch:
  """Problems as tensors of equal size, on the CPU."""

  def __init__(self, problems: list[Problem], goal: float):
    import torch

    # Samples have equal weights, so that those of the points are not needed.
    samples = [_sample(problem.weights) for problem in problems]
    self._source = _rays([p.source_points for p in problems], samples)
    self._target = _rays([p.target_points for p in problems], samples)
    self._rotation, self._start, self._max_pitch, self._max_turn = (
      torch.from_numpy(np.array(values, np.float64))
      for values in zip(
        *(
          (p.target2source, p.start_rad, p.max_pitch_rad, p.max_turn_rad)
          for p in problems
        ),
        strict=True,
      )
    )
    half = torch.tensor(
      [[p.fov_rad / 2] for p in problems], dtype=torch.float64
    )
    self._sine, self._cosine = half.sin(), half.cos()
    self._goal = goal

  def descend(self) -> Float[np.ndarray, 'b 4']:
    import torch

    # torch.optim takes a second of its own to import.
    angles = self._start.clone().requires_grad_()
    mean, mean_square = torch.zeros_like(angles), torch.zeros_like(angles)
    for step in range(_STEPS):
      done = step / (_STEPS - 1)
      size, width = (
        first * (last / first) ** done for first, last in (_STEP_RAD, _WIDTH)
      )
      (slope,) = torch.autograd.grad(self._loss(angles, width), angles)
      with torch.no_grad():
        mean.lerp_(slope, 1 - _MOMENTUM)
        mean_square.mul_(_MEMORY).addcmul_(slope, slope, value=1 - _MEMORY)
        # Both began at 0 and are too small at first.
        unbiased = 1 - _MOMENTUM ** (step + 1)
        spread = (mean_square.sqrt() / (1 - _MEMORY ** (step + 1)) ** 0.5).add_(
          _SMALL_GRADIENT
        )
        angles.addcdiv_(mean, spread, value=-size / unbiased)
        self._project(angles)
    return angles.detach().numpy()

  def _project(self, angles: Tensor) -> None:
    """Brings the pitches back inside their limits."""
    angles[:, 1::2].clamp_(-self._max_pitch, self._max_pitch)

  def _loss(self, angles: Tensor, width: float) -> Tensor:
    sine, cosine = angles.sin(), angles.cos()
    source = self._inside(self._source, sine[:, :2], cosine[:, :2], width)
    target = self._inside(self._target, sine[:, 2:], cosine[:, 2:], width)
    both = (source * target).sum(1)
    missing = sum(
      (self._goal - both / (inside.sum(1) + 1e-9)).clamp(min=0) ** 2
      for inside in (source, target)
    )
    away = ((angles - self._start) ** 2 + _NEAR_RAD**2).sqrt().sum(1)
    beyond = (self._turn(sine, cosine) - self._max_turn).clamp(
      min=-_TURN_MARGIN_RAD
    )
    too_far = (beyond + _TURN_MARGIN_RAD) ** 2
    return (missing + _STAY * away + _TURN * too_far).sum()

  def _inside(
    self,
    rays: Tensor,
    sine: Tensor,
    cosine: Tensor,
    width: float,
  ) -> Tensor:
    """How much each point lies inside a view: [b, n] in [0, 1]."""
    import torch

    x, y, z = rays
    (yaw_s, pitch_s), (yaw_c, pitch_c) = sine.T[..., None], cosine.T[..., None]
    ahead = yaw_s * x + yaw_c * z
    right = yaw_c * x - yaw_s * z
    reach = (pitch_c * ahead - pitch_s * y) * self._sine
    down = pitch_s * ahead + pitch_c * y
    across, along = (
      torch.sigmoid((reach - self._cosine * away.abs()) / width)
      for away in (right, down)
    )
    return across * along

  def _turn(self, sine: Tensor, cosine: Tensor) -> Tensor:
    """Angle between the views' axes."""
    import torch

    # Columns: yaw and pitch of the source, yaw and pitch of the target.
    axes = [
      torch.stack(
        [
          sine[:, view] * cosine[:, view + 1],
          -sine[:, view + 1],
          cosine[:, view] * cosine[:, view + 1],
        ],
        dim=1,
      )
      for view in (0, 2)
    ]
    target = (self._rotation @ axes[1][..., None])[..., 0]
    # A slope of arccos without end, at equal axes, is none to follow.
    return (axes[0] * target).sum(1).clamp(-1 + 1e-6, 1 - 1e-6).arccos()
