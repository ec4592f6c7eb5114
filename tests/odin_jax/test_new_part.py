"""A part of the conditioning that this file alone knows of.

It is a class and a row: training, starting from another model, sampling and
sharding (test_sharding.py) take it as it is.
"""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import train as recipes
from odin_jax import sharding
from odin_jax.checkpoints import checkpoint
from odin_jax.models import conditioning, encoders, layers, odin
from odin_jax.shared import errors, posed_pair
from odin_jax.training import step, warm_start
from tests.helpers import default_sampling

BATCH, SIZE_PX = 4, 32


def brightness(frozen, config, pairs):
  del frozen, config
  return (pairs.source / 255.0).mean(axis=(1, 2, 3))


class Ones(conditioning.Part):
  """A channel of ones, and a token of how bright the source is."""

  prepares = {'brightness': brightness}
  sharding = {'token/kernel': (None, 'tensor'), 'token/bias': ()}

  def __init__(self, config, *, rngs):
    width = config['model']['unet']['context_dim']
    self.token = layers.Linear(1, width, rngs=rngs)

  @classmethod
  def channel_names(cls, config):
    return ('one',)

  def channels(self, condition):
    return jnp.ones_like(condition['source'][..., :1])

  def tokens(self, condition, dropped):
    token = self.token(condition['prepared']['brightness'][:, None])
    return jnp.where(dropped[:, None], 0.0, token)[:, None]


def make_config(names):
  config = recipes.get_config(f'world,runlocal=True,conditioning={names}')
  # Compiling is most of the time of this test.
  config.model.unet.num_res_blocks = 0
  return checkpoint.plain(config.to_dict())


def make_batch():
  generator = np.random.default_rng(0)
  shape = BATCH, SIZE_PX, SIZE_PX, 3
  poses = np.tile(np.eye(3, 4, dtype=np.float32), (BATCH, 1, 1))
  poses[:, :, 3] = generator.normal(0, 0.2, (BATCH, 3))
  return posed_pair.PosedPair(
    source=generator.integers(0, 256, shape, np.uint8),
    target=generator.integers(0, 256, shape, np.uint8),
    target2source=poses,
    fov_deg=np.full(BATCH, 90, np.float32),
    median_depth=np.ones(BATCH, np.float32),
  )


def save(workdir, done, state, frozen, config):
  checkpoints = checkpoint.Checkpoints(workdir)
  checkpoints.save(done, state, frozen, config)
  checkpoints.close()


def random_params(config, seed):
  """Not as they start: zeros would hide errors."""
  generator = np.random.default_rng(seed)
  return jax.tree.map(
    lambda leaf: jnp.asarray(generator.normal(0, 0.1, leaf.shape), leaf.dtype),
    jax.eval_shape(lambda: odin.init_params(config)),
  )


def on_grid(x):
  """Multiples of 1/64: float32 sums of their products are exact.

  So a convolution does not depend on the order that it sums its channels in.
  """
  return jnp.round(x * 64) / 64


@pytest.fixture
def ones(monkeypatch):
  monkeypatch.setitem(conditioning.PARTS, 'ones', Ones)


@pytest.fixture(scope='module')
def old_run(tmp_path_factory):
  """The workdir of `se3+plucker`, its averaged parameters and its encoders."""
  config = make_config('se3+plucker')
  frozen = encoders.fit(config, make_batch().source)
  params = random_params(config, 1)
  first = params['unet']['conv_in']
  first['kernel'] = on_grid(first['kernel'])
  workdir = tmp_path_factory.mktemp('runs') / 'old'
  save(workdir, 1, step.state_of(config, params), frozen, config)
  return workdir, params, frozen


def denoise(config, frozen, params, context):
  """Output and channels of a model; in place of its own context, if given."""
  batch = make_batch()
  graph = odin.graph(config)

  @jax.jit
  def run(params):
    model = nnx.merge(graph, params)
    condition = odin.condition(frozen, config, jax.tree.map(jnp.asarray, batch))
    kept = jnp.zeros(BATCH, bool)
    channels, own_context = model.conditioning(
      condition, conditioning.Drop(kept, kept)
    )
    noisy = jax.random.normal(jax.random.key(0), condition['source'].shape)
    cond = odin.Cond(
      on_grid(channels), own_context if context is None else context
    )
    output = model.denoise(on_grid(noisy), jnp.full(BATCH, 500.0), cond)
    return output, channels, own_context

  return run(params)


def test_it_starts_from_a_model_without_it_trains_and_samples(
  ones, old_run, tmp_path
):
  workdir, old_params, frozen = old_run
  old_config = make_config('se3+plucker')
  config = make_config('se3+ones+plucker')
  mesh = sharding.make_mesh({'data': -1, 'fsdp': 1, 'tensor': 1})

  # -- Start ------------------------------------------------------------------
  start = warm_start.load(workdir, config, mesh)
  names = [f'conditioning/parts/ones/token/{x}' for x in ('bias', 'kernel')]
  assert start.notes == [
    'lacks channels of ones: these start with zeros',
    f'has no {", ".join(names)}: these start fresh',
  ]
  fresh = random_params(config, 2)
  params = warm_start.adopt(fresh, start.params, start.rows)
  kernel = params['unet']['conv_in']['kernel']
  old_kernel = old_params['unet']['conv_in']['kernel']
  # The noisy latent's and the source's six channels, the new one, the rays'.
  np.testing.assert_array_equal(kernel[:, :, :12], old_kernel[:, :, :12])
  assert not kernel[:, :, 12].any()
  np.testing.assert_array_equal(kernel[:, :, 13:], old_kernel[:, :, 12:])
  old_output, old_channels, context = denoise(
    old_config, frozen, old_params, None
  )
  # Its new token is a matter of the context: both get the old one's.
  output, channels, new_context = denoise(config, frozen, params, context)
  np.testing.assert_array_equal(channels[..., 7:], old_channels[..., 6:])
  assert (channels[..., 6] == 1).all()
  np.testing.assert_array_equal(new_context[:, 0], context[:, 0])
  assert new_context.shape[1] == context.shape[1] + 1
  for new, old in zip(output[:2], old_output[:2], strict=True):
    assert old.std() > 0.01
    np.testing.assert_array_equal(new, old)

  # -- Training ---------------------------------------------------------------
  batch = make_batch()
  train_step = jax.jit(
    functools.partial(
      step.train_step, config=config, graphdef=odin.graph(config)
    )
  )
  state = step.state_of(config, params)
  for _ in range(2):
    state, metrics = train_step(state, batch, start.encoders)
  assert np.isfinite(metrics['loss'])
  trained = state['params']
  token = trained['conditioning']['parts']['ones']['token']['kernel']
  first = params['conditioning']['parts']['ones']['token']['kernel']
  assert (token != first).all()
  assert trained['unet']['conv_in']['kernel'][:, :, 12].any()

  # -- Sampling ---------------------------------------------------------------
  save(tmp_path / 'new', 2, state, start.encoders, config)
  model = default_sampling.load_model(tmp_path / 'new', num_steps=1)
  images = model.predict(batch, np.arange(BATCH))
  assert images.shape == batch.source.shape and np.isfinite(images).all()
  assert model.protocol['conditioning'] == 'se3+ones+plucker'

  # -- The other way ----------------------------------------------------------
  with pytest.raises(errors.UserError, match='1 of ones there, such as ones.o'):
    warm_start.load(tmp_path / 'new', old_config, mesh)


def test_a_model_with_a_part_that_is_not_here_is_refused(old_run, tmp_path):
  """As that of another branch."""
  _, params, frozen = old_run
  config = make_config('se3')
  saved = config | {'model': config['model'] | {'conditioning': 'se3+ones'}}
  save(tmp_path, 1, step.state_of(config, params), frozen, saved)
  mesh = sharding.make_mesh({'data': -1, 'fsdp': 1, 'tensor': 1})
  for load in (
    lambda: warm_start.load(tmp_path, config, mesh),
    lambda: default_sampling.load_model(tmp_path, num_steps=1),
  ):
    with pytest.raises(errors.UserError, match="'ones' is none of se3"):
      load()


def test_names_that_cannot_be_are_refused(monkeypatch):
  class Double(Ones):
    @classmethod
    def channel_names(cls, config):
      return ('one', 'one')

  class Unnamed(Ones):
    @classmethod
    def channel_names(cls, config):
      return ()

  class Elsewhere(Ones):
    prepares = {'brightness': lambda frozen, config, pairs: pairs.median_depth}

  rows = {'ones': Ones, 'double': Double, 'bare': Unnamed, 'else': Elsewhere}
  for name, part in rows.items():
    monkeypatch.setitem(conditioning.PARTS, name, part)
  with pytest.raises(ValueError, match="two channels are named 'double.one'"):
    conditioning.channel_names(make_config('se3+double'))
  frozen = object.__new__(encoders.Encoders)  # nothing is asked of it
  pairs = posed_pair.PosedPair(*[jnp.zeros(2)] * 5)
  with pytest.raises(ValueError, match="'brightness' is what another part"):
    conditioning.prepare(frozen, make_config('ones+else'), pairs)

  class Noisy(Ones):
    @classmethod
    def channel_names(cls, config):
      return ('0',)

  # Starting from another model would take its rows for the noisy latent's.
  monkeypatch.setitem(conditioning.PARTS, 'noisy', Noisy)
  with pytest.raises(ValueError, match="'noisy.0' is a channel of the noisy"):
    odin.input_channels(make_config('se3+noisy'))

  def channels():
    kept = jnp.zeros(2, bool)
    condition = {
      'source': jnp.zeros((2, 8, 8, 6)),
      'prepared': {'brightness': jnp.zeros(2)},
    }
    model = conditioning.Conditioning(make_config('bare'), rngs=nnx.Rngs(0))
    return model(condition, conditioning.Drop(kept, kept))[0]

  with pytest.raises(ValueError, match="'bare': 7 channels under 6 names"):
    jax.eval_shape(channels)


def test_arrays_that_no_checkpoint_keeps_are_refused(monkeypatch):
  class Constant(Ones):
    def __init__(self, config, *, rngs):
      super().__init__(config, rngs=rngs)
      self.scale = jnp.ones(1)

  class Numpy(Ones):
    def __init__(self, config, *, rngs):
      super().__init__(config, rngs=rngs)
      self.scale = np.ones(1)

  class Random(Ones):
    def __init__(self, config, *, rngs):
      super().__init__(config, rngs=rngs)
      self.dropout = nnx.Dropout(0.1, rngs=rngs)

  for name, part, path in (
    ('constant', Constant, 'scale'),
    ('numpy', Numpy, 'scale'),
    ('random', Random, 'dropout'),
  ):
    monkeypatch.setitem(conditioning.PARTS, name, part)
    with pytest.raises(ValueError, match=f'parts/{name}/{path}.*no parameters'):
      odin.graph(make_config(name))
