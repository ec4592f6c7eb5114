"""From a public checkpoint over training to a model that diffusers loads."""

import json

import diffusers
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from configs import train as recipes
from odin_jax import sharding
from odin_jax.checkpoints import checkpoint, ported
from odin_jax.diffusion import schedule
from odin_jax.models import conditioning, odin
from odin_jax.shared import errors, posed_pair
from odin_jax.training import settings, warm_start
from tests.helpers import (
  commands,
  default_sampling,
  posed_records,
  public_checkpoints,
)

# The recipe `odin` at the sizes of the checkpoint.
SIZES = {
  'autoencoder': {
    key: value
    for key, value in public_checkpoints.VAE.items()
    if key != 'channel_mult'
  },
  'image_encoder': public_checkpoints.CLIP,
  'model.unet': {
    key: value
    for key, value in public_checkpoints.UNET.items()
    if key not in ('in_channels', 'out_channels')
  },
}
LEAVES = ('bias', 'kernel')
OVERRIDES = [
  f'--config.{section}.{key}={value}'
  for section, values in SIZES.items()
  for key, value in values.items()
]


def narrow_config(conditioning):
  config = recipes.get_config(f'odin,runlocal=True,conditioning={conditioning}')
  for section, values in SIZES.items():
    part = config
    for name in section.split('.'):
      part = part[name]
    part.update(values)
  return checkpoint.plain(config.to_dict())


def run(module, *arguments):
  ((status, stderr),) = commands.run_all(f'odin_jax.{module}', [arguments])
  assert status == 0, stderr


def flat(params):
  leaves = jax.tree_util.tree_leaves_with_path(params)
  return {sharding.path_name(path): np.asarray(leaf) for path, leaf in leaves}


@pytest.fixture(scope='module')
def zero123_workdir(tmp_path_factory):
  """Workdir of a checkpoint in Zero-1-to-3's layout."""
  folder = tmp_path_factory.mktemp('ported')
  state = public_checkpoints.ldm_state(public_checkpoints.networks())
  state |= public_checkpoints.projection(4)
  public_checkpoints.write_ckpt(folder / 'zero123.ckpt', state)
  run(
    'port_weights',
    f'--source={folder / "zero123.ckpt"}',
    '--format=zero123',
    f'--output={folder / "workdir"}',
  )
  return folder / 'workdir'


@pytest.fixture(scope='module')
def mesh():
  return sharding.make_mesh({'data': -1, 'fsdp': 1, 'tensor': 1})


@pytest.fixture(scope='module')
def start(zero123_workdir, mesh):
  """The ported checkpoint, for the model that it is of."""
  return warm_start.load(zero123_workdir, narrow_config('zero123'), mesh)


@pytest.fixture(scope='module')
def saved(start):
  """The ported parameters by path."""
  return flat(start.params)


def adopted(config, start):
  """Parameters by path, where those that the checkpoint lacks are 7.5."""
  shapes = jax.eval_shape(lambda: odin.init_params(config))
  marked = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 7.5), shapes)
  return flat(warm_start.adopt(marked, start.params, start.rows))


def test_the_same_model_starts_with_all_parameters(start, saved):
  assert start.notes == []
  # The arithmetic is the config's, as after a resume.
  for encoder in (start.encoders.autoencoder, start.encoders.image):
    assert encoder.dtype == 'bfloat16'
  params = adopted(narrow_config('zero123'), start)
  assert params.keys() == saved.keys()
  for name, value in saved.items():
    np.testing.assert_array_equal(params[name], value, err_msg=name)


def test_more_channels_start_from_zero_and_another_pose_afresh(
  zero123_workdir, saved, mesh
):
  config = narrow_config('clip+se3+plucker')
  config['diffusion']['prediction'] = 'v'
  start = warm_start.load(zero123_workdir, config, mesh)
  params = adopted(config, start)
  kernel = params['unet/conv_in/kernel']
  assert kernel.shape[2] == 8 + 12
  np.testing.assert_array_equal(kernel[:, :, :8], saved['unet/conv_in/kernel'])
  assert not kernel[:, :, 8:].any()
  fresh = [
    f'conditioning/parts/se3/{name}'
    for name in ('pose1/bias', 'pose1/kernel', 'pose2/bias', 'pose2/kernel')
  ]
  left = [f'conditioning/parts/zero123/projection/{x}' for x in LEAVES]
  assert start.notes == [
    "diffusion.prediction: 'eps' there, 'v' here",
    'lacks channels of plucker: these start with zeros',
    f'has no {", ".join(fresh)}: these start fresh',
    f'{", ".join(left)} are not used',
  ]
  for name, value in params.items():
    if name in fresh:
      assert (value == 7.5).all(), name
    elif name != 'unet/conv_in/kernel':
      np.testing.assert_array_equal(value, saved[name], err_msg=name)


@pytest.mark.parametrize(
  'change, words',
  [
    (dict(autoencoder={'scale': 1.0}), 'autoencoder'),
    (dict(image_encoder={'num_heads': 2}), 'image_encoder'),
    (dict(model={'unscaled_source': False}), 'unscaled_source'),
  ],
)
def test_another_config_is_refused(zero123_workdir, mesh, change, words):
  config = narrow_config('zero123')
  for section, values in change.items():
    config[section].update(values)
  with pytest.raises(errors.UserError, match=words):
    warm_start.load(zero123_workdir, config, mesh)


@pytest.mark.parametrize(
  'change, words',
  [
    ({'num_heads': 4}, 'num_heads'),
    ({'model_channels': 64}, 'parameters do not fit'),
    ({'num_res_blocks': 2}, 'parameters do not fit'),
  ],
)
def test_another_unet_is_refused(zero123_workdir, mesh, change, words):
  config = narrow_config('zero123')
  config['model']['unet'].update(change)
  with pytest.raises(errors.UserError, match=words):
    warm_start.load(zero123_workdir, config, mesh)


@pytest.mark.parametrize(
  'before, after, fits',
  [
    ('clip+se3', 'clip+se3+plucker', True),
    ('clip+plucker', 'clip+plucker+rays', True),
    ('clip+plucker', 'clip+sweep', False),
    ('clip+plucker+rays', 'sweep+clip+rays+plucker', True),
    ('clip+plucker', 'clip', False),
  ],
)
def test_channels_keep_their_meaning(tmp_path, before, after, fits):
  saved, config = narrow_config(before), narrow_config(after)
  if fits:
    warm_start._check(tmp_path, config, saved)
  else:
    with pytest.raises(errors.UserError, match='channels of model.cond'):
      warm_start._check(tmp_path, config, saved)


def test_more_bands_are_more_channels_and_fewer_are_refused(tmp_path):
  few, many = narrow_config('rays'), narrow_config('rays')
  few['model']['fourier_bands'], many['model']['fourier_bands'] = 1, 2
  warm_start._check(tmp_path, many, few)
  with pytest.raises(errors.UserError, match='12 of rays .* rays.target.dir'):
    warm_start._check(tmp_path, few, many)
  other = narrow_config('rays+sweep')
  swept = narrow_config('rays+sweep')
  swept['model']['sweep_distances'] = [0.4, 0.7, 1.0, 1.5, 2.0]
  with pytest.raises(errors.UserError, match='5 of sweep .* sweep.2.0.latent0'):
    warm_start._check(tmp_path, other, swept)


def test_an_option_that_shapes_do_not_show_is_told():
  saved, config = narrow_config('se3'), narrow_config('se3')
  saved['model']['base'], config['model']['base'] = 2.0, 3.0
  shapes = jax.eval_shape(lambda: odin.init_params(config))
  assert warm_start._notes(config, saved, shapes, shapes) == [
    'model.base: 2.0 there, 3.0 here; the parameters that fit are taken all the '
    'same'
  ]


def test_a_model_without_an_image_encoder_needs_none(tmp_path):
  """As Stable Diffusion, of which the text encoder is not taken."""
  saved, config = narrow_config('se3'), narrow_config('se3+plucker')
  saved['image_encoder'] = {'kind': 'none', 'projection': 32}
  with pytest.raises(errors.UserError, match='image_encoder'):
    warm_start._check(tmp_path, config, saved)
  config['image_encoder']['kind'] = 'none'
  warm_start._check(tmp_path, config, saved)


_WITHOUT_AN_OPTION = """
from configs import train

def get_config(argument=None):
  config = train.get_config(argument)
  del config.model.sweep_distances
  return config
"""


def test_what_a_config_lacks_is_asked_for(tmp_path):
  (tmp_path / 'lacking.py').write_text(_WITHOUT_AN_OPTION)
  posed_records.write_records(tmp_path / 'records', 'train', {'one': 6})
  results = commands.run_all(
    'odin_jax.train',
    [
      [
        '--config=configs/train.py:odin,runlocal=True',
        '--config.random_encoders=False',
        f'--records={tmp_path / "records"}',
        f'--workdir={tmp_path / "workdir"}',
      ],
      [
        '--config=configs/train.py:world,conditioning=clip',
        f'--records={tmp_path / "records"}',
        f'--workdir={tmp_path / "other"}',
      ],
      [
        '--config=configs/train.py:world,prediction=eps',
        '--config.diffusion.zero_terminal_snr=True',
        f'--records={tmp_path / "records"}',
        f'--workdir={tmp_path / "other"}',
      ],
      [
        f'--config={tmp_path}/lacking.py:world,runlocal=True',
        f'--records={tmp_path / "records"}',
        f'--workdir={tmp_path / "other"}',
      ],
      [
        '--config=configs/train.py:world,runlocal=True',
        f'--records={tmp_path / "records"}',
        '--workdir=pretrained',
      ],
      [
        '--config=configs/train.py:world,runlocal=True',
        f'--records={tmp_path / "records"}',
        f'--workdir={tmp_path / "other"}',
        '--step=3',
      ],
      [
        '--config=configs/train.py:world,runlocal=True',
        f'--records={tmp_path / "records"}',
        f'--workdir={tmp_path / "other"}',
        '--config.steps=9',
        '--profile_steps=3:10',
      ],
      [
        '--config=configs/train.py:world,runlocal=True',
        f'--records={tmp_path / "records"}',
        f'--workdir={tmp_path / "other"}',
        '--config.sample_every=2',
      ],
    ],
  )
  # Before the one line of the error is that of the devices.
  results = [(status, errors.splitlines()[-1]) for status, errors in results]
  commands.assert_refused(
    results,
    [
      ['--init'],
      ['clip'],
      ['eps', 'SNR'],
      ["'sweep_distances'"],
      ['--init=pretrained', './pretrained'],
      ['--step: ', '--init, which is not given'],
      ['--profile_steps=3:10', '9 steps'],
      ['config.sample_every=2', 'no test records'],
    ],
  )


@pytest.mark.parametrize(
  'field, value, words',
  [
    ('dtype', 'bf16', 'bfloat16'),
    ('diffusion.schedule', 'linear', 'cosine'),
    ('diffusion.mask_auxiliary', 'cube', 'square'),
    ('diffusion.spacing', 'even', 'trailing'),
    ('diffusion.condition_dropout', 0.5, '0.333'),
    ('optimizer.schedule', 'linear', 'constant'),
    ('autoencoder.kind', 'vq', 'kl'),
    ('steps', 0, 'at least 1'),
  ],
)
def test_a_field_of_few_values_says_which(field, value, words):
  config = narrow_config('zero123')
  settings.check(config)
  section = config
  *parents, name = field.split('.')
  for parent in parents:
    section = section[parent]
  section[name] = value
  with pytest.raises(errors.UserError, match=rf'config\.{field}.*{words}'):
    settings.check(config)


def _check_guidance(workdir):
  """A guided sample of the trained model is what two calls a step give."""
  checkpoints, newest, config = checkpoint.open_step(workdir)
  shapes = jax.eval_shape(lambda: odin.init_params(config))
  where = sharding.replicated(
    sharding.make_mesh({'data': -1, 'fsdp': 1, 'tensor': 1})
  )
  params = checkpoints.restore_params(
    newest, 'ema', shapes, jax.tree.map(lambda _: where, shapes)
  )
  frozen = checkpoints.restore_encoders(newest, config, where)
  generator = np.random.default_rng(4)
  pair = posed_pair.PosedPair(
    source=generator.integers(0, 256, (1, 32, 32, 3), np.uint8),
    target=None,
    target2source=np.eye(3, 4)[None] + generator.normal(0, 0.1, (1, 3, 4)),
    fov_deg=np.array([90.0]),
    median_depth=np.array([1.0]),
  )
  model = default_sampling.load_model(workdir, num_steps=2, guidance=3.0)
  image = model.predict(pair, np.array([5]))

  alpha_bar = schedule.alpha_bars(
    config['diffusion']['schedule'],
    config['diffusion']['num_timesteps'],
    zero_terminal_snr=config['diffusion']['zero_terminal_snr'],
  )
  graph = odin.graph(config)

  @jax.jit
  def by_hand(params, frozen, pair):
    model = nnx.merge(graph, params)
    kept = conditioning.Drop(jnp.zeros(1, bool), jnp.zeros(1, bool))
    cond = model.cond(odin.condition(frozen, config, pair), kept)
    uncond = jax.tree.map(jnp.zeros_like, cond)
    x = jax.random.normal(jax.random.key(5), (1, 16, 16, 4))
    for now, then in ((501, 1), (1, 0)):
      t = jnp.full(1, float(now))
      eps_cond, eps_uncond = (
        model.denoise(x, t, inputs).output for inputs in (cond, uncond)
      )
      eps = eps_uncond + 3 * (eps_cond - eps_uncond)
      a, b = alpha_bar[now], alpha_bar[then]
      x0 = (x - np.sqrt(1 - a) * eps) / np.sqrt(a)
      x = np.sqrt(b) * x0 + np.sqrt(1 - b) * eps
    return frozen.autoencoder.decode(x)

  expected = by_hand(params, frozen, jax.tree.map(jnp.asarray, pair))
  np.testing.assert_allclose(image, expected, atol=1e-3)
  assert image.std() > 0.01


def test_training_goes_on_from_it_and_diffusers_loads_the_result(
  zero123_workdir, saved, tmp_path
):
  posed_records.write_records(tmp_path / 'records', 'train', {'one': 6})
  run(
    'train',
    '--config=configs/train.py:odin,runlocal=True,conditioning=zero123',
    *OVERRIDES,
    '--config.dtype=float32',
    '--config.batch_size=2',
    '--config.steps=3',
    '--config.ema_decay=0.5',
    f'--init={zero123_workdir}',
    f'--records={tmp_path / "records"}',
    f'--workdir={tmp_path / "workdir"}',
  )
  run(
    'port_weights',
    f'--source={tmp_path / "workdir"}',
    '--export=diffusers',
    f'--output={tmp_path / "exported"}',
  )
  reference, loading = diffusers.UNet2DConditionModel.from_pretrained(
    tmp_path / 'exported' / 'unet', output_loading_info=True
  )
  assert not any(loading.values()), loading

  params, _, config = ported.read_exportable(tmp_path / 'workdir', True)
  params = jax.tree.map(lambda leaf: leaf.read(), params)
  # It went on from there: a little, everywhere where a gradient is.
  moved = flat(params)
  assert moved.keys() == saved.keys()
  changes = {k: np.abs(moved[k] - saved[k]).max() for k in moved}
  assert 0 < changes['unet/conv_in/kernel'] < 1e-2
  assert np.mean([change > 0 for change in changes.values()]) > 0.9

  generator = np.random.default_rng(0)
  x = generator.normal(size=(2, 8, 8, 8)).astype(np.float32)
  context = generator.normal(size=(2, 1, 32)).astype(np.float32)
  timestep = np.array([10.0, 700.0], np.float32)
  graph = odin.graph(config)

  @jax.jit
  def denoise(params):
    model = nnx.merge(graph, params)
    noisy, source = jnp.split(jnp.asarray(x), 2, axis=-1)
    cond = odin.Cond(source, jnp.asarray(context))
    return model.denoise(noisy, jnp.asarray(timestep), cond).output

  with torch.no_grad():
    expected = reference(
      torch.from_numpy(x).permute(0, 3, 1, 2),
      torch.from_numpy(timestep),
      torch.from_numpy(context),
    ).sample.permute(0, 2, 3, 1)
  np.testing.assert_allclose(denoise(params), expected.numpy(), atol=1e-4)
  _check_guidance(tmp_path / 'workdir')
  facts = json.loads((tmp_path / 'exported' / 'port_weights.json').read_text())
  assert facts['moving_average'] and facts['conditioning'] == 'zero123'


@pytest.mark.parametrize('conditioning', ['se3+sweep', 'clip+se3+sweep'])
def test_a_model_of_one_source_starts_from_one_of_several(conditioning):
  """Which of one source gives the same: what compares them is 0 then."""
  saved, config = narrow_config(conditioning), narrow_config(conditioning)
  saved['model']['sources'] = 2
  assert not warm_start._lost_channels(config, saved)
  rows = warm_start._rows(
    odin.input_channels(config), odin.input_channels(saved)
  )
  names = odin.input_channels(saved)
  assert [names[row] for row in rows] == list(odin.input_channels(config))
  # The other way round new channels start with zeros.
  rows = warm_start._rows(names, odin.input_channels(config))
  new = [name for name, row in zip(names, rows, strict=True) if row is None]
  assert new and all('agreement' in name for name in new)
