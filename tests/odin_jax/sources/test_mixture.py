"""Mixtures of sources: shares, epochs, random access."""

import collections

import numpy as np
import pytest

from odin_jax import batches
from odin_jax.shared import posed_pair
from odin_jax.sources import mixture


class Numbers:
  """A source of numbers, which says what is drawn."""

  def __init__(self, first, count):
    self.first, self.count = first, count

  def __len__(self):
    return self.count

  def __getitem__(self, index):
    return self.draw(index, None)

  def draw(self, index, rng):
    assert 0 <= index < self.count
    number = np.array(self.first + index)
    return posed_pair.PosedPair(number, number, number, number, number)

  def place(self, index):
    return f'number {self.first + index}'

  def fingerprint(self):
    return f'{self.first}'


def a_mixture(weights, counts=(50, 70)):
  sources = [Numbers(100 * i, count) for i, count in enumerate(counts)]
  return mixture.Mixture(sources, weights)


def taken(mixed, numbers, seed=0):
  order = batches.order(mixed, seed)
  return [int(mixed[int(order[i])].source) for i in numbers]


@pytest.mark.parametrize(
  'shares', [[1], [3, 1], [1, 1, 1], [2, 7, 3], [2870, 76], [1, 999]]
)
def test_turns_are_shared_exactly(shares):
  """Every source has its turns one by one, and its share of any beginning."""
  turns = [0] * len(shares)
  for number in range(4000):
    which, before = mixture.turn(number, shares)
    assert turns[which] == before
    turns[which] += 1
    due = np.array(shares) * (number + 1) / sum(shares)
    assert np.abs(turns - due).max() < len(shares)
  assert 4000 % sum(shares) or list(turns) == list(due)


def test_examples_are_taken_by_weight():
  # As they are written: 0.3 is three of 0.1.
  chosen = taken(a_mixture((0.3, 0.1), (60, 40)), range(400))
  assert sum(number < 100 for number in chosen) == 300
  # Of each source every record once an epoch, in new orders.
  for first, count in ((0, 60), (100, 40)):
    own = [number for number in chosen if first <= number < first + 100]
    epochs = [own[i : i + count] for i in range(0, len(own) - count + 1, count)]
    for epoch in epochs:
      assert sorted(epoch) == list(range(first, first + count))
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs) > 1


def test_without_weights_it_is_one_folder():
  mixed = a_mixture(None)
  chosen = taken(mixed, range(240))
  assert sorted(chosen[:120]) == sorted(chosen[120:])
  assert len(set(chosen)) == len(mixed) == 120
  orders = batches.order(mixed, 0), batches.shuffled(120, 0)
  assert all(orders[0][i] == orders[1][i] for i in range(24))


def test_an_example_follows_from_its_number_and_the_seed():
  order = batches.order(a_mixture((2, 1)), 0)
  whole = [int(order[i]) for i in range(50)]
  again = batches.order(a_mixture((2, 1)), 0)
  assert [int(again[i]) for i in (49, 3, 20)] == [whole[i] for i in (49, 3, 20)]
  other = batches.order(a_mixture((2, 1)), 1)
  assert [int(other[i]) for i in range(50)] != whole
  mixed = a_mixture((2, 1))
  for index in whole:
    assert mixed.place(index) == f'number {mixed[index].source}'
  # Sources of one length are not in step.
  twins = taken(a_mixture((1, 1), (90, 90)), range(100))
  own = collections.defaultdict(list)
  for number in twins:
    own[number // 100].append(number % 100)
  assert own[0] != own[1]


def test_it_knows_its_sources_apart():
  prints = {
    a_mixture(None).fingerprint(),
    mixture.Mixture([Numbers(100, 70), Numbers(0, 50)]).fingerprint(),
    Numbers(0, 50).fingerprint(),
  }
  assert len(prints) == 3
