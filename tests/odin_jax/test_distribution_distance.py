"""FID and KID against closed forms and slow oracles, and bad networks."""

import numpy as np
import pytest

from odin_jax import distribution_distance
from odin_jax.shared import errors


def exact_gaussian(mean, covariance, count, seed=0):
  """Rows whose own mean and covariance are those, but for rounding."""
  generator = np.random.default_rng(seed)
  rows = generator.normal(size=(count, len(mean)))
  rows -= rows.mean(0)
  whitening = np.linalg.inv(np.linalg.cholesky(np.atleast_2d(np.cov(rows.T))))
  return mean + rows @ whitening.T @ np.linalg.cholesky(covariance).T


def random_features(count, width, seed):
  generator = np.random.default_rng(seed)
  mixing = generator.normal(size=(width, width))
  return generator.normal(size=(count, width)) @ mixing + generator.normal()


def test_in_one_dimension_fid_is_of_means_and_deviations():
  x = exact_gaussian(np.array([1.0]), np.array([[4.0]]), 50, seed=1)
  y = exact_gaussian(np.array([-0.5]), np.array([[0.25]]), 70, seed=2)
  # Means are 1.5 apart, deviations too.
  assert distribution_distance.frechet_distance(x, y) == pytest.approx(4.5)


def test_with_diagonal_covariances_fid_is_a_sum_over_features():
  means = np.array([[0.0, 1.0, 2.0], [0.5, 1.0, -1.0]])
  deviations = np.array([[1.0, 2.0, 3.0], [1.5, 2.0, 0.1]])
  x, y = (
    exact_gaussian(mean, np.diag(deviation**2), 40, seed)
    for seed, (mean, deviation) in enumerate(zip(means, deviations))
  )
  expected = np.sum(np.diff(means, axis=0) ** 2) + np.sum(
    np.diff(deviations, axis=0) ** 2
  )
  assert distribution_distance.frechet_distance(x, y) == pytest.approx(expected)


def slow_frechet_distance(x, y):
  """With the square root of S_x^1/2 S_y S_x^1/2, by eigenvalues."""
  s_x, s_y = np.cov(x.T), np.cov(y.T)
  values, vectors = np.linalg.eigh(s_x)
  root = vectors @ np.diag(np.sqrt(np.maximum(values, 0))) @ vectors.T
  between = np.linalg.eigvalsh(root @ s_y @ root)
  trace = np.sqrt(np.maximum(between, 0)).sum()
  shift = x.mean(0) - y.mean(0)
  return shift @ shift + np.trace(s_x) + np.trace(s_y) - 2 * trace


# The last has fewer pictures than features: covariances of no full rank.
@pytest.mark.parametrize('counts', [(60, 60), (60, 25), (9, 7)])
def test_fid_is_that_of_the_covariances(counts):
  x, y = (random_features(n, 12, seed) for seed, n in enumerate(counts))
  assert distribution_distance.frechet_distance(x, y) == pytest.approx(
    slow_frechet_distance(x, y), rel=1e-5
  )
  # torch-fidelity takes the eigenvalues of the product itself.
  eigenvalues = np.linalg.eigvals(np.cov(x.T) @ np.cov(y.T)).astype(complex)
  theirs = (
    np.sum((x.mean(0) - y.mean(0)) ** 2)
    + np.trace(np.cov(x.T) + np.cov(y.T))
    - 2 * np.sqrt(eigenvalues).real.sum()
  )
  assert distribution_distance.frechet_distance(x, y) == pytest.approx(
    theirs, rel=1e-5
  )


@pytest.mark.parametrize('count', [5, 60])
def test_fid_of_equal_sets_is_zero_and_of_float32_too(count):
  # Features of networks are large and float32.
  x = (1000 + random_features(count, 20, 0)).astype(np.float32)
  assert distribution_distance.frechet_distance(x, x[::-1]) < 1e-9 * x.var()


def slow_squared_mmd(x, y):
  def kernel(a, b):
    return (sum(p * q for p, q in zip(a, b)) / len(a) + 1) ** 3

  def mean(values):
    values = list(values)
    return sum(values) / len(values)

  def among(rows):
    return mean(
      kernel(a, b)
      for i, a in enumerate(rows)
      for j, b in enumerate(rows)
      if i != j
    )

  return among(x) + among(y) - 2 * mean(kernel(a, b) for a in x for b in y)


def test_squared_mmd_is_that_of_the_slow_oracle():
  x, y = random_features(7, 4, 0), random_features(5, 4, 1)
  assert distribution_distance.squared_mmd(x, y) == pytest.approx(
    slow_squared_mmd(x, y)
  )


def test_kid_is_not_biased_and_finds_what_is_shifted():
  """In one dimension k(a, b) = (ab + 1)^3 has a mean in closed form.

  Of N(0, 1) and N(m, 1) with moments p_1..p_3 and q_1..q_3: the sum of
  (3 choose j) (p_j - q_j)^2.
  """
  shift = 0.5
  moments = np.array([[0, 1, 0], [shift, 1 + shift**2, shift**3 + 3 * shift]])
  expected = np.array([3, 3, 1]) @ np.diff(moments, axis=0)[0] ** 2
  generator = np.random.default_rng(0)
  values, unshifted = [], []
  for _ in range(300):
    x, y = generator.normal(size=(2, 40, 1))
    values.append(distribution_distance.squared_mmd(x, y + shift))
    unshifted.append(distribution_distance.squared_mmd(x, y))
  error = 4 * np.std(values) / np.sqrt(len(values))
  assert np.mean(values) == pytest.approx(expected, abs=error)
  error = 4 * np.std(unshifted) / np.sqrt(len(unshifted))
  assert np.mean(unshifted) == pytest.approx(0, abs=error)


def test_subsets_are_drawn_alike_and_spread():
  x, y = random_features(40, 6, 0), random_features(40, 6, 1)
  kid, spread = distribution_distance.kernel_distance(x, y)
  assert (kid, spread) == distribution_distance.kernel_distance(x, y)
  assert 0 < spread
  # The mean over subsets estimates the same as all rows.
  whole = distribution_distance.squared_mmd(x, y)
  assert abs(kid - whole) < 4 * spread / np.sqrt(100) + 0.05 * abs(whole)


NETWORKS = """
import numpy as np

calls = []

def mean(images):
  calls.append(len(images))
  return images.mean(axis=(1, 2))

def flat(images):
  return images.mean(axis=(1, 2, 3))

def short(images):
  return images.mean(axis=(1, 2))[1:]

def none(images):
  return np.zeros((len(images), 0))

def text(images):
  return np.full((len(images), 3), 'a')

def nan(images):
  return images.mean(axis=(1, 2)) * np.where(np.arange(len(images)) == 2, np.nan, 1)[:, None]

def breaks(images):
  raise RuntimeError('mat1 and mat2')

def uneven(images):
  return np.ones((len(images), len(images)))

def same(images):
  return np.ones((len(images), 3))

def ends(images):
  raise SystemExit(0)

def spoils(images):
  features = images.mean(axis=(1, 2))
  images[:] = 0
  return features

number = 3
"""
PICTURES = np.random.default_rng(0).integers(0, 256, (70, 4, 4, 3), np.uint8)


@pytest.fixture
def file(tmp_path):
  path = tmp_path / 'networks.py'
  path.write_text(NETWORKS)
  return path


def test_features_are_those_of_the_function_in_batches(file):
  network = distribution_distance.FeatureNetwork(f'{file}:mean')
  np.testing.assert_array_equal(network(PICTURES), PICTURES.mean(axis=(1, 2)))
  assert network._function.__globals__['calls'] == [64, 6]
  first = network.protocol['features_sha256']
  file.write_text(NETWORKS + '# changed\n')
  again = distribution_distance.FeatureNetwork(f'{file}:mean')
  assert again.protocol['features_sha256'] != first


def test_a_function_cannot_change_the_pictures(file):
  pictures = PICTURES.copy()
  distribution_distance.FeatureNetwork(f'{file}:spoils')(pictures)
  np.testing.assert_array_equal(pictures, PICTURES)


@pytest.mark.parametrize(
  'name, words',
  [
    ('flat', r'gives float64 \(64,\) for 64 pictures'),
    ('short', r'\(63, 3\) for 64'),
    ('none', r'\(64, 0\) for 64'),
    ('text', 'gives <U1'),
    ('nan', 'no numbers'),
    ('breaks', 'RuntimeError: mat1 and mat2'),
    ('same', 'same features for 70 different pictures'),
    ('ends', 'SystemExit: 0'),
    ('uneven', '64 features of a picture, then 6'),
    ('number', 'no function number'),
    ('absent', 'no function absent'),
    ('', 'takes FILE.py:FUNCTION'),
  ],
)
def test_what_is_no_network_is_named(file, name, words):
  with pytest.raises(errors.UserError, match=words):
    distribution_distance.FeatureNetwork(f'{file}:{name}')(PICTURES)


def test_features_that_overflow_are_named():
  x = random_features(8, 3, 0)
  with pytest.raises(errors.UserError, match='scale them down'):
    distribution_distance.distances(1e150 * x, 1e150 * x[::-1] + 1e149)


def test_files_and_pictures_that_do_not_do_are_named(file):
  with pytest.raises(errors.UserError, match='no such file'):
    distribution_distance.FeatureNetwork(f'{file.parent}/absent.py:mean')
  with pytest.raises(errors.UserError, match='takes FILE.py:FUNCTION'):
    distribution_distance.FeatureNetwork(str(file))
  network = distribution_distance.FeatureNetwork(f'{file}:mean')
  with pytest.raises(errors.UserError, match='3 pictures; .* 4 or more'):
    network(PICTURES[:3])
  for text, words in (
    ('import nothing_of_that_name', 'ModuleNotFound'),
    ('raise SystemExit', 'SystemExit'),
  ):
    file.write_text(text)
    with pytest.raises(errors.UserError, match=f'does not load .{words}'):
      distribution_distance.FeatureNetwork(f'{file}:mean')
