"""Which layout the frames of a video have: by flag, metadata, or content.

Content is measured in four ways.

* An equirectangular picture goes on across its left-right seam, and its first
  and last rows each show a single point of the sphere.
* The twelve edges of an EAC cube join, of which eight lie apart in the frame.
* The two eyes of a stereo frame see nearly the same.
* A frame of which a quarter is black on either side shows the front half.

What the metadata or a flag say is believed unless the picture clearly fails:
circles on black are fisheyes, whatever the tag; black bars are cut off first.
"""

import dataclasses
import functools
import itertools
import os
from typing import Any, Sequence

import av
import cv2
from jaxtyping import Float, Float32, Int, UInt8
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
# A layout that is claimed is refused only where it clearly fails, for scores of
# dull pictures are poor, and it is confirmed only where it clearly holds; see
# `Decision.confirmed`. Measured on four kinds of worlds, two seeds each, and the
# real video, as they are and in 14 dull ways (fog of 20, 10 and 5 % of the
# contrast, 12 and 6 % of the light, noise, a sky of one grey, blur; JPEG 80),
# against 213 flat views of 60 to 110 degrees cut from them and photographs, in
# the same ways; `_Joints` says what is measured. Joint margin 0.06 or more
# against 0.30 or less, and less than -0.05 for 95 % or more; pole step 0.54 or
# less against 0.65 or more for 90 %. Edges of cubes 0.78 or more against 0.50 or
# less, similarity of eyes 0.90 or more against 0.37 or less. With 6 % of the
# light under noise of four levels all is possible: see `_Joints.is_hidden`.
_CLEAR_MARGIN, _SURE_MARGIN = -0.05, 0.4
_CLEAR_POLE_STEP = 0.65
_CLEAR_EDGES = 0.6
_CLEAR_SIMILARITY = 0.5
# Seam continuity, noise and all, where poles cannot be judged.
_CLEAR_SEAM = 0.2
# Pole detail where rows have at least so many levels of it: 0.25 or less against
# 0.45 or more for all.
_CLEAR_POLE_DETAIL_RICH, _RICH_DETAIL = 0.4, 12.0
# Noise that black cuts off does not cancel: of pictures that are black on
# average nothing is told by detail of less than this share of its power and less
# than so many levels.
_HIDDEN_SHARE, _HIDDEN_DETAIL = 5.5, 3.0
# A picture may be stretched by this factor against its layout's aspect.
_MAX_STRETCH = 1.25
# Bars that are narrower, as a share of the picture, are none.
_MIN_BAR = 0.01
# Of fisheyes: share of the radius that is looked at inside and outside of the
# circle, and the shares of lit pixels that these have at least and at most.
_INSIDE, _OUTSIDE = 0.85, 1.05
_MIN_LIT_INSIDE, _MAX_LIT_OUTSIDE = 0.6, 0.05
_FISHEYES = {1: 'fisheye', 2: 'dual fisheye'}
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
_EPSILON = 1e-6
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
    confirmed: the pictures show it; else they are too dull to tell, and the
      layout rests on the flag or the metadata alone.
    evidence: figures and findings, for the manifest.
  """

  layout: projections.Layout
  source: str
  confirmed: bool
  evidence: dict[str, Any]

  def to_dict(self) -> dict[str, Any]:
    """For the manifest."""
    return {
      'layout': self.layout.to_dict(),
      'source': self.source,
      'confirmed': self.confirmed,
      'evidence': self.evidence,
    }


def decide(
  path: str | os.PathLike[str],
  forced: str | None = None,
  *,
  trusted: bool = False,
) -> Decision:
  """Decides on the layout of a video.

  A name that is given holds, and else what the metadata say, unless the picture
  contradicts them: it fails their layout's test and passes another's. Then the
  picture decides over metadata, and the video is refused where a name was
  given. It is refused, too, where the picture passes no test and clearly fails
  that of the layout. Without metadata the picture decides.

  Args:
    path: the video.
    forced: one of `projections.NAMES`; None or `auto` to find out.
    trusted: `forced` holds, whatever the picture shows.

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
  stated = metadata.layout
  if forced in projections.NAMES:
    layout, source = projections.NAMES[forced], 'flag'
    contradicted = _contradicts(shown, layout, scores)
    fault = '' if trusted else _fault(layout, shown, images, scores)
    if contradicted and not trusted:
      fault = f'its pictures show {shown}; leave --projection out'
  elif stated is not None and not _contradicts(shown, stated, scores):
    layout, source = stated, 'metadata'
    fault = _fault(layout, shown, images, scores)
  elif shown is not None:
    layout, source, fault = projections.NAMES[shown], 'content', ''
  else:
    raise decoding.VideoError(f'{path}: {_refusal(images, metadata, scores)}')
  if fault:
    origin = 'by its metadata' if source == 'metadata' else 'by --projection'
    raise decoding.VideoError(
      f'{path}: {layout.name} {origin}, but {fault}; if it is {layout.name} all '
      f'the same: --projection={layout.name} --trust_projection'
    )
  return Decision(
    layout=layout,
    source=source,
    confirmed=_is_confirmed(layout, shown, images, scores),
    evidence=evidence,
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
  """Key frames from all over a video; of a short one, its beginning too.

  Raises:
    VideoError: all of them are damaged.
  """
  samples = decoding.key_frames(path, _CHECKED_FRAMES)
  if len(samples) < _FEW_FRAMES:
    head = itertools.islice(decoding.sample(path, _HEAD_FPS), _CHECKED_FRAMES)
    samples += [sample.frame for sample in head if not sample.is_damaged]
  if not samples:
    raise decoding.VideoError(
      f'{path}: every picture that was looked at is damaged; get the file again'
    )
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


def _fault(
  layout: projections.Layout,
  shown: str | None,
  images: Sequence[Image],
  scores: Scores,
) -> str:
  """What speaks clearly against a layout that is claimed; '' for nothing."""
  if shown == layout.name or _passes(layout, scores):
    return ''
  return (
    _fisheye_words(images)
    or _bar_words(images)
    or _failure(layout, images, scores)
    or _aspect_words(layout, images[0])
  )


def _failure(
  layout: projections.Layout, images: Sequence[Image], scores: Scores
) -> str:
  """Which test a layout fails so clearly that no dull picture explains it."""
  stereo = layout.stereo
  similarity = scores.get(f'similarity {stereo}', 1.0)
  if similarity < _CLEAR_SIMILARITY:
    return f'its halves are no two eyes (similarity {similarity:.2f})'
  if layout.projection == 'eac':
    edges = scores.get(f'edges {stereo}', 1.0)
    words = f'cube edges do not join ({edges:.2f})'
    return words if edges < _CLEAR_EDGES else ''
  if not _has_poles(layout):
    return ''
  joints = _joints(layout, images)
  if joints.poles is None or joints.is_hidden:
    seam = scores.get(f'seam {stereo}', 1.0)
    words = f'seam continuity {seam:.2f}'
    fails = joints.seam is not None and seam < _CLEAR_SEAM
  else:
    words = f'pole step {joints.poles:.2f}'
    fails = joints.poles > _CLEAR_POLE_STEP
    if joints.margin is not None:
      words = f'seam continuity {joints.seam:.2f}, {words}'
      fails |= joints.margin < _CLEAR_MARGIN
    fails |= joints.is_rich and joints.pole_detail > _CLEAR_POLE_DETAIL_RICH
  if not fails:
    return ''
  return (
    'its pictures are no panorama: opposite edges do not join, or a pole is no '
    f'single point ({words})'
  )


def _is_confirmed(
  layout: projections.Layout,
  shown: str | None,
  images: Sequence[Image],
  scores: Scores,
) -> bool:
  """Whether the pictures alone would do to tell the layout."""
  if shown == layout.name or _passes(layout, scores):
    return True
  if layout.stereo != 'mono' or layout.projection == 'eac':
    return False
  if not _has_poles(layout):
    return False
  margin = _joints(layout, images).margin
  return margin is not None and margin > _SURE_MARGIN


def _has_poles(layout: projections.Layout) -> bool:
  """Whether the first and the last row of an eye show a single point each."""
  return layout.projection == 'equirectangular' and not (
    layout.top or layout.bottom or layout.black_back
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Joints:
  """How the borders of a panorama's pictures join, noise left out.

  Noise adds the same to the mean square of all differences between pixels, so
  it cancels in what is left when one is taken from another. Sums are over all
  pictures.

  Attributes:
    seam: (far - across) / (far - near), of mean squares between the columns
      half a width apart, on either side of the seam, and side by side: 1 where
      it joins, 0 for strangers. None where the layout has no seam.
    poles: how much the first or last row changes over a 64th of its length,
      the larger, against other rows; None of black rows.
    pole_detail: the same with noise, of rows that are averaged.
    is_rich: there is so much detail that `pole_detail` alone tells.
    is_hidden: noise in the dark leaves little to tell by.
  """

  seam: float | None
  poles: float | None
  pole_detail: float
  is_rich: bool
  is_hidden: bool

  @property
  def margin(self) -> float | None:
    """By how much the seam joins more than poles do not."""
    if self.seam is None or self.poles is None:
      return None
    return self.seam - self.poles


def _joints(layout: projections.Layout, images: Sequence[Image]) -> _Joints:
  eyes = [layout.eye(image) for image in images]
  seam = None
  if not (layout.left or layout.right):
    across, near, far = np.sum([_seam_powers(eye) for eye in eyes], axis=0)
    seam = float((far - across) / max(far - near, _EPSILON))
  at_poles, usual, noise = np.sum([_pole_powers(eye) for eye in eyes], axis=0)
  usual = max(usual, _EPSILON)
  poles = None
  if any(eye[[0, -1]].max() > min(_BLACK_LEVEL, eye.max() / 4) for eye in eyes):
    poles = float(np.sqrt(max(at_poles, 0.0) / usual))
  smoothed = [_smoothed(eye) for eye in eyes]
  details = [_pole_detail(eye) for eye in smoothed]
  details = [detail for detail in details if detail is not None]
  is_noisy = usual < _HIDDEN_SHARE * noise
  is_rich = np.median([_usual_detail(eye) for eye in smoothed]) >= _RICH_DETAIL
  return _Joints(
    seam=seam,
    poles=poles,
    pole_detail=float(np.median(details)) if details else 0.0,
    is_rich=bool(is_rich and not is_noisy),
    is_hidden=bool(
      is_noisy
      and np.mean([eye.mean() for eye in eyes]) <= _BLACK_LEVEL
      and usual < len(eyes) * _HIDDEN_DETAIL**2
    ),
  )


def _seam_powers(image: Image) -> Float[np.ndarray, '3']:
  """Mean squares of differences across the seam, of near and far columns."""
  width = image.shape[1]
  columns = np.linspace(0, width - 2, _NUM_LINES).astype(int)

  def power(a: np.ndarray, b: np.ndarray) -> float:
    pixels = image[:, a].astype(np.float32) - image[:, b]
    return float(np.square(pixels).mean())

  return np.array(
    [
      power(np.array([0]), np.array([width - 1])),
      power(columns, columns + 1),
      power(columns, (columns + width // 2) % width),
    ]
  )


def _pole_powers(image: Image) -> Float[np.ndarray, '3']:
  """Changes along the rows at the poles and along others, and the noise.

  Mean squares of differences of pixels a 64th of the width apart, less those of
  neighbours; the least of the latter is the noise.
  """
  height, width = image.shape[:2]
  step = max(1, width // _NUM_LINES)
  rows = np.linspace(height / 4, 3 * height / 4, _NUM_LINES).astype(int)

  def powers(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    pixels = image[rows].astype(np.float32)
    wide = np.square(pixels[:, step:] - pixels[:, :-step]).mean(axis=(1, 2))
    close = np.square(pixels[:, 1:] - pixels[:, :-1]).mean(axis=(1, 2))
    return wide - close, close

  at_poles, close_at_poles = powers(np.array([0, -1]))
  usual, close = powers(rows)
  noise = min(close_at_poles.min(), close.min())
  return np.array([at_poles.max(), np.median(usual), noise])


def _smoothed(image: Image) -> Float32[np.ndarray, 'h w 3']:
  """A picture whose rows are averaged, so that noise is no detail at poles."""
  size = max(1, image.shape[1] // _NUM_LINES)
  return cv2.blur(image.astype(np.float32), (size, 1))


def _aspect_words(layout: projections.Layout, image: Image) -> str:
  """What is wrong with the aspect of a picture; '' for nothing."""
  height, width = layout.eye(image).shape[:2]
  usual = 1.5
  if layout.projection == 'equirectangular':
    across = 1 - layout.left - layout.right
    usual = 2 * across / (1 - layout.top - layout.bottom)
  stretch = width / height / usual
  # Two eyes may be squeezed into the frame of a single one.
  squeezes = (1.0,) if layout.stereo == 'mono' else (0.5, 1.0, 2.0)
  if any(1 / _MAX_STRETCH <= stretch * k <= _MAX_STRETCH for k in squeezes):
    return ''
  size = f'{image.shape[1]}x{image.shape[0]}'
  return (
    f'{size} has another aspect: a picture of that layout is about {usual:.3g} '
    'times as wide as high'
  )


def _fisheye_words(images: Sequence[Image]) -> str:
  """Names fisheyes, and the way out; '' where there are none."""
  for count, name in _FISHEYES.items():
    if np.mean([_has_circles(image, count) for image in images]) > 0.5:
      source = {1: 'fisheye', 2: 'dfisheye'}[count]
      return (
        f'its pictures are {name}, which is not read; convert it: ffmpeg -i IN '
        f'-vf v360={source}:e:ih_fov=190:iv_fov=190 OUT.mp4'
      )
  return ''


def _has_circles(image: Image, count: int) -> bool:
  """Whether so many lit circles, side by side, fill a black frame."""
  height, width = image.shape[:2]
  if not 1 / _MAX_STRETCH <= width / height / count <= _MAX_STRETCH:
    return False
  rows = (np.arange(height) + 0.5) / height * 2 - 1
  columns = (np.arange(width) + 0.5) / width * count % 1 * 2 - 1
  radius = np.hypot(rows[:, None], columns)
  lit = image.max(axis=2) > _BLACK_LEVEL
  return bool(
    lit[radius < _INSIDE].mean() >= _MIN_LIT_INSIDE
    and lit[radius > _OUTSIDE].mean() <= _MAX_LIT_OUTSIDE
  )


def _bar_words(images: Sequence[Image]) -> str:
  """Names black bars around a panorama, and the crop; '' where none are."""
  brightest = functools.reduce(np.maximum, images).max(axis=2)
  height, width = brightest.shape
  lit = [
    np.flatnonzero(np.percentile(brightest, 90, axis=axis) > _BLACK_LEVEL)
    for axis in (1, 0)
  ]
  if not all(map(len, lit)):
    return ''
  (top, bottom), (left, right) = ((lines[0], lines[-1] + 1) for lines in lit)
  bars = {
    'above': top,
    'below': height - bottom,
    'left': left,
    'right': width - right,
  }
  least = {'above': height, 'below': height, 'left': width, 'right': width}
  wide = {name: size for name, size in bars.items() if size}
  if not any(size > _MIN_BAR * least[name] for name, size in wide.items()):
    return ''
  if min(bottom - top, right - left) < _NUM_LINES:
    # A light in the dark.
    return ''
  inner = [image[top:bottom, left:right] for image in images]
  shown, _ = recognise(inner)
  if shown is None:
    return ''
  sizes = ', '.join(f'{size} px {name}' for name, size in wide.items())
  # Codecs have even sizes: a line is given up rather than a bar kept.
  left, top = left + left % 2, top + top % 2
  crop = f'{(right - left) // 2 * 2}:{(bottom - top) // 2 * 2}:{left}:{top}'
  return (
    f'there are black bars around the picture ({sizes}); cut them off: ffmpeg '
    f'-i IN -vf crop={crop} OUT.mp4'
  )


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
  named = _fisheye_words(images) or _bar_words(images)
  if named:
    return named
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
    'projection (--projection=NAME --trust_projection)'
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


def _pole_detail(
  image: Image | Float32[np.ndarray, 'h w 3'],
) -> float | None:
  """Detail along the first or last row, the larger, against other rows'.

  Detail, not contrast: an edge that runs through a pole halves its row, and
  has two steps in it. Nothing is said where there is none in the other rows,
  nor of black bars above and below.
  """
  usual = _usual_detail(image)
  if usual < _MIN_CONTRAST or image[[0, -1]].max() <= _BLACK_LEVEL:
    return None
  return float(_row_detail(image, np.array([0, -1])).max() / usual)


def _usual_detail(image: Image | Float32[np.ndarray, 'h w 3']) -> float:
  """Detail along the rows between the poles, in levels."""
  height = image.shape[0]
  rows = np.linspace(height / 4, 3 * height / 4, _NUM_LINES).astype(int)
  return float(np.median(_row_detail(image, rows)))


def _row_detail(
  image: Image | Float32[np.ndarray, 'h w 3'], rows: Int[np.ndarray, 'r']
) -> Float32[np.ndarray, 'r']:
  """Differences between pixels of a row a small share of its width apart."""
  step = max(1, image.shape[1] // _NUM_LINES)
  pixels = image[rows].astype(np.float32)
  return np.abs(pixels[:, step:] - pixels[:, :-step]).mean(axis=(1, 2))


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
