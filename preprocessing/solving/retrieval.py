"""How alike whole frames look: one short vector per frame.

VLAD: descriptors are shared out among a few words, and what is left of them
after their word is taken away is summed up per word. The words are those of
the video itself. H. Jegou et al., "Aggregating local descriptors into a compact
image representation", CVPR 2010; R. Arandjelovic and A. Zisserman, "All about
VLAD", CVPR 2013 (each word's sum gets length 1).
"""

from typing import Sequence

from jaxtyping import Float, Float32, Int
import numpy as np

from preprocessing import matchers

_WORDS = 16
_ITERATIONS = 10
# Of all descriptors of a video, for the words.
_SAMPLE = 4096


def similarities(
  features: Sequence[matchers.Features],
) -> Float[np.ndarray, 'f f']:
  """Cosine between the global descriptors of all frames.

  Frames without features are like none, themselves included.
  """
  sample = _sample([frame.descriptors for frame in features])
  if not len(sample):
    return np.zeros((len(features), len(features)))
  words = _words(sample)
  vectors = np.stack(
    [_describe(frame.descriptors, words) for frame in features]
  )
  return (vectors @ vectors.T).astype(np.float64)


def _sample(
  descriptors: Sequence[Float32[np.ndarray, '_ d']],
) -> Float32[np.ndarray, 'n d']:
  """An even sample of all rows, which are never put together."""
  ends = np.cumsum([len(rows) for rows in descriptors])
  index = _evenly(np.arange(ends[-1]), _SAMPLE)
  return np.concatenate(
    [
      rows[index[(index >= end - len(rows)) & (index < end)] - end + len(rows)]
      for rows, end in zip(descriptors, ends)
    ]
  )


def _words(
  sample: Float32[np.ndarray, 'n d'],
) -> Float32[np.ndarray, 'k d']:
  """Spherical k-means."""
  words = _evenly(sample, _WORDS)
  for _ in range(_ITERATIONS):
    sums = _sum_by(np.argmax(sample @ words.T, axis=1), sample, len(words))
    length = np.linalg.norm(sums, axis=1, keepdims=True)
    words = np.where(length > 0, sums / np.maximum(length, 1e-12), words)
  return words


def _evenly(rows: np.ndarray, count: int) -> np.ndarray:
  index = np.linspace(0, len(rows) - 1, min(count, len(rows)))
  return rows[index.astype(np.int64)]


def _describe(
  descriptors: Float32[np.ndarray, 'n d'], words: Float32[np.ndarray, 'k d']
) -> Float32[np.ndarray, 'kd']:
  word = np.argmax(descriptors @ words.T, axis=1)
  sums = _sum_by(word, descriptors - words[word], len(words))
  sums /= np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
  return sums.ravel() / max(np.linalg.norm(sums), 1e-12)


def _sum_by(
  index: Int[np.ndarray, 'n'], rows: Float32[np.ndarray, 'n d'], count: int
) -> Float32[np.ndarray, 'k d']:
  belongs = index == np.arange(count)[:, None]
  return belongs.astype(np.float32) @ rows
