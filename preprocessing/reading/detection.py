"""Which layout the frames of a video have: by flag, metadata, or content.

Content is measured in four ways.

* An equirectangular picture goes on across its left-right seam, and its first
  and last rows each show a single point of the sphere.
* The twelve edges of an EAC cube join, of which eight lie apart in the frame.
* The two eyes of a stereo frame see nearly the same.
* A frame of which a quarter is black on either side shows the front half.
"""

import dataclasses
import functools
import itertools
import os
from typing import Any, Sequence

import av
import cv2
from jaxtyping import Float, Float32, UInt8
import numpy as np

from preprocessing.reading import decoding, projections, spherical

Image = UInt8[np.ndarray, 'h w 3']
Scores = dict[str, float]

# Medians over a video, measured on a real hand-held one and eight procedural
# ones, each in twelve layouts and several aspects, and on flat crops of them:
# seam continuity 0.54 or more where it is real, else 0.25 or less; pole detail
# 0.12 or less, else 0.50 or more; edge continuity 0.98 or more, else 0.32 or
# less; similarity 0.86 or more, else 0.17 or less. Of 190 photographs and crops
# of them: seam continuity up to 0.89, pole detail 0.33 or more; so both are
# asked for.
_MIN_SEAM_CONTINUITY = 0.4
_MAX_POLE_DETAIL = 0.25
_MIN_EDGE_CONTINUITY = 0.7
_MIN_SIMILARITY = 0.6
_HAS_SEAM = ('seam', _MIN_SEAM_CONTINUITY, np.inf)
_HAS_POLES = ('poles', 0.0, _MAX_POLE_DETAIL)
# Kind -> scores with the least and the most that each may be.
_TESTS = {
  'equirectangular': (_HAS_SEAM, _HAS_POLES),
  'eac': (('edges', _MIN_EDGE_CONTINUITY, np.inf),),
  'vr180': (_HAS_POLES,),
  'vr180-padded': (('front poles', 0.0, _MAX_POLE_DETAIL),),
}
# Columns that differ by less (in grey levels) say nothing about the seam.
_MIN_CONTRAST = 2.0
# Pixels up to this level are black, also after compression.
_BLACK_LEVEL = 24
# What a black border may differ from a quarter of the width by.
_MAX_BORDER_OFF = 0.02
# Frames that are looked at. Fewer key frames than the second are few, and
# frames of the beginning are taken at this rate.
_CHECKED_FRAMES, _FEW_FRAMES, _HEAD_FPS = 10, 4, 2.0
# Columns or rows that are compared.
_NUM_LINES = 64
_THUMBNAIL_PX = 32
# What content may show, per stereo mode: similar halves first, since two eyes
# one above the other pass for a single panorama. One half-equirectangular
# picture alone has too little to be told from a flat one by.
_KINDS = {
  'top-bottom': ('equirectangular', 'eac', 'vr180'),
  'left-right': ('equirectangular', 'eac', 'vr180'),
  'mono': ('equirectangular', 'eac', 'vr180-padded'),
}
# Numbers of axes (+x +y +z -x -y -z) on either side of the edges of an EAC cube
# that lie apart in the frame: all but those within left, front, right and
# down, back, up.
_APART_EDGES = (
  (0, 1),
  (0, 4),
  (0, 5),
  (1, 2),
  (1, 3),
  (2, 4),
  (3, 4),
  (3, 5),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decision:
  """The layout of a video, and why.

  Attributes:
    layout: of its frames.
    source: `flag`, `metadata` or `content`.
    evidence: figures and findings, for the manifest.
  """

  layout: projections.Layout
  source: str
  evidence: dict[str, Any]

  def to_dict(self) -> dict[str, Any]:
    """For the manifest."""
    return {
      'layout': self.layout.to_dict(),
      'source': self.source,
      'evidence': self.evidence,
    }


def decide(path: str | os.PathLike[str], forced: str | None = None) -> Decision:
  """Decides on the layout of a video.

  A name that is given holds, whatever the picture shows. Else metadata hold
  unless the picture contradicts them: it fails their layout's test and passes
  another's. Without metadata the picture decides.

  Args:
    path: the video.
    forced: one of `projections.NAMES`; None or `auto` to find out.

  Raises:
    decoding.VideoError: no video, or no 360-degree video.
    ValueError: `forced` is no layout.
  """
  if forced not in (None, 'auto', *projections.NAMES):
    raise ValueError(
      f'projection {forced!r}: give auto or one of '
      f'{", ".join(projections.NAMES)}'
    )
  samples = _samples(path)
  images = [decoding.to_rgb(frame) for frame in samples]
  metadata = spherical.read(path, samples[0])
  shown, scores = recognise(images)
  evidence = {
    'frames': len(images),
    'aspect': round(images[0].shape[1] / images[0].shape[0], 3),
    'metadata': _words(metadata),
    'content': shown,
    'scores': scores,
  }
  if forced in projections.NAMES:
    return Decision(
      layout=projections.NAMES[forced], source='flag', evidence=evidence
    )
  stated = metadata.layout
  if stated is not None and not _contradicts(shown, stated, scores):
    return Decision(layout=stated, source='metadata', evidence=evidence)
  if shown is None:
    raise decoding.VideoError(f'{path}: {_refusal(images, metadata, scores)}')
  return Decision(
    layout=projections.NAMES[shown], source='content', evidence=evidence
  )


def recognise(images: Sequence[Image]) -> tuple[str | None, Scores]:
  """The layout that pictures of one video show, and all figures.

  Returns:
    a name of `projections.NAMES`, or None where they pass no test; scores by
    name, medians over the pictures of which something can be said.
  """
  rows: dict[str, list[float]] = {}
  for image in images:
    for name, value in _scores(image).items():
      rows.setdefault(name, []).append(value)
  scores = {name: float(np.median(rows[name])) for name in sorted(rows)}
  scores = {name: round(value, 3) for name, value in scores.items()}
  for stereo, kinds in _KINDS.items():
    for kind in kinds:
      layout = dataclasses.replace(projections.NAMES[kind], stereo=stereo)
      if _passes(layout, scores):
        return layout.name, scores
  return None, scores


def _samples(path: str | os.PathLike[str]) -> list[av.VideoFrame]:
  """Key frames from all over a video; of a short one, its beginning too."""
  samples = decoding.key_frames(path, _CHECKED_FRAMES)
  if len(samples) < _FEW_FRAMES:
    head = itertools.islice(decoding.sample(path, _HEAD_FPS), _CHECKED_FRAMES)
    samples += [frame for _, frame in head]
  return samples


def _contradicts(
  shown: str | None, stated: projections.Layout, scores: Scores
) -> bool:
  """Whether pictures show another layout than the metadata state.

  Two eyes in one frame may pass for a single panorama, but not the other way
  round, so a different stereo mode is a contradiction in itself.
  """
  if shown is None or shown == stated.name:
    return False
  same_stereo = projections.NAMES[shown].stereo == stated.stereo
  return not (same_stereo and _passes(stated, scores))


def _passes(layout: projections.Layout, scores: Scores) -> bool:
  """Whether figures speak for a layout; a figure that is absent does not."""
  stereo = layout.stereo
  if scores.get(f'similarity {stereo}', 1.0) < _MIN_SIMILARITY:
    return False
  kind = dataclasses.replace(layout, stereo='mono').name
  for score, least, most in _TESTS[kind]:
    if not least <= scores.get(f'{score} {stereo}', np.nan) <= most:
      return False
  return True


def _words(metadata: spherical.Metadata) -> str:
  """What the file says of itself, in short."""
  words = [metadata.layout.name] if metadata.layout else []
  words += [metadata.unknown] if metadata.unknown else []
  words += ['mesh'] if metadata.mesh else []
  if metadata.stereo and not metadata.layout:
    words.append(metadata.stereo)
  return ', '.join(words) or 'none'


def _refusal(
  images: Sequence[Image], metadata: spherical.Metadata, scores: Scores
) -> str:
  """Why a video is refused, and what to do."""
  unknown = metadata.unknown or ('mesh' if metadata.mesh else '')
  if unknown:
    return (
      f'its metadata name a projection that is not read ({unknown}), and its '
      'pictures show none that is; convert it to equirectangular'
    )
  if not scores:
    return (
      'its pictures are too plain to tell whether it is a 360-degree video; '
      'cut plain parts off, or name its projection'
    )
  height, width = images[0].shape[:2]
  seam, poles, edges = (
    f'{scores[name]:.2f}' if name in scores else 'unknown'
    for name in ('seam mono', 'poles mono', 'edges mono')
  )
  return (
    f'{width}x{height} is no 360-degree video: the left edge does not go on '
    'from the right edge, or a pole is no single point (seam continuity '
    f'{seam}, at least {_MIN_SEAM_CONTINUITY}; pole detail {poles}, '
    f'at most {_MAX_POLE_DETAIL}), nor do cube edges join ({edges}, at '
    f'least {_MIN_EDGE_CONTINUITY}); give a 360-degree video, or name its '
    'projection'
  )


def _scores(image: Image) -> Scores:
  """All figures of a picture; one is absent where nothing can be said."""
  scores = {}
  for stereo in _KINDS:
    eye = projections.Layout(stereo=stereo).eye(image)
    figures = {
      'seam': _seam_continuity(eye),
      'poles': _pole_detail(eye),
      'edges': _edge_continuity(eye),
      'front poles': _front_poles(eye),
      'similarity': _similarity(image, stereo),
    }
    scores |= {
      f'{name} {stereo}': value
      for name, value in figures.items()
      if value is not None
    }
  return scores


def _seam_continuity(image: Image) -> float | None:
  """1 where the last column goes on in the first, 0 where they are strangers.

  Nothing is said where columns are alike, or the seam has no contrast, as in
  black bars.
  """
  width = image.shape[1]
  columns = np.linspace(0, width - 2, _NUM_LINES).astype(int)

  def difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    pixels = image[:, a].astype(np.float32) - image[:, b]
    return np.abs(pixels).mean(axis=(0, 2))

  seam = difference(np.array([0]), np.array([width - 1]))[0]
  near = np.median(difference(columns, columns + 1))
  far = np.median(difference(columns, (columns + width // 2) % width))
  if (
    far - near < _MIN_CONTRAST or image[:, [0, -1]].std(0).max() < _MIN_CONTRAST
  ):
    return None
  return float((far - seam) / (far - near))


def _pole_detail(image: Image) -> float | None:
  """Detail along the first or last row, the larger, against other rows'.

  Detail, not contrast: an edge that runs through a pole halves its row, and
  has two steps in it. Nothing is said where there is none in the other rows,
  nor of black bars above and below.
  """
  height, width = image.shape[:2]
  step = max(1, width // _NUM_LINES)

  def detail(rows: np.ndarray) -> np.ndarray:
    pixels = image[rows].astype(np.float32)
    return np.abs(pixels[:, step:] - pixels[:, :-step]).mean(axis=(1, 2))

  rows = np.linspace(height / 4, 3 * height / 4, _NUM_LINES).astype(int)
  usual = np.median(detail(rows))
  if usual < _MIN_CONTRAST or image[[0, -1]].max() <= _BLACK_LEVEL:
    return None
  return float(detail(np.array([0, -1])).max() / usual)


def _edge_continuity(image: Image) -> float | None:
  """1 where the faces of an EAC cube join at its edges, 0 for strangers.

  Only the edges are looked at whose sides lie apart in the frame.
  """
  height, width = image.shape[:2]
  pairs = _edge_directions(2 * np.pi / width)
  u, v = projections.NAMES['eac'].pixels(pairs, width, height)
  lines = cv2.remap(
    image,
    (u.reshape(len(pairs), -1) - 0.5).astype(np.float32),
    (v.reshape(len(pairs), -1) - 0.5).astype(np.float32),
    cv2.INTER_LINEAR,
    borderMode=cv2.BORDER_REPLICATE,
  )
  lines = lines.reshape(*pairs.shape[:3], 3).astype(np.float32)
  inner, here, there = lines[:, 0], lines[:, 1], lines[:, 2]
  near = np.abs(here - inner).mean()
  edge = np.abs(here - there).mean(axis=(1, 2))
  far = np.abs(here - np.roll(there, 1, axis=0)).mean()
  if far - near < _MIN_CONTRAST:
    return None
  return float((far - np.median(edge)) / (far - near))


@functools.lru_cache(maxsize=8)
def _edge_directions(step_rad: float) -> Float[np.ndarray, 'e 3 n 3']:
  """Lines along cube edges: inside a face, at its border, across the edge."""
  axes = np.concatenate([np.eye(3), -np.eye(3)])
  along = np.linspace(-0.95, 0.95, _NUM_LINES)[:, None]
  lines = []
  for first, second in _APART_EDGES:
    corner = axes[first] + axes[second]
    across = axes[first] - axes[second]
    edge = corner + along * np.cross(axes[first], axes[second])
    lines.append([edge + k * step_rad * across for k in (3, 1, -1)])
  return np.array(lines)


def _similarity(image: Image, stereo: str) -> float | None:
  """Correlation of the two eyes' pictures, less the means of row and column."""
  if stereo == 'mono':
    return None
  grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
  axis = 0 if stereo == 'top-bottom' else 1
  eyes = np.array_split(grey, 2, axis)
  first, second = (_thumbnail(eye) for eye in eyes)
  if min(first.std(), second.std()) < _MIN_CONTRAST:
    return None
  return float((first * second).mean() / (first.std() * second.std()))


def _thumbnail(grey: UInt8[np.ndarray, 'h w']) -> Float32[np.ndarray, 's s']:
  size = (_THUMBNAIL_PX, _THUMBNAIL_PX)
  small = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
  small = small.astype(np.float32)
  small -= small.mean(axis=0, keepdims=True)
  return small - small.mean(axis=1, keepdims=True)


def _front_poles(image: Image) -> float | None:
  """Pole detail of the front half, where all the rest is black."""
  height, width = image.shape[:2]
  if image[:, 0].max() > _BLACK_LEVEL:
    return None
  rows = np.linspace(0, height - 1, _NUM_LINES).astype(int)
  lit = np.flatnonzero(image[rows].max(axis=(0, 2)) > _BLACK_LEVEL)
  if not len(lit):
    return None
  borders = np.array([lit[0], width - 1 - lit[-1]]) / width
  if np.abs(borders - 0.25).max() > _MAX_BORDER_OFF:
    return None
  return _pole_detail(image[:, lit[0] : lit[-1] + 1])
