"""Kept predictions are those of the same request, whole, or made again."""

import numpy as np
import pytest

from odin_jax import scoring
from odin_jax.benchmarks import kept
from odin_jax.shared import posed_pair


class Counting:
  """Predicts the seed, and counts how often it is asked."""

  protocol = {'predictor': 'counting'}

  def __init__(self):
    self.calls = 0

  def predict(self, pairs, seeds):
    self.calls += 1
    colour = seeds.astype(np.float32)[:, None, None, None] / 10
    return np.broadcast_to(colour, pairs.source.shape)


def predict(predictor, store, pairs, seeds):
  return scoring.predict_all(predictor, pairs, seeds, 2, store=store)


def pairs(shift=0.0):
  pose = np.eye(3, 4)
  pose[0, 3] = shift
  return posed_pair.PosedPair(
    source=np.full((2, 4, 4, 3), 7, np.uint8),
    target=None,
    target2source=np.stack([pose, pose]),
    fov_deg=np.full(2, 90.0),
    median_depth=np.ones(2),
  )


def test_a_batch_is_predicted_once_and_what_differs_again(tmp_path):
  predictor, seeds = Counting(), np.array([3, 4])
  for _ in range(2):
    # As a process after another has it.
    keeping = kept.Kept(tmp_path / 'unfinished', {'code': 'a'})
    views = predict(predictor, keeping, pairs(), seeds)
    assert views.dtype == np.float32
    assert views[:, 0, 0, 0] == pytest.approx([0.3, 0.4])
  assert predictor.calls == 1
  predict(predictor, keeping, pairs(0.1), seeds)
  predict(predictor, keeping, pairs(), seeds + 1)
  assert predictor.calls == 3
  keeping.forget()
  assert list(tmp_path.iterdir()) == []


def test_another_request_begins_anew(tmp_path):
  predictor, folder = Counting(), tmp_path / 'unfinished'
  for calls, code in ((1, 'a'), (2, 'b'), (3, 'a')):
    store = kept.Kept(folder, {'code': code})
    predict(predictor, store, pairs(), np.arange(2))
    assert predictor.calls == calls
    assert len(list(folder.glob('*.npz'))) == 1
  # One that keeps nothing.
  for _ in range(2):
    kept.discard(folder)
    assert not folder.exists()


@pytest.mark.parametrize('damage', ['flipped', 'cut', 'emptied'])
def test_a_damaged_file_is_predicted_again(tmp_path, damage):
  predictor = Counting()
  keeping = kept.Kept(tmp_path / 'unfinished', {})
  first = predict(predictor, keeping, pairs(), np.array([3, 4]))
  (path,) = (tmp_path / 'unfinished').glob('*.npz')
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(
    {'flipped': content, 'cut': content[:99], 'emptied': b''}[damage]
  )
  again = predict(predictor, keeping, pairs(), np.array([3, 4]))
  np.testing.assert_array_equal(again, first)
  assert predictor.calls == 2


def test_a_batch_that_was_stopped_leaves_nothing(tmp_path):
  predictor, folder = Counting(), tmp_path / 'unfinished'
  keeping = kept.Kept(folder, {})
  predictor.predict = lambda pairs, seeds: [][0]
  with pytest.raises(IndexError):
    predict(predictor, keeping, pairs(), np.arange(2))
  assert [path.name for path in folder.iterdir()] == ['request.json']
