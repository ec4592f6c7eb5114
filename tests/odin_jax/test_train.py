"""Training through its command line: figures, exact resume, faults."""

import errno
import gzip
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import train as recipes
from odin_jax import familiarity, predictors, sharding
from odin_jax.checkpoints import checkpoint, checksums
from odin_jax.shared import (
  errors,
  locks,
  posed_pair,
  record_folder,
  workdirs,
)
from odin_jax.training import goodput, journal, step
from tests.helpers import default_sampling, true_panoramas
from tests.helpers.posed_records import write_records

STEPS = 24


@pytest.fixture(scope='module')
def records(tmp_path_factory):
  folder = tmp_path_factory.mktemp('records')
  write_records(folder, 'train', {'a': 60, 'b': 60})
  write_records(folder, 'test', {'c': 3})
  return folder


@pytest.fixture(scope='module')
def command(repository, records, tmp_path_factory):
  """Arguments and environment of a tiny run; compiled once for all."""
  cache = tmp_path_factory.mktemp('jax_cache')
  environment = os.environ | {
    'JAX_COMPILATION_CACHE_DIR': str(cache),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
  }

  def start(workdir, *arguments, data=records, **more):
    return subprocess.Popen(
      [
        sys.executable,
        '-m',
        'odin_jax.train',
        '--config=configs/train.py:world,runlocal=True',
        f'--records={data}',
        f'--workdir={workdir}',
        f'--config.steps={STEPS}',
        '--config.checkpoint_every=3',
        '--config.log_every=2',
        *arguments,
      ],
      cwd=repository,
      env=environment | more,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )

  return start


def finish(process):
  _, stderr = process.communicate(timeout=300)
  return process.returncode, stderr


def read_rows(workdir):
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


@pytest.fixture(scope='module')
def finished(command, tmp_path_factory):
  """The workdir of an uninterrupted run, which was watched closely."""
  workdir = tmp_path_factory.mktemp('runs') / 'whole'
  process = command(
    workdir, '--config.sample_every=20', '--profile_steps=15:16'
  )
  stdout, stderr = process.communicate(timeout=300)
  assert process.returncode == 0, stderr[-2000:]
  workdir.with_name('stdout').write_text(stdout)
  workdir.with_name('stderr').write_text(stderr)
  return workdir


def final(workdir):
  return json.loads((workdir / 'final.json').read_text())


def wait_for_file(process, path, text=''):
  """Returns when there is such a file with a text in it."""
  deadline = time.monotonic() + 300
  while time.monotonic() < deadline:
    if path.exists() and text in path.read_text():
      return
    assert process.poll() is None, process.communicate()[1][-2000:]
    time.sleep(0.01)
  raise AssertionError(f'no {text} in {path} within the time')


def wait_for_step(process, workdir, step):
  """Returns when the journal has the row of `step`."""
  wait_for_file(process, workdir / 'metrics.jsonl', f'"step": {step},')


def test_pairs_are_mixed_with_what_is_cut_of_panoramas(
  command, records, tmp_path
):
  world = true_panoramas.build_world()
  folder = true_panoramas.write(tmp_path / 'a,b', world)
  workdir, given = (
    tmp_path / 'run',
    [
      '--config.steps=3',
      '--config.max_corrupt_records=1',
      f'--records=file://{folder}',
    ],
  )
  process = command(workdir, *given, '--config.mixture.weights=1,3')
  stdout, stderr = process.communicate(timeout=300)
  assert process.returncode == 0, stderr[-2000:]
  assert ' parameters, 120 pairs and 5 panoramas, mesh ' in stderr
  assert ' parameters, 120 pairs and 5 panoramas' in stdout
  assert f'--data={records} ' in stdout
  assert final(workdir)['corrupt_records'] == 0
  assert read_rows(workdir)[-1]['corrupt_records'] == 0
  # Of what nothing is said these pairs are not.
  status, stderr = finish(
    command(
      workdir,
      *given,
      '--config.panoramas.single_share=0.5',
      '--config.mixture.weights=1,2',
    )
  )
  assert status == 2 and 'panoramas.single_share: 0.1 -> 0.5' in stderr
  assert 'mixture.weights: [1, 3] -> [1, 2]' in stderr


def test_a_run_tells_its_devices_what_it_made_and_nothing_else(
  finished, records
):
  lines = finished.with_name('stderr').read_text().splitlines()
  assert lines[0].startswith('devices: 1 x cpu (')
  assert ' parameters, 120 pairs, mesh ' in lines[1]
  memory = [line for line in lines[2:] if line.startswith('memory of a step ')]
  assert len(memory) == 1 and ' peak 0.0' in memory[0]
  # A slow machine says every 30 s how far it is.
  others = set(lines[2:]) - set(memory)
  assert all(line.startswith('train: step ') for line in others)
  made, following = finished.with_name('stdout').read_text().splitlines()
  assert made.startswith(f'{finished}: step {STEPS} of {STEPS}, ')
  assert following == (
    f'score it: python -m odin_jax.evaluate --data={records} '
    f'--workdir={finished} --output={finished.with_name("scores")} '
    '--config.image_size_px=32'
  )


def test_run_leaves_its_figures(finished):
  figures = final(finished)
  # What the images of the records are like, all 120 of them.
  known = json.loads((finished / familiarity.NAME).read_text())
  assert known['images'] == 120 and known['image_size_px'] == 32
  assert known['fov_deg'] == [90, 90]
  assert figures['step'] == STEPS and figures['restored_step'] == 0
  assert len(figures['params_sha256']) == 64
  assert figures['seconds'] > 0 and figures['peak_rss_mb'] > 0
  rows = read_rows(finished)
  # Every log_every steps, and at every checkpoint.
  assert [row['step'] for row in rows] == sorted(
    {*range(2, STEPS + 1, 2), *range(3, STEPS + 1, 3)}
  )
  for row in rows:
    sampled = {'held_out_psnr_db'} if row['step'] == 20 else set()
    assert set(row) == sampled | {
      'step',
      'loss',
      'mask_mean',
      *(f'loss_quarter_{quarter}' for quarter in (1, 2, 3, 4)),
      'gradient_norm',
      'update_ratio',
      'learning_rate',
      'examples_per_s',
      'input_wait_share',
      'mfu',
      'device_peak_mb',
    }
    assert 0 < row['mask_mean'] < 1 and np.isfinite(row['loss'])
    quarters = [row[f'loss_quarter_{quarter}'] for quarter in (1, 2, 3, 4)]
    known = [loss for loss in quarters if loss is not None]
    assert min(known) - 1e-5 <= row['loss'] <= max(known) + 1e-5
    assert row['gradient_norm'] > 0 and row['update_ratio'] < 0.1
    # Its first step has a rate of 0.
    assert row['update_ratio'] > 0
  # The rate counts finished steps, not steps handed to the device: the rows'
  # times add up to less than the run's.
  intervals = np.diff([0] + [row['step'] for row in rows])
  spent = [
    8 * count / row['examples_per_s']
    for count, row in zip(intervals, rows, strict=True)
  ]
  assert 0 < sum(spent) < figures['seconds']
  seconds = goodput.summary(goodput.read(finished))['seconds']
  made = seconds['steps'] + seconds['input_wait']
  assert sum(spent) == pytest.approx(made, rel=0.2, abs=0.2)
  rates = [row['learning_rate'] for row in rows]
  assert max(rates) > 5 * rates[-1] > 0
  assert list((finished / 'tensorboard').iterdir())
  # What it was watched by.
  (picture,) = (finished / 'samples').iterdir()
  image = cv2.imread(str(picture))
  assert picture.name == f'{20:08d}.png' and image.shape == (8 * 32, 3 * 32, 3)
  (row,) = [row for row in rows if row['step'] == 20]
  assert row['held_out_psnr_db'] == pytest.approx(psnr_of_rows(image), abs=1e-3)
  # Both steps, in what XProf and what Perfetto opens.
  for runs, steps in traced(finished / 'profile'):
    assert len(runs) == 2
    assert steps == [15, 16]


def traced(profile):
  """The runs of the step of which a profile has operations, by each file.

  Also the numbers that it has of steps.
  """
  (xplane,) = profile.rglob('*.xplane.pb')
  (trace,) = profile.rglob('*.trace.json.gz')
  of_xprof = [
    dict(event.stats)
    for plane in jax.profiler.ProfileData.from_file(str(xplane)).planes
    for line in plane.lines
    for event in line.events
  ]
  of_perfetto = [
    event.get('args', {})
    for event in json.loads(gzip.decompress(trace.read_bytes()))['traceEvents']
  ]
  for operations in (of_xprof, of_perfetto):
    runs = {
      operation['run_id']
      for operation in operations
      # What `sharding.traced_for` makes of the step.
      if operation.get('hlo_module') == 'jit_on_mesh'
    }
    steps = [int(x['step_num']) for x in operations if 'step_num' in x]
    yield runs, sorted(steps)


def psnr_of_rows(image):
  """Mean of the rows: source, target, sample."""
  _, target, sample = np.split(image.astype(float), 3, axis=1)
  error = ((target - sample) ** 2).reshape(8, -1).mean(axis=1)
  return np.mean(10 * np.log10(255**2 / error))


def test_killed_run_ends_like_an_uninterrupted_one(command, finished, tmp_path):
  workdir = tmp_path / 'killed'
  # Not before step 8: saving step 6, which is over by then, waits until step 3
  # is on disk.
  step = 2 * int(np.random.default_rng().integers(4, STEPS // 2))
  since = time.time()
  process = command(workdir)
  wait_for_step(process, workdir, step)
  process.send_signal(signal.SIGKILL)
  finish(process)
  # What the kill may leave: rows past the checkpoint, half a line.
  for name in ('metrics.jsonl', goodput.NAME):
    with open(workdir / name, 'a') as file:
      file.write('{"step": 23, "lo')

  status, stderr = finish(command(workdir))
  seconds = time.time() - since
  assert status == 0, stderr[-2000:]
  figures = final(workdir)
  assert 0 < figures['restored_step'] < STEPS, f'killed at step {step}'
  assert figures['params_sha256'] == final(finished)['params_sha256']
  steps = [row['step'] for row in read_rows(workdir)]
  assert steps == sorted(set(steps)) and steps[-1] == STEPS
  spent = goodput.summary(goodput.read(workdir))
  assert spent['starts'] == 2 and spent['step'] == STEPS
  total = sum(spent['seconds'].values())
  assert total == pytest.approx(spent['wall_s'], rel=0.01)
  # Python begins before the run, and ends after it.
  assert 0.3 * seconds < spent['wall_s'] < seconds
  for name in ('steps', 'compile', 'checkpoint', 'start', 'down'):
    assert spent['seconds'][name] > 0, name
  first, second = (
    event['step']
    for event in goodput.read(workdir)
    if event['event'] == 'start'
  )
  assert (first, second) == (0, figures['restored_step'])


def stop_while_it_compiles(process, workdir, *numbers):
  """Steps are so short that a later signal may miss them all."""
  wait_for_file(process, workdir / locks.NAME, f'"pid": {process.pid},')
  for number in numbers:
    process.send_signal(number)
    time.sleep(0.1)
  return finish(process)


def test_a_run_that_is_stopped_is_unfinished_and_goes_on(
  command, finished, tmp_path
):
  workdir = tmp_path / 'stopped'
  saved = [0]
  for number in (signal.SIGTERM, signal.SIGINT):
    # A checkpoint at the end only, but for the one of the signal.
    process = command(workdir, '--config.checkpoint_every=1000')
    status, stderr = stop_while_it_compiles(process, workdir, number)
    assert status == os.EX_TEMPFAIL, stderr[-2000:]
    assert 'Traceback' not in stderr
    assert not (workdir / 'final.json').exists()
    assert not (workdir / locks.NAME).exists()
    saved.append(checkpoint.Checkpoints(workdir, read_only=True).latest())
    assert saved[-2] < saved[-1] < STEPS
    line = stderr.strip().splitlines()[-1]
    assert line.startswith(f'stopped by {number.name}: step {saved[-1]} of')

  # A second signal ends at once.
  process = command(workdir)
  status, _ = stop_while_it_compiles(
    process, workdir, signal.SIGTERM, signal.SIGTERM
  )
  # Of the system, or of the watcher where the system was told to wait.
  assert status in (-signal.SIGTERM, 128 + signal.SIGTERM)
  latest = checkpoint.Checkpoints(workdir, read_only=True).latest()
  assert latest == saved[-1]

  # The next one goes on, but not beside another one.
  process = command(workdir)
  wait_for_file(process, workdir / locks.NAME, f'"pid": {process.pid},')
  process.send_signal(signal.SIGSTOP)
  status, stderr = finish(command(workdir))
  process.send_signal(signal.SIGCONT)
  assert status == 2 and stderr.count('error:') == 1
  assert f'process {process.pid} is writing' in stderr.splitlines()[-1]
  status, stderr = finish(process)
  assert status == 0, stderr[-2000:]
  assert not (workdir / locks.NAME).exists()
  assert final(workdir)['restored_step'] == saved[-1]
  assert final(workdir)['params_sha256'] == final(finished)['params_sha256']


def test_a_workdir_behind_an_address_goes_on_on_another_machine(
  command, finished, tmp_path, monkeypatch
):
  there = tmp_path / 'bucket' / 'run'
  address = there.as_uri()
  caches = [str(tmp_path / name) for name in ('here', 'elsewhere')]
  process = command(address, XDG_CACHE_HOME=caches[0])
  while not (found := list((tmp_path / 'here').rglob(locks.NAME))):
    assert process.poll() is None, finish(process)
    time.sleep(0.05)
  status, stderr = stop_while_it_compiles(
    process, found[0].parent, signal.SIGTERM
  )
  assert status == os.EX_TEMPFAIL, stderr
  assert address in stderr.splitlines()[-1]
  assert not (there / locks.NAME).exists() and (there / 'encoders').is_dir()
  # Nothing of the first machine is left but what is there.
  status, stderr = finish(command(address, XDG_CACHE_HOME=caches[1]))
  assert status == 0, stderr
  figures = final(there)
  assert 0 < figures['restored_step'] < STEPS
  assert figures['params_sha256'] == final(finished)['params_sha256']
  done = [row['step'] for row in read_rows(there)]
  assert done == sorted(set(done)) and done[-1] == STEPS
  # Whoever reads it there has the newest checkpoint alone.
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'reader'))
  copy = workdirs.require(address, 'a training run')
  assert os.listdir(copy / 'checkpoints') == [str(STEPS)]
  protocol = load_model(copy).protocol
  assert protocol['checkpoint_step'] == STEPS
  assert (
    protocol['params_sha256'] == load_model(finished).protocol['params_sha256']
  )
  with pytest.raises(errors.UserError, match='no checkpoint of step 5 here'):
    workdirs.require(address, 'a training run', 5)


@pytest.mark.parametrize(
  'rate,steps,every,words',
  [
    # The second step is the first with a rate above 0; the decay of weights,
    # so many times this one, is infinite.
    ('3e38', 2, 1000, 'parameters are not finite at step 2'),
    # Of a loss that is not finite tests/odin_jax/test_loop.py knows.
  ],
)
def test_a_training_that_diverges_in_its_last_step_is_refused(
  command, tmp_path, rate, steps, every, words
):
  workdir = tmp_path / 'diverged'
  status, stderr = finish(
    command(
      workdir,
      f'--config.optimizer.learning_rate={rate}',
      '--config.optimizer.warmup_steps=1',
      '--config.optimizer.weight_decay=1000.0',
      f'--config.steps={steps}',
      '--config.log_every=1000',
      f'--config.checkpoint_every={every}',
    )
  )
  assert status == 2 and words in stderr.splitlines()[-1], stderr[-2000:]
  assert stderr.count('Traceback') == 0
  # The save under way is completed.
  saved = [path.name for path in (workdir / checkpoint.FOLDER).iterdir()]
  assert saved == ([str(every)] if every < steps else [])
  assert not (workdir / 'final.json').exists()


def test_a_disk_that_is_full_costs_one_line_and_no_checkpoint(
  command, tmp_path
):
  workdir = tmp_path / 'full'
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, limits[1]))
  process = command(workdir, '--config.steps=2')
  resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  status, stderr = finish(process)
  assert status == 2 and 'Traceback' not in stderr, stderr[-2000:]
  assert f'cannot be written ({os.strerror(errno.EFBIG)});' in stderr
  assert checkpoint.Checkpoints(workdir).latest() is None
  status, stderr = finish(command(workdir, '--config.steps=2'))
  assert status == 0 and final(workdir)['restored_step'] == 0, stderr[-2000:]


def test_a_checkpoint_with_nan_is_refused(
  command, finished, tmp_path, monkeypatch
):
  workdir = tmp_path / 'nan'
  shutil.copytree(finished, workdir)
  checkpoints = checkpoint.Checkpoints(workdir)
  config = checkpoints.config(STEPS)
  abstract = jax.eval_shape(lambda: step.init(config))
  mesh = sharding.make_mesh(config['mesh'])
  everywhere = jax.tree.map(lambda _: sharding.replicated(mesh), abstract)
  state, frozen = checkpoints.restore(STEPS, abstract, everywhere, config)
  params = jax.tree.map(lambda leaf: leaf * np.nan, state['params'])
  diverged = {**state, 'params': params}, frozen, config
  # One of a version that did not look.
  later = checksums.later
  with monkeypatch.context() as patched:
    patched.setattr(
      checksums, 'later', lambda tree: lambda: (later(tree)()[0], True)
    )
    checkpoints.save(STEPS + 1, *diverged)
    checkpoints.close()
  checkpoints = checkpoint.Checkpoints(workdir)
  checkpoints.save(STEPS + 2, *diverged)
  with pytest.raises(errors.UserError, match='numbers are not all finite, so'):
    checkpoints.close()
  with pytest.raises(errors.UserError, match=f'checkpoints/{STEPS + 1}: its'):
    load_model(workdir, ema=False)
  # Its averages are still good.
  load_model(workdir, ema=True)
  checkpoints = checkpoint.Checkpoints(workdir, read_only=True)
  with pytest.raises(errors.UserError, match='not all finite'):
    checkpoints.restore(STEPS + 1, abstract, everywhere, config)


def test_finished_run_is_left_as_it_is(command, finished):
  before = final(finished)
  status, _ = finish(command(finished))
  assert status == 0
  assert final(finished)['restored_step'] == STEPS
  assert final(finished)['params_sha256'] == before['params_sha256']


def test_other_config_is_refused_with_a_diff(command, finished):
  status, stderr = finish(
    command(finished, '--config.seed=5', '--config.filters.max_hops=2')
  )
  assert status == 2
  (line,) = [line for line in stderr.splitlines() if 'error:' in line]
  assert 'seed: 0 -> 5' in line and str(finished) in line
  assert 'filters.max_hops: None -> 2.0' in line


def test_folder_of_another_tool_is_refused(command, tmp_path):
  (tmp_path / 'precious.txt').write_text('keep me')
  status, stderr = finish(command(tmp_path))
  assert status == 2 and str(tmp_path) in stderr
  assert [entry.name for entry in tmp_path.iterdir()] == ['precious.txt']


@pytest.mark.parametrize('damage', ['empty', 'flipped'])
def test_damaged_shard_is_named(command, records, tmp_path, damage):
  folder = tmp_path / 'records'
  folder.mkdir()
  (shard,) = records.glob('*-train.tfrecord-*')
  content = bytearray(shard.read_bytes())
  content[len(content) // 2] ^= 0xFF
  broken = folder / shard.name
  broken.write_bytes(b'' if damage == 'empty' else bytes(content))
  workdir = tmp_path / 'workdir'
  status, stderr = finish(command(workdir, data=folder))
  assert status == 2
  assert sum('error:' in line for line in stderr.splitlines()) == 1
  assert str(broken) in stderr
  assert not (workdir / 'final.json').exists()


def load_model(workdir, **changes):
  return default_sampling.load_model(workdir, **{'num_steps': 2, **changes})


def test_model_predicts_with_the_seed_alone(finished, records):
  model = load_model(finished, num_steps=3)
  assert model.image_size_px == 32
  assert model.protocol['checkpoint_step'] == STEPS
  assert model.protocol['training_steps'] == STEPS
  generator = np.random.default_rng(0)
  source = generator.integers(0, 256, (5, 32, 32, 3), np.uint8)
  poses = np.stack(
    [
      record['target2source']
      for record in record_folder.RecordFolder(records, 'train')
    ][:5]
  ).astype(np.float64)
  pairs = posed_pair.PosedPair(
    source=source,
    target=None,
    target2source=poses,
    fov_deg=np.full(5, 90.0),
    median_depth=np.ones(5),
  )
  seeds = np.arange(5)
  images = model.predict(pairs, seeds)
  assert images.shape == source.shape and images.dtype == np.float32
  assert 0 <= images.min() and images.max() <= 1
  pair = posed_pair.select(pairs, slice(3, 4))
  alone = model.predict(pair, seeds[3:4])
  np.testing.assert_allclose(alone[0], images[3], atol=1e-5)
  reseeded = model.predict(pair, seeds[4:5])
  assert np.abs(reseeded - alone).max() > 1e-3


def test_a_model_of_an_earlier_step_is_loaded_by_its_number(finished):
  earlier = load_model(finished, step=STEPS - 3).protocol
  assert earlier['checkpoint_step'] == STEPS - 3
  last = load_model(finished, step=STEPS).protocol
  assert last['params_sha256'] != earlier['params_sha256']
  with pytest.raises(errors.UserError, match='step 7 here; .* of 21, 24'):
    load_model(finished, step=7)


def test_a_model_is_sampled_otherwise_as_if_it_had_been_loaded_so(finished):
  model, single = (load_model(finished, num_steps=n) for n in (3, 1))
  again = model.resampled(default_sampling.sampling(num_steps=1))
  assert again.protocol == single.protocol
  with pytest.raises(errors.UserError, match='num_steps=-1'):
    model.resampled(default_sampling.sampling(num_steps=-1))


def test_averaged_and_last_parameters_differ(finished):
  pair = posed_pair.PosedPair(
    source=np.zeros((1, 32, 32, 3), np.uint8),
    target=None,
    target2source=np.eye(3, 4)[None],
    fov_deg=np.array([90.0]),
    median_depth=np.array([1.0]),
  )
  images = [
    load_model(finished, ema=ema).predict(pair, np.array([0]))
    for ema in (True, False)
  ]
  assert np.abs(images[0] - images[1]).max() > 1e-4


def test_model_that_is_not_there_is_one_clear_error(finished, tmp_path):
  with pytest.raises(errors.UserError, match='checkpoint'):
    load_model(tmp_path)
  with pytest.raises(errors.UserError, match='guidance'):
    load_model(finished, guidance=3.0)
  with pytest.raises(errors.UserError, match='num_steps'):
    load_model(finished, num_steps=-1)


def test_baselines_are_what_their_names_say():
  source = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), np.uint8)
  pairs = posed_pair.PosedPair(
    source=source,
    target=None,
    target2source=np.zeros((2, 3, 4)),
    fov_deg=np.zeros(2),
    median_depth=np.zeros(2),
  )
  seeds = np.zeros(2, int)
  copied = predictors.Copy().predict(pairs, seeds)
  np.testing.assert_allclose(copied, source / 255, atol=1e-6)
  mean = predictors.Mean().predict(pairs, seeds)
  np.testing.assert_allclose(
    mean[1], np.broadcast_to(source[1].mean((0, 1)) / 255, (4, 4, 3)), atol=1e-6
  )


@pytest.mark.parametrize('recipe', ['world', 'odin'])
@pytest.mark.parametrize(
  'conditioning, parts',
  [
    ('', 'the recipe'),
    # A part alone.
    ('sweep', 'sweep'),
    ('plucker', 'plucker'),
    ('se3+plucker', 'se3+plucker'),
  ],
)
@pytest.mark.parametrize('prediction', ['v', 'eps', 'x0'])
def test_every_recipe_builds(recipe, conditioning, parts, prediction):
  config = recipes.get_config(
    f'{recipe},conditioning={conditioning},prediction={prediction}'
  )
  if not conditioning:
    parts = {'world': 'se3+rays+sweep', 'odin': 'clip+se3'}[recipe]
  assert config.model.conditioning == parts
  assert config.diffusion.prediction == prediction
  # A network that predicts eps says nothing where no signal is left.
  assert config.diffusion.zero_terminal_snr == (prediction != 'eps')
  # One that learned to start from noise alone is sampled from there.
  starts_from_noise = config.diffusion.spacing == 'trailing'
  assert starts_from_noise or not config.diffusion.zero_terminal_snr
  assert config.log_every == 10


@pytest.mark.parametrize(
  'argument',
  [
    'room',
    'world,width=3',
    'world,runlocal=2',
    'world,image_size_px=30',
    'multisphere,image_size_px=38',
    'odin,image_size_px=96',
  ],
)
def test_unknown_recipe_or_argument_is_an_error(argument):
  with pytest.raises(ValueError):
    recipes.get_config(argument)


def test_the_conditioning_learns_ten_times_as_fast():
  config = checkpoint.plain(recipes.get_config('odin').to_dict())
  config['optimizer']['warmup_steps'] = 0
  rate = step.learning_rate(config)
  assert float(rate(1)) == float(rate(10**6)) == pytest.approx(1e-4)
  params = {
    name: {'kernel': jnp.ones((2, 2)), 'bias': jnp.ones(2)}
    for name in ('conditioning', 'unet')
  }
  optimizer = step.optimizer(config)
  state = optimizer.init(params)
  for _ in range(2):  # The first rate is 0.
    updates, state = optimizer.update(params, state, params)
  for name in ('kernel', 'bias'):
    np.testing.assert_allclose(
      updates['conditioning'][name], 10 * updates['unet'][name], rtol=1e-5
    )
    assert (updates['unet'][name] < -0.9e-4).all()


def test_differences_name_what_changes_the_mathematics():
  saved = checkpoint.plain(recipes.get_config().to_dict())
  given = checkpoint.plain(recipes.get_config().to_dict())
  given['steps'] = given['log_every'] = given['checkpoint_every'] = 1
  assert checkpoint.differences(saved, given) == []
  given['model']['unet']['num_heads'] = 3
  del given['ema_decay']
  assert checkpoint.differences(saved, given) == [
    'ema_decay: 0.99 -> None',
    'model.unet.num_heads: 4 -> 3',
  ]


def test_journal_is_cut_back_to_the_restored_step(tmp_path):
  rows = journal.Journal(tmp_path, 0)
  for done in (10, 20, 30):
    rows.write(done, {'loss': 1.0 / done})
  rows.close()
  rows = journal.Journal(tmp_path, 20)
  rows.write(30, {'loss': 7.0})
  rows.close()
  assert [row['step'] for row in read_rows(tmp_path)] == [10, 20, 30]
  assert read_rows(tmp_path)[-1]['loss'] == 7.0
