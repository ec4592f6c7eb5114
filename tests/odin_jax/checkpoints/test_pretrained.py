"""The checkpoint that comes with the project: written, read, and unseen."""

import dataclasses
import functools
import json
import pathlib
import re
import shlex

from absl import flags
from absl.testing import flagsaver
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from configs import train as recipes
from configs import worlds as world_rules
from odin_jax import batches, port_weights, sharding
from odin_jax.checkpoints import checkpoint, pretrained
from odin_jax.models import encoders, odin
from odin_jax.shared import errors, posed_pair, schema, workdirs, world_names
from odin_jax.training import warm_start
from preprocessing.procedural import scenes, true_pairs
from preprocessing.views import alignment
from tests.helpers import default_sampling, posed_records

SEED = 5000
STEP = 7
PRETRAINED = pathlib.Path('pretrained')
VIDEOS = {f'{SEED}_00000_unique_room': 3, f'{SEED}_00001_unique_outdoor': 2}


def flat(tree):
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {sharding.path_name(path): np.asarray(leaf) for path, leaf in leaves}


def make_config(**changes):
  config = recipes.get_config('multisphere,runlocal=True')
  config.update(changes)
  # Compiling is most of the time of this test.
  config.model.unet.num_res_blocks = 0
  config.model.spheres.network.num_res_blocks = 0
  return checkpoint.plain(config.to_dict())


def random_params(config):
  generator = np.random.default_rng(0)
  return jax.tree.map(
    lambda leaf: jnp.asarray(generator.normal(0, 0.05, leaf.shape), leaf.dtype),
    jax.eval_shape(lambda: odin.init_params(config)),
  )


def rules():
  views = world_rules.get_config().views.to_dict() | {'num_tries': 9}
  return true_pairs.PairRules(
    num_records=3,
    seconds=24.0,
    max_gap_s=5,
    size_px=48,
    views=alignment.ViewRules(num_views=2, fov_deg=90.0, **views),
    split_by='video',
    test_fraction=0.0,
  )


def write_worlds(folder, seed=SEED):
  """Records as preprocessing.worlds leaves them."""
  posed_records.write_records(folder, 'train', VIDEOS)
  shard = schema.shard_name('train', 0, 1)
  manifest = {
    'schema_version': schema.SCHEMA_VERSION,
    'shards': {shard: {'records': sum(VIDEOS.values())}},
    'videos': [{'video_id': name} for name in VIDEOS],
  }
  settings = {**dataclasses.asdict(rules()), 'seed': seed, 'kinds': ['a', 'b']}
  (folder / 'manifest.json').write_text(json.dumps(manifest))
  (folder / 'worlds.json').write_text(json.dumps({'settings': settings}))
  return folder


def save(workdir, config, params):
  """A workdir of training, whose last parameters are not its averages."""
  checkpoints = checkpoint.Checkpoints(workdir)
  state = {
    'params': jax.tree.map(jnp.zeros_like, params),
    'ema': params,
    'optimizer': {'count': jnp.zeros(())},
    'step': jnp.array(STEP),
  }
  images = np.zeros((1, 32, 32, 3), np.uint8)
  checkpoints.save(STEP, state, encoders.fit(config, images), config)
  checkpoints.close()
  return workdir


def export(source, output, **given):
  if not flags.FLAGS.is_parsed():
    flags.FLAGS(['test', '--source=x', '--output=x'])
  given = {'export': 'pretrained', **given}
  given = {name: str(value) for name, value in given.items()}
  with flagsaver.flagsaver(source=[str(source)], output=str(output), **given):
    port_weights.main()


@dataclasses.dataclass
class Run:
  """A run of training and what was exported of it."""

  workdir: object
  records: object
  exported: object
  config: dict
  params: object


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  folder = tmp_path_factory.mktemp('pretrained')
  records = write_worlds(folder / 'records')
  config = make_config()
  source = batches.PairSource(records, 'train', image_size_px=32)
  config |= {'init': '', 'records': source.fingerprint(), 'steps': STEP}
  params = random_params(config)
  workdir = save(folder / 'run', config, params)
  export(workdir, folder / 'exported', records=records)
  return Run(workdir, records, folder / 'exported', config, params)


@pytest.fixture
def shipped(trained, tmp_path, monkeypatch):
  """A copy of the exported files in the place of those of the project."""
  folder = tmp_path / 'shipped'
  folder.mkdir()
  for name in (pretrained.WEIGHTS, pretrained.NOTE):
    (folder / name).write_bytes((trained.exported / name).read_bytes())
  monkeypatch.setattr(pretrained, 'FOLDER', folder)
  # No folder `pretrained` is there.
  monkeypatch.chdir(tmp_path)
  return folder


def pairs():
  generator = np.random.default_rng(4)
  return posed_pair.PosedPair(
    source=generator.integers(0, 256, (1, 32, 32, 3), np.uint8),
    target=None,
    target2source=np.eye(3, 4)[None] + generator.normal(0, 0.1, (1, 3, 4)),
    fov_deg=np.array([90.0]),
    median_depth=np.array([1.0]),
  )


# -- Out and in ----------------------------------------------------------------


def test_it_is_sampled_from_as_the_run_that_it_is_of(trained, shipped):
  model = default_sampling.load_model('pretrained', num_steps=1, guidance=1.0)
  params, frozen = model._arrays
  expected = flat(trained.params)
  found = flat(params)
  assert found.keys() == expected.keys()
  for name, value in found.items():
    assert value.dtype == np.float32
    rounded = expected[name].astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(value, rounded, err_msg=name)
  of_run = encoders.fit(trained.config, np.zeros((1, 32, 32, 3), np.uint8))
  for name, value in flat(of_run).items():
    np.testing.assert_array_equal(flat(frozen)[name], value, err_msg=name)

  seeds = np.array([5])
  sample = model.predict(pairs(), seeds)
  model._arrays = jax.device_put((trained.params, frozen), params_place(params))
  np.testing.assert_allclose(sample, model.predict(pairs(), seeds), atol=0.02)
  assert sample.std() > 0.01

  protocol = model.protocol
  assert protocol['checkpoint_step'] == STEP
  assert protocol['recipe'] == 'multisphere' and protocol['ema']
  assert protocol['ported_from'] is None
  assert protocol['params_sha256'] == checkpoint.params_sha256(params)


def params_place(params):
  return jax.tree.leaves(params)[0].sharding


def test_the_note_says_what_it_has_seen(trained):
  note = json.loads((trained.exported / pretrained.NOTE).read_text())
  assert note['step'] == STEP and note['config'] == trained.config
  data = note['data']
  assert data['seed'] == SEED and data['num_worlds'] == len(VIDEOS)
  assert data['num_pairs'] == sum(VIDEOS.values())
  typed = shlex.split(data['command'])
  assert typed[:3] == ['python', '-m', 'preprocessing.worlds']
  assert set(typed[3:]) == {
    '--output=DIR',
    '--num_worlds=2',
    '--pairs=3',
    '--view_px=48',
    '--depth_px=0',
    '--panorama_px=0',
    '--seconds=24.0',
    '--max_gap_s=5',
    '--split_by=video',
    '--test_fraction=0.0',
    f'--seed={SEED}',
    '--kinds=a,b',
    '--config.views.num_tries=9',
    '--views_per_pair=2',
    '--fov_deg=90.0',
  }
  typed = shlex.split(note['training'])
  assert typed[3] == '--config=configs/train.py:multisphere'
  assert f'--config.steps={STEP}' in typed
  assert '--config.model.unet.attention_levels=()' in typed
  # What the recipe has itself is not said again.
  assert not any('learning_rate' in word for word in typed)


def test_a_run_that_started_from_another_tells_both_commands(trained, tmp_path):
  config = {**trained.config, 'init': str(trained.workdir), 'seed': 3}
  workdir = save(tmp_path / 'second', config, trained.params)
  export(workdir, tmp_path / 'out', records=trained.records)
  note = json.loads((tmp_path / 'out' / pretrained.NOTE).read_text())
  first, second = note['training'].split(' && ')
  assert '--init' not in first and '--config.seed=3' not in first
  assert '--init=DIR' in second and '--config.seed=3' in second
  # No path of the machine that it was made on.
  assert note['config'] == {**config, 'init': ''}
  # What the first saw is not what these records have.
  others = {**trained.config, 'records': 'others'}
  before = save(tmp_path / 'before', others, trained.params)
  config = {**config, 'init': str(before)}
  workdir = save(tmp_path / 'third', config, trained.params)
  with pytest.raises(errors.UserError, match='data are not known here or oth'):
    export(workdir, tmp_path / 'no', records=trained.records)


def test_a_run_that_started_from_it_tells_what_both_have_seen(
  trained, shipped, tmp_path
):
  config = {**trained.config, 'init': 'pretrained'}
  workdir = save(tmp_path / 'second', config, trained.params)
  export(workdir, tmp_path / 'out', records=trained.records)
  note = json.loads((tmp_path / 'out' / pretrained.NOTE).read_text())
  assert '--init=pretrained' in shlex.split(note['training'])
  assert ' && ' not in note['training']
  before = json.loads((shipped / pretrained.NOTE).read_text())
  assert note['started_from'] == {
    name: before[name]
    for name in ('step', 'config', 'training', 'data', 'sha256')
  }
  # And so on, if that becomes the one that comes with the project.
  note['sha256'] = 'next'
  (shipped / pretrained.NOTE).write_text(json.dumps(note))
  config[pretrained.INIT_SHA256] = 'next'
  workdir = save(tmp_path / 'third', config, trained.params)
  export(workdir, tmp_path / 'next', records=trained.records)
  note = json.loads((tmp_path / 'next' / pretrained.NOTE).read_text())
  assert pretrained.INIT_SHA256 not in note['training']
  assert note['started_from']['started_from']['sha256'] == before['sha256']
  # But not if it was another one when the run began.
  config[pretrained.INIT_SHA256] = before['sha256']
  workdir = save(tmp_path / 'fourth', config, trained.params)
  with pytest.raises(errors.UserError, match='the run started from, whose SHA'):
    export(workdir, tmp_path / 'no', records=trained.records)
  assert not (tmp_path / 'no').exists()


def test_the_seeds_that_a_model_has_seen_are_those_of_all_before_it(shipped):
  note = json.loads((shipped / pretrained.NOTE).read_text())
  first = {**note, 'sha256': 'first', 'data': {'seed': SEED + 1}}
  note |= {'started_from': first}
  (shipped / pretrained.NOTE).write_text(json.dumps(note))

  def seeds(**config):
    return pretrained.seeds('run', config)

  assert pretrained.seeds('pretrained', {}) == [SEED, SEED + 1]
  assert seeds(init_sha256=note['sha256']) == [SEED, SEED + 1]
  assert seeds(init_sha256='first') == [SEED + 1]
  assert seeds(init_sha256='unknown') == seeds(init='') == []
  model = default_sampling.load_model('pretrained', num_steps=1, guidance=1.0)
  assert model.protocol['pretraining_seeds'] == [SEED, SEED + 1]


def test_training_starts_from_it(trained, shipped):
  mesh = sharding.make_mesh({'data': -1, 'fsdp': 1, 'tensor': 1})
  start = warm_start.load(PRETRAINED, trained.config, mesh)
  assert start.notes == []
  # Which is noted, also where a run starts from one that started from it.
  sha256 = json.loads((shipped / pretrained.NOTE).read_text())['sha256']
  assert start.init_sha256 == sha256
  config = {**trained.config, pretrained.INIT_SHA256: 'earlier'}
  after = save(shipped / 'after', config, trained.params)
  for workdir, expected in ((after, 'earlier'), (trained.workdir, None)):
    started = warm_start.load(workdir, trained.config, mesh)
    assert started.init_sha256 == expected
  name = 'unet/conv_in/kernel'
  expected = flat(trained.params)[name].astype(ml_dtypes.bfloat16)
  np.testing.assert_array_equal(flat(start.params)[name], expected)
  for change, words in (
    ({'autoencoder': {'gain': 1.0}}, 'init=pretrained.*gain'),
    ({'model': {'fourier_bands': 1}}, 'init=pretrained: a model of another'),
  ):
    config = checkpoint.plain(trained.config)
    for section, values in change.items():
      config[section].update(values)
    with pytest.raises(errors.UserError, match=words):
      warm_start.load(PRETRAINED, config, mesh)
  config = checkpoint.plain(trained.config)
  config['model']['spheres']['features'] = 5
  with pytest.raises(errors.UserError, match='pretrained: .* do not fit this'):
    warm_start.load(PRETRAINED, config, mesh)


@pytest.mark.parametrize(
  ('noted', 'words'),
  [({}, '1, or not noted'), ({'record_schema': 1}, 'schema 1,')],
)
def test_a_run_on_records_of_an_earlier_schema_is_told(
  trained, shipped, tmp_path, monkeypatch, noted, words
):
  lines = []

  def note(text, *values):
    # Orbax has warnings of its own.
    if 'its records are of schema' in text:
      lines.append(text % values)

  monkeypatch.setattr('absl.logging.warning', note)
  sampling = {'num_steps': 1, 'guidance': 1.0}
  old = save(tmp_path / 'old', {**trained.config, **noted}, trained.params)
  default_sampling.load_model(old, **sampling)
  (line,) = lines
  assert line.startswith(f'{old}: ') and words in line
  mesh = sharding.make_mesh({'data': -1, 'fsdp': 1, 'tensor': 1})
  warm_start.load(old, trained.config, mesh)
  assert len(lines) == 2
  # Not of those that note this one, nor of the one that comes with the project.
  config = {**trained.config, 'record_schema': schema.SCHEMA_VERSION}
  new = save(tmp_path / 'new', config, trained.params)
  for workdir in (new, 'pretrained'):
    default_sampling.load_model(workdir, **sampling)
  assert len(lines) == 2


# -- Refused -------------------------------------------------------------------


@functools.cache
def shapes_of(config):
  config = json.loads(config)
  return jax.eval_shape(lambda: odin.init_params(config))


def restore(name='ema'):
  found, step, config = checkpoint.open_step('pretrained')
  shapes = shapes_of(json.dumps(config))
  where = sharding.replicated(sharding.local_mesh())
  places = jax.tree.map(lambda _: where, shapes)
  return found.restore_params(step, name, shapes, places)


def test_damage_is_one_line(shipped):
  restore()
  with pytest.raises(errors.UserError, match='moving averages .* alone'):
    restore('params')
  weights = shipped / pretrained.WEIGHTS
  content = bytearray(weights.read_bytes())
  weights.write_bytes(content[:-1])
  with pytest.raises(errors.UserError, match=f'{weights.name}: damaged'):
    restore()
  content[-9] ^= 1
  weights.write_bytes(content)
  with pytest.raises(errors.UserError, match=f'{weights.name}: damaged'):
    restore()
  weights.unlink()
  with pytest.raises(errors.UserError, match=f'{weights.name}: no such file'):
    restore()
  note = shipped / pretrained.NOTE
  text = note.read_text()
  note.write_text(text.replace('"near": 0.15', '"near": 0.25'))
  with pytest.raises(errors.UserError, match='its config is not as'):
    restore()
  note.write_text(text[:100])
  with pytest.raises(errors.UserError, match=f'{note.name}: no whole JSON'):
    restore()
  note.unlink()
  with pytest.raises(errors.UserError, match=f'{note.name}: no such file'):
    restore()


def test_weights_of_another_version_are_refused(shipped, monkeypatch):
  config = pretrained.read_note()['config']
  config['model']['spheres']['features'] = 5
  monkeypatch.setattr(pretrained.Pretrained, 'config', lambda *_: config)
  with pytest.raises(errors.UserError, match='spheres/.* of one version'):
    restore()


def test_a_folder_of_that_name_is_another(shipped, tmp_path):
  word, folder = 'pretrained', './pretrained'
  assert workdirs.is_pretrained(workdirs.require(word, 'it'))
  with pytest.raises(errors.UserError, match='no such folder; it is needed'):
    workdirs.require(folder, 'it')
  (tmp_path / 'pretrained').mkdir()
  for given in (folder, tmp_path / word):
    path = workdirs.require(given, 'it')
    assert path == tmp_path / word and not workdirs.is_pretrained(path)
  with pytest.raises(errors.UserError, match=r'write \./pretrained'):
    workdirs.require(word, 'it')
  with pytest.raises(errors.UserError, match=r'write \./pretrained'):
    checkpoint.open_step('pretrained')


def test_what_has_seen_other_data_is_not_exported(trained, tmp_path):
  def refused(match, source=trained.workdir, **given):
    given = {'records': trained.records, **given}
    with pytest.raises(errors.UserError, match=match):
      export(source, tmp_path / 'out', **given)
    assert not (tmp_path / 'out').exists()

  other = tmp_path / 'other'
  posed_records.write_records(other, 'train', VIDEOS, seed=1)
  refused('are not those', records=other)
  no_worlds = tmp_path / 'no_worlds'
  posed_records.write_records(no_worlds, 'train', VIDEOS)
  refused('worlds.json: no such file', records=no_worlds)
  refused('is of seed 6', records=write_worlds(tmp_path / 'six', seed=6))
  config = {**trained.config, 'init': 'runs/before'}
  workdir = save(tmp_path / 'run', config, {'x': jnp.zeros(2)})
  refused('started from runs/before', workdir)


@pytest.mark.parametrize('layout', ['diffusers', 'ldm'])
def test_layouts_of_others_have_no_place_for_spheres(trained, tmp_path, layout):
  words = 'no place for refiner, spheres'
  with pytest.raises(errors.UserError, match=words) as caught:
    export(trained.workdir, tmp_path / 'out', export=layout)
  assert '--export=ldm can' not in str(caught.value)
  assert not (tmp_path / 'out').exists()


# -- Unseen worlds -------------------------------------------------------------

_SEEDS = re.compile(r'--seed=(\d+)|\bseed=(\d+)')


def seeds_in(paths):
  """Every number that is given as a seed, and the default of the command."""
  found = {0}
  for path in paths:
    found |= {int(a or b) for a, b in _SEEDS.findall(path.read_text())}
  return found


def test_its_worlds_are_neither_the_demos_nor_those_of_tests(repository):
  seen = set(pretrained.seeds('pretrained', {}))
  script = (repository / 'launch' / 'pretrain.sh').read_text()
  of_script = re.findall(r'^worlds \w+ \d+ (\d+) ', script, re.MULTILINE)
  assert set(map(int, of_script)) == seen and SEED in seen
  demo = seeds_in([repository / 'launch' / 'demo.sh'])
  assert {0, 1000} <= demo
  others = seeds_in(
    path
    for folder in ('launch', 'tests', 'odin_jax/experimenting', 'preprocessing')
    for path in (repository / folder).rglob('*')
    if path.suffix in ('.py', '.sh', '.yaml')
    and path.name != 'test_pretrained.py'
  )
  assert not seen & (demo | others)
  # Whoever names a seed of worlds by other words writes it here.
  assert {2, 3, 5, 11, 12} <= others


def test_worlds_of_another_seed_are_others(tmp_path):
  kinds = tuple(scenes.KINDS)
  poses = {}
  for seed in (0, 1000, SEED):
    job = true_pairs.PairsJob(
      output=tmp_path,
      kinds=kinds,
      index=1,
      seed=seed,
      rules=rules(),
      fingerprint='',
    )
    assert world_names.seed_of(job.name) == seed
    poses[seed] = job.build_world().walk.frame2world(4.0)
  for seed in (0, 1000):
    assert np.abs(poses[seed] - poses[SEED]).max() > 0.1


def test_the_one_that_is_here_is_sound(repository, monkeypatch, tmp_path):
  if not (pretrained.FOLDER / pretrained.NOTE).is_file():
    pytest.skip(f'no {pretrained.NOTE} in {pretrained.FOLDER} yet')
  monkeypatch.chdir(tmp_path)
  note = pretrained.read_note()
  # Records of another schema mean other distances: it has to be trained again.
  assert schema.SCHEMA_VERSION == 2
  origin = note
  while origin is not None:
    assert origin['data']['seed'] in (SEED, SEED + 1)
    origin = origin.get('started_from')
  assert note['figures'] and note['licence'] == pretrained.LICENCE
  card = (pretrained.FOLDER / 'README.md').read_text()
  assert note['sha256'] in card and 'XX' not in card and '@@' not in card
  params = restore()
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) > 1e6
  # The recipe of the project is the one that it was made with.
  found, step, config = checkpoint.open_step('pretrained')
  recipe = recipes.get_config('multisphere').to_dict()
  mesh = sharding.make_mesh({'data': -1, 'fsdp': 1, 'tensor': 1})
  start = warm_start.load(PRETRAINED, checkpoint.plain(recipe), mesh)
  assert start.notes == []
  found.restore_encoders(step, config, sharding.replicated(mesh))
