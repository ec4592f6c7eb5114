"""Another matcher is a module and a row: this file is the module.

Processes that do the work import it by its name, as they would any other.
"""

import json
import pathlib
import pickle
from typing import Any, Mapping

import numpy as np
import pytest

from configs import preprocess
from odin_jax.shared import errors, record_folder, schema
from preprocessing import matchers, settings
from preprocessing.matchers import sphere
from preprocessing.running import workers
from tests.helpers import commands, tiny_videos

OPTIONS = {
  # Smallest cosine between the descriptors of a match.
  'min_similarity': 0.7,
  # File that it needs.
  'weights': '',
}


def check(options: Mapping[str, Any]) -> matchers.Checked:
  if not 0 < options['min_similarity'] < 1:
    raise errors.UserError(
      f'config.brute_force.min_similarity={options["min_similarity"]}: '
      'must be between 0 and 1'
    )
  weights = pathlib.Path(options['weights'])
  if not weights.is_file():
    raise errors.UserError(f'config.brute_force.weights: no file {weights}')
  return matchers.Checked(
    options={**options, 'weights': str(weights.absolute())}, files=('weights',)
  )


def make(options: Mapping[str, Any]) -> 'BruteForce':
  return BruteForce(options)


class BruteForce:
  """Points of the sphere matcher; each compared with all others."""

  name = 'brute_force'

  def __init__(self, options: Mapping[str, Any]):
    self._min_similarity = options['min_similarity']
    self._detector = sphere.SphereMatcher(
      **{**sphere.OPTIONS, 'features_per_face': 200}
    )
    assert pathlib.Path(options['weights']).read_text()

  def describe(self, panorama):
    return self._detector.describe(panorama)

  def match(self, source, target, *, expected=None, gate_rad=0.0):
    if not (len(source) and len(target)):
      return np.zeros((0, 2), np.int64)
    similarity = source.descriptors @ target.descriptors.T
    if expected is not None:
      distance = np.linalg.norm(expected[:, None] - target.rays, axis=-1)
      similarity[~(distance < 2 * np.sin(gate_rad / 2))] = -1
    rows = np.arange(len(source))
    best = similarity.argmax(axis=1)
    good = similarity.argmax(axis=0)[best] == rows
    good &= similarity[rows, best] > self._min_similarity
    return np.stack([rows[good], best[good]], axis=1)


# The row, for a command in another process.
_SETUP = f"""
from preprocessing import matchers

matchers.MODULES['brute_force'] = {__name__!r}
"""


@pytest.fixture
def registered(monkeypatch):
  """The row, in this process."""
  monkeypatch.setitem(matchers.MODULES, 'brute_force', __name__)


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """A run of the command with this matcher, and one that it refuses."""
  folder = tmp_path_factory.mktemp('run')
  (video,) = tiny_videos.write(folder, 1)
  (folder / 'weights').write_text('numbers')
  lines = [
    [
      f'--input={video}',
      f'--output={folder / name}',
      '--num_workers=1',
      '--config.matcher=brute_force',
      f'--config.brute_force.weights={folder / "weights"}',
      f'--config.brute_force.min_similarity={min_similarity}',
      *tiny_videos.ARGUMENTS,
    ]
    for name, min_similarity in (('records', 0.75), ('refused', 1.5))
  ]
  return folder, commands.run_all('preprocessing.run', lines, setup=_SETUP)


def test_its_records_say_its_name_and_are_read(finished):
  folder, ((status, stderr), _) = finished
  assert status == 0, stderr
  output = folder / 'records'
  manifest = json.loads((output / 'manifest.json').read_text())
  records = [
    record
    for split in schema.SPLITS
    if manifest['counts'][split]
    for record in record_folder.RecordFolder(output, split)
  ]
  assert records and {r['matcher'] for r in records} == {'brute_force'}
  config = manifest['config']
  assert config['matcher'] == 'brute_force'
  assert config['brute_force'] == {
    'min_similarity': 0.75,
    'weights': str(folder / 'weights'),
  }
  assert len(config['files_sha256']['brute_force.weights']) == 64
  audit = [f'--records={output}', f'--output={folder / "audit"}']
  ((status, stderr),) = commands.run_all('preprocessing.audit', [audit])
  assert status == 0, stderr
  figures = json.loads((folder / 'audit' / 'audit.json').read_text())
  assert figures['records'] == len(records)


def test_an_option_that_it_refuses_stops_the_run_before_any_work(finished):
  folder, (_, refused) = finished
  commands.assert_refused([refused], [['config.brute_force.min_similarity']])
  assert not (folder / 'refused').exists()


def test_its_options_are_fields_of_the_config(registered):
  config = preprocess.get_config()
  assert config.brute_force.to_dict() == OPTIONS
  assert config.sphere.to_dict() == dict(sphere.OPTIONS)


def test_what_its_files_hold_is_in_the_fingerprint(
  registered, monkeypatch, tmp_path
):
  video = tmp_path / 'video.mp4'
  video.write_bytes(b'film')

  def job(text, **fields):
    (tmp_path / 'weights').write_text(text)
    monkeypatch.chdir(tmp_path)
    config = preprocess.get_config()
    config.brute_force.weights = 'weights'
    config.update(fields)
    return workers.Job(
      path=video, output=tmp_path, settings=settings.checked(config)
    )

  own = dict(matcher='brute_force')
  assert job('a', **own).fingerprint() == job('a', **own).fingerprint()
  assert job('a', **own).fingerprint() != job('b', **own).fingerprint()
  # Options of a matcher that is not used change nothing.
  assert job('a').fingerprint() == job('b').fingerprint()


def test_processes_without_the_row_find_it(registered, monkeypatch, tmp_path):
  (tmp_path / 'weights').write_text('numbers')
  options = {**OPTIONS, 'weights': str(tmp_path / 'weights')}
  sent = pickle.dumps(matchers.checked('brute_force', options))
  monkeypatch.delitem(matchers.MODULES, 'brute_force')
  matcher = pickle.loads(sent).make()
  assert isinstance(matcher, matchers.Matcher)
  assert matcher.name == 'brute_force'


def test_processes_that_do_not_find_its_module_say_so():
  """As those of Ray, which know of PYTHONPATH alone."""
  elsewhere = matchers.Settings(name='own', module='not_here', options={})
  with pytest.raises(errors.UserError, match='not_here; give .* PYTHONPATH'):
    elsewhere.make()


@pytest.mark.parametrize(
  'changed, words',
  [
    (dict(rays=np.eye(4)[:, :2]), r'rays \(4, 2\)'),
    (dict(noise_rad=np.ones(3)), r'noise_rad \(3,\)'),
    (dict(descriptors=np.ones((3, 5), np.float32)), r'\(3, 5\) descriptors'),
    (dict(rays=np.full((4, 3), 2.0)), 'no unit vectors'),
    (dict(rays=np.full((4, 3), np.nan)), 'no unit vectors'),
  ],
)
def test_features_that_are_none_are_refused(changed, words):
  values = dict(
    rays=np.eye(3)[[0, 1, 2, 0]],
    noise_rad=np.ones(4),
    descriptors=np.ones((4, 5), np.float32),
  )
  features = matchers.Features(**values)
  matchers.check_features('own', features)
  # Only tests check shapes as features are made.
  vars(features).update(changed)
  with pytest.raises(ValueError, match=f"matcher 'own': .*{words}"):
    matchers.check_features('own', features)


@pytest.mark.parametrize(
  'matches, words',
  [
    (np.zeros((2, 5), int), r'matches \(2, 5\)'),
    (np.zeros((1, 2)), 'float64'),
    (np.array([[0, 3]]), 'that the target has not'),
    (np.array([[-1, 0]]), 'that the source has not'),
    (np.array([[1, 1], [1, 2]]), 'of the source is in two'),
    (np.array([[1, 1], [2, 1]]), 'of the target is in two'),
  ],
)
def test_matches_that_are_none_are_refused(matches, words):
  """One that comes twice would weigh twice, without a word."""
  points = matchers.Features(
    rays=np.eye(3),
    noise_rad=np.ones(3),
    descriptors=np.ones((3, 1), np.float32),
  )
  matchers.check_matches('own', np.zeros((0, 2), int), points, points)
  matchers.check_matches('own', np.array([[0, 2], [2, 0]]), points, points)
  with pytest.raises(ValueError, match=f"matcher 'own': .*{words}"):
    matchers.check_matches('own', matches, points, points)
