"""The loop of training with a step that costs nothing: what it does in need."""

import errno
import json
import os
import re
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import train as recipes
from odin_jax import batches, hosts, loop
from odin_jax.checkpoints import checkpoint
from odin_jax.models import encoders
from odin_jax.shared import chips, errors, interrupts, record_folder
from odin_jax.training import goodput, profiling, program
from tests.helpers import posed_records

STATE = {
  name: {'a': jnp.ones(3)} for name in ('params', 'ema', 'optimizer', 'step')
}
FROZEN = encoders.Encoders(autoencoder=jnp.zeros(2), image=None)


class Step:
  """A step of which the losses are given."""

  def __init__(self, losses):
    self._losses = list(losses)

  def lower(self, *_):
    return self

  def compile(self):
    return self

  def cost_analysis(self):
    return {'flops': 6e9}

  def as_text(self):
    return 'of no program'

  def __call__(self, state, *_):
    loss = self._losses.pop(0)
    return state, {
      'loss': np.float32(loss),
      'loss_sums': np.float32([2, 0, loss, 1]),
      'loss_counts': np.float32([2, 0, 1, 1]),
      'gradient_norm': np.float32(np.inf),
      'update_norm': np.float32(0.5),
      'params_norm': np.float32(2.0),
      'params_finite': np.bool_(True),
    }


@pytest.fixture(scope='module')
def records(tmp_path_factory):
  folder = tmp_path_factory.mktemp('records')
  posed_records.write_records(folder, 'train', {'a': 6, 'b': 7})
  return folder


@pytest.fixture
def run(records, tmp_path, monkeypatch):
  """Runs the loop on given losses; the keeper and what it raised."""
  # Those losses are no compiled program.
  none = program.Memory(arguments=0, temporaries=0, code=0, peak=0)
  monkeypatch.setattr(program, 'memory', lambda compiled: none)

  def start(losses, stream=None, change=lambda keeper: None, **given):
    config = checkpoint.plain(recipes.get_config('world').to_dict())
    config |= {'batch_size': 3, 'steps': len(losses), **given}
    keeper = loop.Keeper(
      workdir=tmp_path,
      config=config,
      group=hosts.ALONE,
      source=batches.PairSource(records, 'train', image_size_px=32),
      records='RECORDS',
      counts=dict,
      checkpoints=checkpoint.Checkpoints(tmp_path, max_to_keep=99),
      samples=None,
      traced=None,
      trackers=[],
      done=0,
      start_s=time.time(),
    )
    change(keeper)
    stream = stream or iter([None] * len(losses))
    interrupt = interrupts.Interrupt(second_ends=True)
    try:
      loop.run(keeper, Step(losses), STATE, stream, (FROZEN, None), interrupt)
    except errors.UserError as error:
      return str(error)
    return None

  return start


def saved(workdir):
  return checkpoint.Checkpoints(workdir, read_only=True).steps()


def rows(workdir):
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


def test_a_row_is_the_mean_of_its_steps(run, tmp_path):
  assert run([1.0, 2.0, 6.0], log_every=2, checkpoint_every=9) is None
  first, last = rows(tmp_path)
  assert (first['step'], first['loss']) == (2, 1.5)
  assert [first[f'loss_quarter_{i}'] for i in (1, 2, 3, 4)] == [1, None, 1.5, 1]
  assert first['update_ratio'] == 0.25 and first['gradient_norm'] is None
  assert (last['step'], last['loss']) == (3, 6.0)
  # Of a CPU nobody tells either.
  assert last['mfu'] is None and last['device_peak_mb'] is None
  assert 0 <= first['input_wait_share'] <= 1


def test_of_chips_that_are_known_the_share_of_their_rate_is_told(
  run, tmp_path, monkeypatch
):
  peak = chips.peak_flops_per_s
  assert peak('TPU v5 lite') == 197e12 and peak('TPU v5p') == 459e12
  assert peak('NVIDIA H100 80GB HBM3') == 989e12 and peak('cpu') is None
  monkeypatch.setattr(chips, 'peak_flops_per_s', lambda kind: 1e12)
  run([1.0, 1.0])
  (row,) = rows(tmp_path)
  # Three examples a step.
  assert row['mfu'] == pytest.approx(6e9 * row['examples_per_s'] / 3 / 1e12)


def test_what_a_step_computes_in_a_loop_counts_by_its_trips(monkeypatch):
  """As with config.accumulate_steps."""

  def products(x, kernels):
    return jax.lax.scan(lambda x, k: (jnp.tanh(x @ k), None), x, kernels)[0]

  shapes = [
    jax.ShapeDtypeStruct(shape, jnp.float32)
    for shape in ((64, 64), (50, 64, 64))
  ]
  compiled = jax.jit(products).lower(*shapes).compile()
  whole = 50 * 2 * 64**3
  assert compiled.cost_analysis()['flops'] < 0.1 * whole
  monkeypatch.setattr(chips, 'peak_flops_per_s', lambda kind: 1e12)
  assert loop._flops(compiled) == pytest.approx(whole, rel=0.1)


def records_of_batch(records, numbers, config):
  """The truth: by the pose, which augmentation leaves alone here."""
  source = batches.PairSource(records, 'train', image_size_px=32)
  drawn = batches.examples(
    source, seed=config['seed'], mirror=False, swap=False
  )
  poses = [
    record['target2source'].tobytes()
    for record in record_folder.RecordFolder(records, 'train')
  ]
  return [poses.index(drawn[i].target2source.tobytes()) for i in numbers]


@pytest.mark.parametrize('loss, words', [(9.0, '9 times'), (np.nan, 'finite')])
def test_a_bad_step_is_not_saved_and_names_its_records(
  run, records, tmp_path, loss, words
):
  losses = [1.0] * 20 + [3.0, 1.5, loss]
  error = run(
    losses,
    max_loss_spike=5.0,
    checkpoint_every=11,
    log_every=99,
    augment={'mirror': False, 'swap': False},
  )
  assert words in error and 'at step 23,' in error and '\n' not in error
  # What is good and was under way is kept.
  assert saved(tmp_path) == [11, 22]
  (indices,) = [records_of_batch(records, range(66, 69), {'seed': 0})]
  told = json.loads((tmp_path / 'diverged.json').read_text())
  assert told['step'] == 23 and len(told['records']) == 3
  for place, index in zip(told['records'], indices, strict=True):
    assert re.fullmatch(rf'{records}/.*-of-00001: record {index}', place)
    assert place in error


def test_records_that_are_lost_on_the_way_cost_one_line_and_no_step(
  run, tmp_path
):
  def stream(count):
    yield from [None] * count
    raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

  error = run([1.0] * 9, stream(0))
  assert error.startswith('RECORDS: cannot be read') and 'saved' not in error
  assert saved(tmp_path) == []
  error = run([1.0] * 9, stream(7), log_every=5, checkpoint_every=99)
  assert os.strerror(errno.ESTALE) in error and 'step 7 is saved' in error
  assert saved(tmp_path) == [7]
  assert [row['step'] for row in rows(tmp_path)] == [5, 7]


@pytest.mark.parametrize('policy, steps', [('skip', [5]), ('wait', [2, 4, 5])])
def test_a_save_waits_for_the_one_before_or_is_left_out(
  run, tmp_path, policy, steps
):
  def be_busy(keeper):
    keeper._checkpoints.is_busy = lambda: True

  losses = [1.0] * 5
  run(losses, None, be_busy, save_when_busy=policy, checkpoint_every=2)
  assert saved(tmp_path) == steps


def test_a_signal_ends_what_comes_after_the_loop(run, tmp_path):
  def hang(keeper):
    def close():
      os.kill(os.getpid(), signal.SIGTERM)
      time.sleep(30)

    keeper._checkpoints.close = close

  class Stopped(Exception):
    pass

  def stop(number, frame):
    raise Stopped

  before = signal.signal(signal.SIGTERM, stop)
  try:
    for losses in ([1.0], [np.nan]):
      with pytest.raises(Stopped):
        run(losses, None, hang)
  finally:
    signal.signal(signal.SIGTERM, before)
  kinds = [event['event'] for event in goodput.read(tmp_path)]
  assert kinds.count('stop') == 2


def test_steps_to_trace_are_two_numbers():
  assert profiling.parse('100:110') == (100, 110)
  for text in ('100', '0:3', '5:4', 'a:b', '1:2:3'):
    with pytest.raises(errors.UserError, match=f'--profile_steps={text}: '):
      profiling.parse(text)
