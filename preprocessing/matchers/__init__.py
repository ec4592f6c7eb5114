"""What a matcher is, and which there are.

A matcher describes a panorama by points on the sphere and says which points of
two panoramas show the same thing. Poses, scale and records are made from its
answers alone and know no matcher by name.

What a backend has to give. A module, named in `MODULES`, that is a `Backend`:
it has its options with their defaults, which the config shows under its name,
their check, and `make(options)`, which makes a `Matcher`:

* `describe` finds the same points of the scene again in the next panorama. The
  pipeline follows `Features.rays` by optical flow from frame to frame, joins
  matches into tracks by the *index* of a feature, and adjusts the rays of all
  frames together. A backend that is dense must therefore choose points, and
  choose them before it sees the other frame. `noise_rad` weighs them.
* `match` is one to one, and names features by their index in what it is given:
  a subset of what was described, since features of the camera's holder are
  taken out. What else a backend knows of a panorama travels in a subclass of
  `Features` that overrides `subset` (`dust3r.FrameFeatures`).
* Called twice about the same frames it should not pay twice: the solver asks
  about each pair in every round, with better and better `expected` places.
  Features may be copied from process to process on the way, so what is cached
  is found again by content, not by identity.
* Determinism: the same panoramas give the same bytes.
* Where it says poses and depths itself, `GivesPoses`.
* Where a call costs money, `CountsCalls`, which states and bounds it.

What others would plug in. Both use the points, the views and the cache of
`dust3r` and change what is asked about a pair of views.

* MASt3R (https://github.com/naver/mast3r) is DUSt3R's network with two more
  maps per view: local descriptors. `_downstream_head` returns them as `desc`
  and `desc_conf`; read at the points like the pointmaps, they take the place
  of `Features.descriptors` where points close in space are compared.
* VGGT (https://github.com/facebookresearch/vggt) takes any number of views at
  once and gives poses, depths, pointmaps and point tracks. Its views are
  tokens of one call per window instead of one per pair; `query_points` of its
  tracking head are the points of a frame, and a track's end that lies within a
  pixel of a point of the other frame is a match.
"""

import dataclasses
import importlib
from typing import Any, Mapping, Protocol, runtime_checkable

from jaxtyping import Float, Float32, Int
import numpy as np

from odin_jax.shared import errors

# Name -> module; all that is needed for another matcher. A module is imported
# when its options are asked for, so it imports torch and the like in functions.
MODULES = {
  'dust3r': 'preprocessing.matchers.dust3r',
  'sphere': 'preprocessing.matchers.sphere',
}
# Largest deviation of a ray's length from 1.
_UNIT_TOLERANCE = 1e-3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Features:
  """Points of one panorama.

  Attributes:
    rays: unit bearing vectors in the axes of the frame.
    noise_rad: how well each point is located.
    descriptors: unit vectors; alike where the points look alike.
  """

  rays: Float[np.ndarray, 'n 3']
  noise_rad: Float[np.ndarray, 'n']
  descriptors: Float32[np.ndarray, 'n d']

  def __len__(self) -> int:
    return len(self.rays)

  def subset(self, keep: np.ndarray) -> 'Features':
    """The features that `keep` (a mask or indices) selects."""
    return Features(
      rays=self.rays[keep],
      noise_rad=self.noise_rad[keep],
      descriptors=self.descriptors[keep],
    )


@runtime_checkable
class Matcher(Protocol):
  """A source of features and matches; `name` goes into the records."""

  name: str

  def describe(self, panorama: np.ndarray) -> Features:
    """Features of a panorama, uint8 [h, w, 3]."""

  def match(
    self,
    source: Features,
    target: Features,
    *,
    expected: Float[np.ndarray, 'n 3'] | None = None,
    gate_rad: float = 0.0,
  ) -> Int[np.ndarray, 'm 2']:
    """Index pairs (source, target) of the same points.

    Args:
      source: features of the source panorama.
      target: features of the target panorama.
      expected: where each source point should lie in the target frame, NaN
        where that is unknown (such a point is not matched); None: anywhere.
      gate_rad: largest distance from the expected place.
    """


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairPose:
  """What a backend itself says of two frames, beside its matches.

  Attributes:
    target2source: pose of the target frame, in a unit of its own.
    confidence: share of what the backend is sure of that agrees with it.
    depths: distances of the points of each match from source and target, with
      the translation as 1.
  """

  target2source: Float[np.ndarray, '3 4']
  confidence: float
  depths: Float[np.ndarray, '2 m']


@runtime_checkable
class GivesPoses(Protocol):
  """A matcher that says where the frames stand, too.

  Its pose competes with those that the matches give
  (`relative_pose.fit_pair`), its depths tie the scales of pairs together
  (`initialization`), and its confidence limits that of the pair.
  """

  def match_and_pose(
    self,
    source: Features,
    target: Features,
    *,
    expected: Float[np.ndarray, 'n 3'] | None = None,
    gate_rad: float = 0.0,
  ) -> tuple[Int[np.ndarray, 'm 2'], PairPose | None]:
    """What `match` gives, and the pose, if there is one to be believed."""


@runtime_checkable
class CountsCalls(Protocol):
  """A matcher whose cost is a number of calls, for the manifest.

  Attributes:
    calls: made so far.
  """

  calls: int

  def calls_bound(self, num_pairs: int, num_requests: int) -> int:
    """The most calls that a video costs.

    Args:
      num_pairs: frame pairs that are asked about.
      num_requests: how often, in all, about any of them.
    """


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checked:
  """Options that can be used.

  Attributes:
    options: with absolute paths, for processes that start in another folder.
    files: those of them that name files on whose contents answers depend.
  """

  options: Mapping[str, Any]
  files: tuple[str, ...] = ()


class Backend(Protocol):
  """A module that `MODULES` names.

  Attributes:
    OPTIONS: its options with their defaults; a value tells its option's type.
  """

  OPTIONS: Mapping[str, Any]

  def check(self, options: Mapping[str, Any]) -> Checked:
    """Checks options before any work is done.

    Raises:
      errors.UserError: no matcher can be made with them.
    """

  def make(self, options: Mapping[str, Any]) -> Matcher:
    """A matcher with options that were checked, for one video."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """The matcher of a run.

  Attributes:
    name: in the config.
    module: what makes it, for processes whose `MODULES` lacks the name.
    options: that were checked.
    files: those of them that name files on whose contents answers depend.
  """

  name: str
  module: str
  options: Mapping[str, Any]
  files: tuple[str, ...] = ()

  def make(self) -> Matcher:
    """A matcher for one video.

    Raises:
      errors.UserError: this process does not find its module.
    """
    try:
      module = importlib.import_module(self.module)
    except ModuleNotFoundError as error:
      if error.name != self.module.partition('.')[0]:
        raise
      raise errors.UserError(
        f'config.matcher={self.name!r}: the processes that do the work find no '
        f'module {self.module}; give its folder in PYTHONPATH'
      ) from error
    return module.make(self.options)


def default_options() -> dict[str, dict[str, Any]]:
  """The options of all matchers, by the matchers' names."""
  return {
    name: dict(importlib.import_module(module).OPTIONS)
    for name, module in MODULES.items()
  }


def checked(name: str, options: Mapping[str, Any]) -> Settings:
  """The matcher that a config asks for.

  Raises:
    errors.UserError: there is no such matcher, or none can be made with these
      options.
  """
  if name not in MODULES:
    raise errors.UserError(
      f'config.matcher={name!r}: give one of {", ".join(sorted(MODULES))}'
    )
  backend: Backend = importlib.import_module(MODULES[name])
  if options.keys() != backend.OPTIONS.keys():
    raise errors.UserError(
      f'config.{name}: has other fields than the options of this matcher: '
      f'{sorted(options.keys() ^ backend.OPTIONS.keys())}'
    )
  usable = backend.check(options)
  return Settings(
    name=name,
    module=MODULES[name],
    options=usable.options,
    files=usable.files,
  )


def check_features(name: str, features: Features) -> None:
  """Checks what a matcher says of a panorama.

  Raises:
    ValueError: they are no features of as many points.
  """
  rays, count = np.asarray(features.rays), len(features.rays)
  shape = count, 3
  if rays.shape != shape or np.shape(features.noise_rad) != (count,):
    raise ValueError(
      f'matcher {name!r}: rays {rays.shape} and noise_rad '
      f'{np.shape(features.noise_rad)}; they must be (n, 3) and (n,)'
    )
  if np.ndim(features.descriptors) != 2 or len(features.descriptors) != count:
    raise ValueError(
      f'matcher {name!r}: {np.shape(features.descriptors)} descriptors of '
      f'{count} points'
    )
  if not np.allclose(np.linalg.norm(rays, axis=1), 1, atol=_UNIT_TOLERANCE):
    raise ValueError(f'matcher {name!r}: rays that are no unit vectors')


def check_matches(
  name: str, matches: np.ndarray, source: Features, target: Features
) -> None:
  """Checks what a matcher says of two panoramas.

  Raises:
    ValueError: they are no index pairs of points, each in one pair at most.
  """
  shape, kind = np.shape(matches), np.asarray(matches).dtype
  if shape != (len(matches), 2) or not np.issubdtype(kind, np.integer):
    raise ValueError(
      f'matcher {name!r}: matches {shape} of {kind}; they must be (m, 2) '
      'indices'
    )
  for side, features, indices in zip(
    ('source', 'target'), (source, target), np.asarray(matches).T, strict=True
  ):
    if not np.all((indices >= 0) & (indices < len(features))):
      raise ValueError(
        f'matcher {name!r}: matches name points that the {side} has not'
      )
    if len(np.unique(indices)) < len(indices):
      raise ValueError(
        f'matcher {name!r}: a point of the {side} is in two matches'
      )
