"""From a public checkpoint over training to a model that diffusers loads."""

import json

import commands
import diffusers
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import posed_records
import public_checkpoints
import pytest
import torch

from configs import train as recipes
from odin_jax.shared import binary
from odin_jax.training import checkpoint, sharding, step, warm_start

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
def ported(tmp_path_factory):
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
def saved(ported, mesh):
  """The ported parameters by path."""
  given, _, fresh = warm_start.load(ported, narrow_config('zero123'), mesh)
  assert fresh == []
  return flat(given)


def adopted(config, where, mesh):
  given, _, fresh = warm_start.load(where, config, mesh)
  shapes = jax.eval_shape(lambda: step.init_params(config))
  # Numbers that no checkpoint has.
  marked = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 7.5), shapes)
  return flat(warm_start.adopt(marked, given)), fresh


def test_the_same_model_starts_with_all_parameters(ported, saved, mesh):
  params, fresh = adopted(narrow_config('zero123'), ported, mesh)
  assert fresh == []
  assert params.keys() == saved.keys()
  for name, value in saved.items():
    np.testing.assert_array_equal(params[name], value, err_msg=name)


def test_more_channels_start_from_zero_and_another_pose_afresh(
  ported, saved, mesh
):
  params, fresh = adopted(narrow_config('clip+se3+plucker'), ported, mesh)
  kernel = params['unet/conv_in/kernel']
  assert kernel.shape[2] == 8 + 12
  np.testing.assert_array_equal(kernel[:, :, :8], saved['unet/conv_in/kernel'])
  assert not kernel[:, :, 8:].any()
  assert fresh == [
    f'conditioning/parts/se3/{name}'
    for name in ('pose1/bias', 'pose1/kernel', 'pose2/bias', 'pose2/kernel')
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
def test_another_config_is_refused(ported, mesh, change, words):
  config = narrow_config('zero123')
  for section, values in change.items():
    config[section].update(values)
  with pytest.raises(binary.UserError, match=words):
    warm_start.load(ported, config, mesh)


@pytest.mark.parametrize(
  'change, words',
  [
    ({'num_heads': 4}, 'num_heads'),
    ({'model_channels': 64}, 'parameters do not fit'),
    ({'num_res_blocks': 2}, 'parameters do not fit'),
  ],
)
def test_another_unet_is_refused(ported, mesh, change, words):
  config = narrow_config('zero123')
  config['model']['unet'].update(change)
  with pytest.raises(binary.UserError, match=words):
    warm_start.load(ported, config, mesh)


def test_pretrained_encoders_are_asked_for(tmp_path):
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
    ],
  )
  # Before the one line of the error JAX may say which devices it looked for.
  results = [(status, errors.splitlines()[-1]) for status, errors in results]
  commands.assert_refused(results, [['--init'], ['clip'], ['eps', 'SNR']])


def test_training_goes_on_from_it_and_diffusers_loads_the_result(
  ported, saved, tmp_path
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
    f'--init={ported}',
    f'--records={tmp_path / "records"}',
    f'--workdir={tmp_path / "workdir"}',
  )
  run(
    'port_weights',
    f'--source={tmp_path / "workdir"}',
    '--export=diffusers',
    f'--output={tmp_path / "exported"}',
  )
  theirs, loading = diffusers.UNet2DConditionModel.from_pretrained(
    tmp_path / 'exported' / 'unet', output_loading_info=True
  )
  assert not any(loading.values()), loading

  params, _, config = checkpoint.read_exportable(tmp_path / 'workdir', True)
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
  graph = step.graph(config)

  @jax.jit
  def denoise(params):
    model = nnx.merge(graph, params)
    noisy, source = jnp.split(jnp.asarray(x), 2, axis=-1)
    told = source, jnp.asarray(context)
    return model.denoise(noisy, jnp.asarray(timestep), told)[0]

  with torch.no_grad():
    expected = theirs(
      torch.from_numpy(x).permute(0, 3, 1, 2),
      torch.from_numpy(timestep),
      torch.from_numpy(context),
    ).sample.permute(0, 2, 3, 1)
  np.testing.assert_allclose(denoise(params), expected.numpy(), atol=1e-4)
  facts = json.loads((tmp_path / 'exported' / 'port_weights.json').read_text())
  assert facts['moving_average'] and facts['conditioning'] == 'zero123'
