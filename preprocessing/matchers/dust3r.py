"""The DUSt3R matcher: a network says where points are, descriptors say which.

A panorama is described by the points of `sphere` and cut into perspective
views. For a pair of frames, pairs of views go through the network, each view
encoded once (`dust3r_network`). It gives the scene points of both views in the
axes of the first, so that points of the two frames can be compared in space: a
match is a pair of them that lie close together there, look somewhat alike, and
prefer each other to all others. A pair of views whose pointmaps do not even
agree on the second camera's pose (`pointmaps`) is not believed.

The network runs in the user's own checkout of the official package, with the
user's checkpoint; see `dust3r_checkout` and `launch/setup_dust3r.sh`.
"""

import collections
import dataclasses
import functools
import hashlib
import pathlib
import types
from typing import Any, Generic, Mapping, TypeVar

import cv2
from jaxtyping import Bool, Float, Int, UInt8
import numpy as np
from scipy import spatial

from odin_jax.shared import camera, files
from preprocessing import matchers
from preprocessing import panorama as panoramas
from preprocessing.matchers import (
  dust3r_checkout,
  dust3r_network,
  pointmaps,
  sphere,
  view_pairs,
)

_CHECKPOINT = 'checkpoints/DUSt3R_ViTLarge_BaseDecoder_512_dpt.pth'
# So many points of the target are tried for each of the source.
_NEIGHBOURS = 8
_T = TypeVar('_T')


# The fields of `config.dust3r`; those that `Rules` has are explained there,
# those of the network in `dust3r_network.Network`.
OPTIONS = types.MappingProxyType(
  dict(
    # Checkout of the official package; '': what DUST3R_HOME says.
    home='',
    # File; '': the one that launch/setup_dust3r.sh puts into the checkout.
    checkpoint='',
    device='auto',
    precision='bf16',
    attention='sdpa',
    batch_size=16,
    num_views=8,
    view_width_px=512,
    view_height_px=384,
    fov_deg=90.0,
    features_per_face=800,
    contrast_threshold=0.015,
    max_calls_per_pair=8,
    min_gain=20,
    min_confidence=1.5,
    min_agreement=0.5,
    max_error_px=5.0,
    max_distance=0.03,
    min_similarity=0.5,
    cached_frames=8,
    cached_pairs=20000,
  )
)
_FILES = ('home', 'checkpoint')
_OF_NETWORK = ('device', 'precision', 'attention', 'batch_size')


def check(options: Mapping[str, Any]) -> matchers.Checked:
  """Finds checkout and checkpoint.

  Raises:
    errors.UserError: one of them is not there, or an option has no such value.
  """
  named = {
    option: options[option] and files.local_path(options[option])
    for option in ('home', 'checkpoint')
  }
  home = dust3r_checkout.find_home(named['home'])
  checkpoint = files.require_file(
    named['checkpoint'] or home / _CHECKPOINT,
    'the checkpoint of config.dust3r',
  )
  dust3r_network.check_names(
    device=options['device'],
    precision=options['precision'],
    attention=options['attention'],
  )
  return matchers.Checked(
    options={
      **options,
      'home': str(home.absolute()),
      'checkpoint': str(checkpoint.absolute()),
    },
    files=('checkpoint',),
  )


def make(options: Mapping[str, Any]) -> 'Dust3rMatcher':
  """A matcher with options that were checked, for one video.

  Raises:
    errors.UserError: checkpoint or device cannot be used.
  """
  elsewhere = (*_FILES, *_OF_NETWORK)
  rules = {name: options[name] for name in options if name not in elsewhere}
  return Dust3rMatcher(make_network(options), Rules(**rules))


def make_network(options: Mapping[str, Any]) -> dust3r_network.Network:
  """The network of options that were checked.

  Raises:
    errors.UserError: checkpoint or device cannot be used.
  """
  return _network(
    pathlib.Path(options['home']),
    pathlib.Path(options['checkpoint']),
    **{name: options[name] for name in _OF_NETWORK},
  )


@functools.lru_cache(maxsize=1)
def _network(
  home: pathlib.Path, checkpoint: pathlib.Path, **options: Any
) -> dust3r_network.Network:
  """The network; loaded once for all videos of a process."""
  model = dust3r_checkout.load_model(home, checkpoint)
  return dust3r_network.Network(model, **options)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rules:
  """What is looked at, and what is believed.

  Attributes:
    num_views: per frame, evenly spaced in yaw, at pitch 0.
    view_width_px: a multiple of the network's patch size, as is the height.
    view_height_px: at most the width. The official networks for 512 pixels
      were trained on 4:3 and wider, not on square views.
    fov_deg: horizontal field of view.
    features_per_face: of the points; see `sphere`.
    contrast_threshold: of the points; see `sphere`.
    max_calls_per_pair: view pairs decoded per frame pair, at most.
    min_gain: fewer points that no other view pair shows are not worth a call.
    min_confidence: of a scene point; the network's start at 1.
    min_agreement: smallest share of a view pair's confident points that agree
      on the second camera's pose.
    max_error_px: largest reprojection error of a point that agrees.
    max_distance: between the scene points of a match, as a share of their
      distance from the source.
    min_similarity: smallest cosine between the descriptors of a match.
    cached_frames: so many frames keep their tokens on the device.
    cached_pairs: so many frame pairs keep their answer, some kilobytes each.
  """

  num_views: int
  view_width_px: int
  view_height_px: int
  fov_deg: float
  features_per_face: int
  contrast_threshold: float
  max_calls_per_pair: int
  min_gain: int
  min_confidence: float
  min_agreement: float
  max_error_px: float
  max_distance: float
  min_similarity: float
  cached_frames: int
  cached_pairs: int

  def yaw_deg(self, view: int) -> float:
    """Yaw of a view in its frame."""
    return 360.0 * view / self.num_views


@dataclasses.dataclass(frozen=True, eq=False)
class PanoramaViews:
  """All that is kept of a described panorama.

  Attributes:
    key: digest of its views; the same for a copy in another process.
    png: its views, one below the other.
    points: all of its points.
    pixels: where each view shows each point; NaN where it does not.
  """

  key: bytes
  png: bytes = dataclasses.field(repr=False)
  points: matchers.Features
  pixels: Float[np.ndarray, 'v n 2']

  def in_views(self) -> Bool[np.ndarray, 'n v']:
    """Which views show which points."""
    return np.isfinite(self.pixels[..., 0]).T


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrameFeatures(matchers.Features):
  """Points that know their panorama.

  Attributes:
    panorama: their panorama.
    index: of each among `panorama.points`.
  """

  panorama: PanoramaViews
  index: Int[np.ndarray, 'n']

  def subset(self, keep: np.ndarray) -> 'FrameFeatures':
    """The features that `keep` (a mask or indices) selects."""
    return FrameFeatures(
      rays=self.rays[keep],
      noise_rad=self.noise_rad[keep],
      descriptors=self.descriptors[keep],
      panorama=self.panorama,
      index=self.index[keep],
    )


@dataclasses.dataclass(frozen=True)
class _Answer:
  """What is kept of a frame pair: little, and no pointmaps.

  Attributes:
    matches: of all points of both frames.
    depths: of each from source and target, with their distance as 1.
    pose: of the target frame by the view pair that agrees best, if any.
  """

  matches: Int[np.ndarray, 'm 2']
  depths: Float[np.ndarray, 'm 2']
  pose: pointmaps.ViewPose | None


@dataclasses.dataclass(frozen=True)
class _ClosePoints:
  """Points of two frames that lie close together in space.

  Attributes:
    source: indices.
    target: indices.
    distance: as a share of the distance from the source.
    similarity: of their descriptors.
    depths: of each from source and target, with their distance as 1.
  """

  source: Int[np.ndarray, 'c']
  target: Int[np.ndarray, 'c']
  distance: Float[np.ndarray, 'c']
  similarity: Float[np.ndarray, 'c']
  depths: Float[np.ndarray, 'c 2']

  def subset(self, keep: np.ndarray) -> '_ClosePoints':
    """The rows that `keep` (a mask or indices) selects."""
    return _ClosePoints(*(column[keep] for column in dataclasses.astuple(self)))


class _Recent(Generic[_T]):
  """What was used last, by key."""

  def __init__(self, size: int):
    self._size = size
    self._items: collections.OrderedDict[bytes, _T] = collections.OrderedDict()

  def get(self, key: bytes) -> _T | None:
    if key in self._items:
      self._items.move_to_end(key)
    return self._items.get(key)

  def put(self, key: bytes, item: _T) -> None:
    self._items[key] = item
    while len(self._items) > self._size:
      self._items.popitem(last=False)


class Dust3rMatcher:
  """See the module docstring.

  Attributes:
    calls: pairs of views that the network decoded so far.
  """

  name = 'dust3r'

  def __init__(self, network: dust3r_network.Network, rules: Rules):
    self.calls = 0
    self._network = network
    self._rules = rules
    self._detector = sphere.SphereMatcher(
      features_per_face=rules.features_per_face,
      contrast_threshold=rules.contrast_threshold,
      min_similarity=rules.min_similarity,
      max_ratio=1.0,
    )
    # Two frames are in use at a time.
    self._tokens: _Recent[list[dust3r_network.Tokens]] = _Recent(
      max(2, rules.cached_frames)
    )
    self._answers: _Recent[_Answer] = _Recent(rules.cached_pairs)

  def calls_bound(self, num_pairs: int, num_requests: int) -> int:
    """The most `calls` of a video; see `matchers.CountsCalls`."""
    # Answers are kept, so that no pair is looked at twice.
    num_answers = num_requests
    if num_pairs <= self._rules.cached_pairs:
      num_answers = min(num_pairs, num_requests)
    return num_answers * self._rules.max_calls_per_pair

  def describe(self, panorama: UInt8[np.ndarray, 'h w 3']) -> FrameFeatures:
    """Points of a panorama; see `Matcher.describe`."""
    rules = self._rules
    points = self._detector.describe(panorama)
    margin_px = (rules.view_width_px - rules.view_height_px) // 2
    views = [
      panoramas.cut_view(
        panorama,
        yaw_deg=rules.yaw_deg(view),
        pitch_deg=0.0,
        fov_deg=rules.fov_deg,
        size_px=rules.view_width_px,
      )[margin_px : margin_px + rules.view_height_px]
      for view in range(rules.num_views)
    ]
    column = np.concatenate(views)
    options = [cv2.IMWRITE_PNG_COMPRESSION, 1]
    return FrameFeatures(
      rays=points.rays,
      noise_rad=points.noise_rad,
      descriptors=points.descriptors,
      panorama=PanoramaViews(
        hashlib.sha256(column.tobytes()).digest(),
        cv2.imencode('.png', column[..., ::-1], options)[1].tobytes(),
        points,
        self._project(points.rays),
      ),
      index=np.arange(len(points)),
    )

  def match(
    self,
    source: FrameFeatures,
    target: FrameFeatures,
    *,
    expected: Float[np.ndarray, 'n 3'] | None = None,
    gate_rad: float = 0.0,
  ) -> Int[np.ndarray, 'm 2']:
    """Points that are one in space; see `Matcher.match`.

    The first answer about a frame pair is kept and holds for any subset of its
    features: `expected` chooses the views when the pair is new, and the gate
    is applied to the answer.
    """
    return self.match_and_pose(
      source, target, expected=expected, gate_rad=gate_rad
    )[0]

  def match_and_pose(
    self,
    source: FrameFeatures,
    target: FrameFeatures,
    *,
    expected: Float[np.ndarray, 'n 3'] | None = None,
    gate_rad: float = 0.0,
  ) -> tuple[Int[np.ndarray, 'm 2'], matchers.PairPose | None]:
    """Matches, and the pose by the pointmaps; see `GivesPoses`.

    The pose is that of the view pair whose points agree best.
    """
    answer = self._answer(source, target, expected)
    matches = np.stack(
      [
        _positions(features)[answer.matches[:, side]]
        for side, features in enumerate((source, target))
      ],
      axis=1,
    )
    good = np.all(matches >= 0, axis=1)
    if expected is not None:
      apart = np.linalg.norm(
        expected[matches[:, 0]] - target.rays[matches[:, 1]], axis=1
      )
      # A distance from NaN is not within the gate.
      good &= apart < 2 * np.sin(gate_rad / 2)
    index = np.flatnonzero(good)
    index = index[np.lexsort(matches[index].T[::-1])]
    pose = None
    if answer.pose is not None:
      pose = matchers.PairPose(
        target2source=answer.pose.target2source,
        confidence=answer.pose.confidence,
        depths=answer.depths[index].T,
      )
    return matches[index], pose

  def _answer(
    self,
    source: FrameFeatures,
    target: FrameFeatures,
    expected: Float[np.ndarray, 'n 3'] | None,
  ) -> _Answer:
    key = source.panorama.key + target.panorama.key
    answer = self._answers.get(key)
    if answer is None:
      views = self._choose_views(source, expected)
      if not views:
        return _Answer(*_mutual([]), None)
      answer = self._compare(source.panorama, target.panorama, views)
      self._answers.put(key, answer)
    return answer

  def _choose_views(
    self, source: FrameFeatures, expected: Float[np.ndarray, 'n 3'] | None
  ) -> list[tuple[int, int]]:
    rules = self._rules
    expected_in_views = None
    if expected is not None:
      expected_in_views = np.isfinite(self._project(expected)[..., 0]).T
    return view_pairs.yaw_candidates(
      source.panorama.in_views()[source.index],
      expected_in_views,
      max_pairs=rules.max_calls_per_pair,
      min_gain=rules.min_gain,
    )

  def _compare(
    self,
    source: PanoramaViews,
    target: PanoramaViews,
    views: list[tuple[int, int]],
  ) -> _Answer:
    """Asks the network."""
    source_tokens = self._encoded(source)
    target_tokens = self._encoded(target)
    self.calls += len(views)
    close: list[_ClosePoints] = []
    poses: list[pointmaps.ViewPose] = []
    decoded = self._network.decode(
      [
        (source_tokens[in_source], target_tokens[in_target])
        for in_source, in_target in views
      ]
    )
    for (view_one, view_two), maps in zip(views, decoded):
      pose = self._believed_pose(maps)
      if pose is not None:
        poses.append(self._frame_pose(pose, view_one, view_two))
        close.append(
          self._close_points(
            source,
            target,
            (view_one, view_two),
            maps,
            pose.target2source[:, 3],
          )
        )
    return _Answer(
      *_mutual(close),
      max(poses, key=lambda pose: pose.num_inliers, default=None),
    )

  def _encoded(self, panorama: PanoramaViews) -> list[dust3r_network.Tokens]:
    """Tokens of a panorama's views, from the cache where they are in it."""
    tokens = self._tokens.get(panorama.key)
    if tokens is None:
      column = cv2.imdecode(
        np.frombuffer(panorama.png, np.uint8), cv2.IMREAD_COLOR
      )
      tokens = self._network.encode(
        np.stack(np.split(column[..., ::-1], self._rules.num_views))
      )
      self._tokens.put(panorama.key, tokens)
    return tokens

  def _believed_pose(
    self, maps: dust3r_network.PairMaps
  ) -> pointmaps.ViewPose | None:
    pose = pointmaps.pose_from_pointmap(
      maps.points_two,
      maps.confidence_two,
      fov_deg=self._rules.fov_deg,
      min_confidence=self._rules.min_confidence,
      max_error_px=self._rules.max_error_px,
    )
    if pose is None or pose.confidence < self._rules.min_agreement:
      return None
    return pose

  def _frame_pose(
    self, pose: pointmaps.ViewPose, view_one: int, view_two: int
  ) -> pointmaps.ViewPose:
    """The pose of the frame of a pose of its view."""
    target2view_one = camera.compose(
      pose.target2source, camera.inverse(self._view2frame(view_two))
    )
    return dataclasses.replace(
      pose,
      target2source=camera.compose(self._view2frame(view_one), target2view_one),
    )

  def _view2frame(self, view: int) -> Float[np.ndarray, '3 4']:
    return camera.make_pose(
      camera.view2frame_rotation(self._rules.yaw_deg(view), 0.0), np.zeros(3)
    )

  def _close_points(
    self,
    source: PanoramaViews,
    target: PanoramaViews,
    views: tuple[int, int],
    maps: dust3r_network.PairMaps,
    camera_two: Float[np.ndarray, '3'],
  ) -> _ClosePoints:
    """Points of a view pair that are close in space and look alike.

    Args:
      source: the panorama of view one.
      target: the panorama of view two.
      views: their numbers.
      maps: of the view pair.
      camera_two: place of view two in the axes of view one.
    """
    index_one, points_one = self._scene_points(
      source.pixels[views[0]], maps.points_one, maps.confidence_one
    )
    index_two, points_two = self._scene_points(
      target.pixels[views[1]], maps.points_two, maps.confidence_two
    )
    if not (len(index_one) and len(index_two)):
      return _ClosePoints(
        index_one[:0], index_two[:0], np.zeros(0), np.zeros(0), np.zeros((0, 2))
      )
    distance, nearest = spatial.KDTree(points_two).query(
      points_one, k=np.arange(1, min(_NEIGHBOURS, len(index_two)) + 1)
    )
    distance /= np.linalg.norm(points_one, axis=1, keepdims=True)
    row, column = np.nonzero(distance < self._rules.max_distance)
    neighbour = nearest[row, column]
    close = _ClosePoints(
      index_one[row],
      index_two[neighbour],
      distance[row, column],
      np.einsum(
        'md,md->m',
        source.points.descriptors[index_one[row]],
        target.points.descriptors[index_two[neighbour]],
      ),
      np.stack(
        [
          np.linalg.norm(points_one[row], axis=1),
          np.linalg.norm(points_two[neighbour] - camera_two, axis=1),
        ],
        axis=1,
      )
      / np.linalg.norm(camera_two),
    )
    return close.subset(close.similarity >= self._rules.min_similarity)

  def _scene_points(
    self,
    pixels: Float[np.ndarray, 'n 2'],
    points: np.ndarray,
    confidence: np.ndarray,
  ) -> tuple[Int[np.ndarray, 'm'], Float[np.ndarray, 'm 3']]:
    """The points that a view shows with confidence, and where they are."""
    index = np.flatnonzero(np.isfinite(pixels[:, 0]))
    points_and_confidence = pointmaps.read(
      np.concatenate([points, confidence[..., None]], axis=-1), pixels[index]
    )
    good = points_and_confidence[:, 3] >= self._rules.min_confidence
    good &= np.isfinite(points_and_confidence).all(axis=1)
    return index[good], points_and_confidence[good, :3].astype(np.float64)

  def _project(
    self, rays: Float[np.ndarray, 'n 3']
  ) -> Float[np.ndarray, 'v n 2']:
    """Where each view shows rays of its frame; NaN where it does not."""
    rules = self._rules
    size = np.array([rules.view_width_px, rules.view_height_px])
    matrix = pointmaps.intrinsics(rules.fov_deg, *size.tolist())
    pixels = np.full((rules.num_views, len(rays), 2), np.nan)
    for view in range(rules.num_views):
      turn = camera.view2frame_rotation(rules.yaw_deg(view), 0.0)
      projected, depth = camera.project(rays @ turn, matrix)
      # NaN is inside of nothing.
      inside = np.all((projected >= 0) & (projected <= size), axis=1)
      inside &= depth > 0
      pixels[view, inside] = projected[inside]
    return pixels


def _mutual(
  close: list[_ClosePoints],
) -> tuple[Int[np.ndarray, 'm 2'], Float[np.ndarray, 'm 2']]:
  """Of all close points those pairs that come first for both of their points.

  The closer pair comes first; of pairs at one distance (a point that has
  several orientations) the one that looks more alike.
  """
  if not close:
    return np.zeros((0, 2), np.int32), np.zeros((0, 2))
  source, target, distance, similarity, depths = (
    np.concatenate(column)
    for column in zip(*(dataclasses.astuple(item) for item in close))
  )
  order = np.lexsort((target, source, -similarity, distance))
  ends = np.stack([source, target], axis=1)[order]
  first = np.ones(len(ends), bool)
  for side in ends.T:
    leads = np.zeros(len(side), bool)
    leads[np.unique(side, return_index=True)[1]] = True
    first &= leads
  return ends[first].astype(np.int32), depths[order][first]


def _positions(features: FrameFeatures) -> Int[np.ndarray, 'n']:
  """Position of each point of the frame in a subset; -1 where it is not."""
  positions = np.full(len(features.panorama.points), -1)
  positions[features.index] = np.arange(len(features))
  return positions
