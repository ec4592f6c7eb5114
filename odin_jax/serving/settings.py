"""What a request asks for: fields of text -> checked settings -> cameras."""

import dataclasses
import math
from typing import Any, Callable, Mapping

from jaxtyping import Float
import numpy as np

from odin_jax.geometry import trajectory
from odin_jax.serving import drawn_paths
from odin_jax.shared import errors

DRAWN = 'drawn'
PATHS = (*sorted(trajectory.PATHS), DRAWN)
MOST_CORNERS = 200
_PANORAMA = {'': None, 'yes': True, 'no': False}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """What `odin_jax.generate` is asked for, by the names of its flags.

  Attributes:
    trajectory: a name of `odin_jax.geometry.trajectory`, or `drawn`.
    num_frames: views in all.
    step_length: of a path by name, scene units.
    line: of a drawn path, see `odin_jax.serving.drawn_paths`.
    look: of a drawn path.
    panorama: whether the image is one; None: as its header says.
    fov_deg: None: as the header or straight lines say, or the usual one.
    seed: of the noise.
  """

  trajectory: str = 'orbit'
  num_frames: int = 16
  step_length: float = 0.05
  line: tuple[tuple[float, float], ...] = ()
  look: str = drawn_paths.LOOKS[0]
  panorama: bool | None = None
  fov_deg: float | None = None
  seed: int = 0


def parse(fields: Mapping[str, str], most_frames: int) -> Settings:
  """The settings that fields ask for; those that are absent are as usual.

  Args:
    fields: of a request.
    most_frames: views that one job may have.

  Raises:
    errors.UserError: an unknown field, or a value that is none.
  """
  readers: dict[str, Callable[[str], Any]] = {
    'trajectory': lambda text: _one_of(text, PATHS),
    'num_frames': lambda text: _whole(text, 2, most_frames),
    'step_length': lambda text: _number(text, 1e-3, 1.0),
    'line': _line,
    'look': lambda text: _one_of(text, drawn_paths.LOOKS),
    'panorama': lambda text: _PANORAMA[_one_of(text, _PANORAMA)],
    'fov_deg': lambda text: _number(text, 1.0, 170.0) if text else None,
    'seed': lambda text: _whole(text, 0, 2**31 - 1),
  }
  values = {}
  for name, text in fields.items():
    if name not in readers:
      raise errors.UserError(
        f'{name[:40]!r} is no setting; there are {", ".join(readers)}'
      )
    try:
      values[name] = readers[name](text)
    except ValueError as error:
      raise errors.UserError(f'{name}: {error}') from error
  settings = Settings(**values)
  if settings.trajectory == DRAWN:
    camera2scene(settings)
  elif settings.line:
    raise errors.UserError(f'line: is of trajectory={DRAWN} alone')
  return settings


def camera2scene(settings: Settings) -> Float[np.ndarray, 'n 3 4']:
  """The cameras of all views.

  Raises:
    errors.UserError: a drawn line without length.
  """
  if settings.trajectory != DRAWN:
    return trajectory.camera_path(
      settings.trajectory, settings.num_frames, settings.step_length
    )
  try:
    return drawn_paths.camera_path(
      settings.line, settings.num_frames, settings.look
    )
  except ValueError as error:
    raise errors.UserError(f'line: {error}; draw a longer one') from error


def _one_of(text: str, names: Any) -> str:
  if text not in names:
    raise ValueError(
      f'{text[:40]!r} is none of {", ".join(filter(None, names))}'
    )
  return text


def _whole(text: str, least: int, most: int) -> int:
  is_number = len(text) < 12 and text.isascii() and text.isdigit()
  number = int(text) if is_number else -1
  if not least <= number <= most:
    raise ValueError(f'give a whole number from {least} to {most}')
  return number


def _number(text: str, least: float, most: float) -> float:
  try:
    number = float(text[:40])
  except ValueError:
    number = math.nan
  # Not so for what is no number either.
  if not least <= number <= most:
    raise ValueError(f'give a number from {least:g} to {most:g}')
  return number


def _line(text: str) -> tuple[tuple[float, float], ...]:
  """Corners as `x,z;x,z`."""
  corners = [corner.split(',') for corner in text.split(';') if corner]
  if len(corners) > MOST_CORNERS or any(len(corner) != 2 for corner in corners):
    raise ValueError(f'give up to {MOST_CORNERS} corners as x,z;x,z')
  return tuple(
    tuple(
      _number(value, -trajectory.MOST_UNITS, trajectory.MOST_UNITS)
      for value in corner
    )
    for corner in corners
  )
