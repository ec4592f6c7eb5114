"""The KL autoencoder: the same as diffusers', its names, its posterior."""

import collections

import diffusers
from diffusers.loaders import single_file_utils
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import torch

from odin_jax import sharding
from odin_jax.models import vae
from odin_jax.porting import tensors
from odin_jax.porting import vae as naming
from tests.helpers import stable_diffusion

FULL = stable_diffusion.AUTOENCODER
# Levels that differ in width and two that do not, uneven groups.
NARROW = dict(
  base_channels=16,
  channel_mult=(1, 2, 4, 4),
  num_res_blocks=2,
  latent_channels=4,
  num_groups=8,
  scale=0.2,
)
TINY = dict(
  base_channels=4,
  channel_mult=(1, 2),
  num_res_blocks=1,
  latent_channels=2,
  num_groups=2,
  scale=0.5,
)


def diffusers_autoencoder(settings, device='cpu'):
  with torch.device(device):
    return diffusers.AutoencoderKL.from_config(
      naming.diffusers_config(settings)
    ).eval()


def flat(params):
  return {
    sharding.path_name(path): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  }


def imported(settings, layout, checkpoint, **options):
  """Our autoencoder with the arrays of a checkpoint."""
  by_path = {
    entry.path: tensors.to_flax(entry, checkpoint[entry.name])
    for entry in naming.entries(settings, layout)
  }
  empty = vae.abstract(settings, **options)
  params = jax.tree_util.tree_map_with_path(
    lambda path, _: by_path.pop(sharding.path_name(path)), empty.params
  )
  assert not by_path
  return empty.replace(params=jax.tree.map(jnp.asarray, params))


def exported(autoencoder, settings, layout):
  params, rows = flat(autoencoder.params), collections.defaultdict(list)
  for entry in naming.entries(settings, layout):
    rows[entry.name].append(entry)
  return {
    name: tensors.to_torch(
      entries, [np.asarray(params.pop(entry.path)) for entry in entries]
    )
    for name, entries in rows.items()
  } | params


def random_checkpoint(settings, seed=0, gain=1.0):
  """Weights of diffusers, all of them random; `gain` is of all but norms."""
  generator = np.random.default_rng(seed)

  def draw(name, tensor):
    values = generator.normal(size=tensor.shape)
    if tensor.ndim > 1:
      values *= gain / np.sqrt(values[0].size)
    elif 'norm' not in name:
      values *= gain / 4
    else:
      values = name.endswith('weight') + values / 4
    return values.astype(np.float32)

  state = diffusers_autoencoder(settings, 'meta').state_dict()
  return {name: draw(name, tensor) for name, tensor in state.items()}


# With a small gain, norms see variances of the size of their epsilon.
@pytest.fixture(scope='module', params=[1.0, 0.01])
def narrow(request):
  """Equal autoencoders: diffusers' and ours."""
  checkpoint = random_checkpoint(NARROW, gain=request.param)
  reference = diffusers_autoencoder(NARROW)
  reference.load_state_dict(
    {name: torch.tensor(x) for name, x in checkpoint.items()}
  )
  return reference, imported(NARROW, 'diffusers', checkpoint)


def model_of(autoencoder):
  return nnx.merge(
    nnx.split(
      nnx.eval_shape(
        lambda: vae.AutoencoderKL(
          **dict(autoencoder.settings), rngs=nnx.Rngs(0)
        )
      )
    )[0],
    autoencoder.params,
  )


@jax.jit
def moments_of(autoencoder, x):
  return model_of(autoencoder).moments(x)


@jax.jit
def decoded_by(autoencoder, z):
  return model_of(autoencoder).decode(z)


def nchw(x):
  return torch.tensor(np.asarray(x)).permute(0, 3, 1, 2)


def images(*shape, seed=1):
  return np.random.default_rng(seed).uniform(0, 1, shape).astype(np.float32)


def latents(*shape, seed=2):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def check_close(output, reference):
  reference = reference.permute(0, 2, 3, 1).numpy()
  assert output.shape == reference.shape
  np.testing.assert_allclose(
    output, reference, rtol=0, atol=1e-4 * min(1, reference.std())
  )


def test_moments_are_those_of_diffusers(narrow):
  reference, autoencoder = narrow
  x = images(2, 32, 48, 3) * 2 - 1
  with torch.no_grad():
    posterior = reference.encode(nchw(x)).latent_dist
  with jax.default_matmul_precision('highest'):
    mean, log_variance = moments_of(autoencoder, x)
  assert mean.shape == (2, 4, 6, 4)
  check_close(mean, posterior.mean)
  check_close(log_variance, posterior.logvar)


def test_decoded_images_are_those_of_diffusers(narrow):
  reference, autoencoder = narrow
  z = latents(2, 4, 6, 4)
  with torch.no_grad():
    expected = reference.decode(nchw(z)).sample
  with jax.default_matmul_precision('highest'):
    given = decoded_by(autoencoder, z)
  assert given.shape == (2, 32, 48, 3)
  check_close(given, expected)


@pytest.fixture(scope='module')
def tiny():
  return imported(TINY, 'diffusers', random_checkpoint(TINY, seed=3))


def test_log_variance_is_clipped(tiny):
  bias = jnp.array([0.0, 0.0, 1e3, -1e3])
  params = dict(tiny.params)
  params['quant_conv'] = dict(params['quant_conv'], bias=bias)
  _, log_variance = moments_of(tiny.replace(params=params), images(1, 4, 4, 3))
  assert np.all(log_variance[..., 0] == 20)
  assert np.all(log_variance[..., 1] == -30)


def test_encoding_is_the_scaled_posterior(tiny):
  count = 5_000
  x = images(1, 4, 4, 3)
  mean, log_variance = moments_of(tiny, x * 2 - 1)
  encode = jax.jit(vae.KlAutoencoder.encode)
  np.testing.assert_allclose(encode(tiny, x), 0.5 * mean, atol=1e-5)

  x = np.repeat(x, count, axis=0)

  def drawn(seed):
    noise = jax.random.normal(jax.random.key(seed), (count, *mean.shape[1:]))
    return np.asarray(encode(tiny, x, noise)) / 0.5

  samples = drawn(0)
  deviation = np.exp(np.asarray(log_variance[0]) / 2)
  z_score = (samples.mean(0) - mean[0]) / deviation * np.sqrt(count)
  assert np.abs(z_score).max() < 5
  np.testing.assert_allclose(samples.std(0) / deviation, 1, atol=0.06)
  pixels = ((samples - mean) / deviation).reshape(count, -1)
  correlation = np.corrcoef(pixels.T) - np.eye(pixels.shape[1])
  assert np.abs(correlation).max() < 0.08
  np.testing.assert_array_equal(drawn(0), samples)
  assert np.any(drawn(1) != samples)


def test_decoding_undoes_the_scale_and_clips(tiny):
  z = latents(1, 2, 2, 2)
  expected = decoded_by(tiny, z) / 2 + 0.5
  assert np.any(expected < 0) or np.any(expected > 1)
  np.testing.assert_allclose(
    jax.jit(vae.KlAutoencoder.decode)(tiny, z * np.float32(0.5)),
    np.clip(expected, 0, 1),
    atol=1e-5,
  )


def test_bfloat16_is_close(tiny):
  z = latents(1, 2, 2, 2) * np.float32(0.5)
  decode = jax.jit(vae.KlAutoencoder.decode)
  exact, rounded = decode(tiny, z), decode(tiny.replace(dtype='bfloat16'), z)
  assert rounded.dtype == np.float32
  assert 1e-5 < np.abs(exact - rounded).mean() < 0.02


def test_latents_are_smaller_by_the_downsampling(tiny):
  assert vae.downsampling(FULL['channel_mult']) == 8
  assert vae.abstract(NARROW).downsampling == 8
  assert tiny.downsampling == 2
  encoded = jax.eval_shape(tiny.encode, images(3, 8, 6, 3))
  assert encoded.shape == (3, 4, 3, 2)


def test_is_saved_and_restored(tiny, tmp_path):
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(tmp_path / 'vae', tiny)
    checkpointer.wait_until_finished()
    # Tuples are lists after a round trip through JSON.
    settings = dict(TINY, channel_mult=list(TINY['channel_mult']))
    restored = checkpointer.restore(tmp_path / 'vae', vae.abstract(settings))
  assert jax.tree.structure(restored) == jax.tree.structure(tiny)
  for a, b in zip(
    jax.tree.leaves(restored), jax.tree.leaves(tiny), strict=True
  ):
    np.testing.assert_array_equal(a, b)


def test_random_depends_on_the_seed():
  first, second = (vae.random(TINY, seed, dtype='bfloat16') for seed in (0, 1))
  assert jax.tree.structure(first) == jax.tree.structure(second)
  assert first.scale == 0.5 and first.dtype == 'bfloat16'
  assert (
    jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), first.params
    )
    == vae.abstract(TINY).params
  )
  for name, leaf in flat(first.params).items():
    leaf, other = np.asarray(leaf), np.asarray(flat(second.params)[name])
    assert np.all(leaf != other) == name.endswith('kernel'), name
    assert np.all(leaf == 1) == name.endswith('scale'), name


def shapes_of(settings, layout):
  """Shapes that an export would have, by name; makes no arrays."""
  empty = vae.abstract(settings)
  params = jax.tree.map(
    lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), empty.params
  )
  whole = exported(empty.replace(params=params), settings, layout)
  return {name: tensor.shape for name, tensor in whole.items()}


def test_full_size_is_that_of_stable_diffusion():
  leaves = jax.tree.leaves(vae.abstract(FULL).params)
  assert len(leaves) == 248
  assert sum(leaf.size for leaf in leaves) == 83_653_863
  state = diffusers_autoencoder(FULL, 'meta').state_dict()
  assert shapes_of(FULL, 'diffusers') == {
    name: tuple(tensor.shape) for name, tensor in state.items()
  }


def test_full_size_has_the_names_of_latent_diffusion():
  shapes = shapes_of(FULL, 'ldm')
  assert len(shapes) == 248
  spots = {
    'encoder.conv_in.weight': (128, 3, 3, 3),
    'encoder.down.0.block.0.norm1.weight': (128,),
    'encoder.down.0.downsample.conv.weight': (128, 128, 3, 3),
    'encoder.down.1.block.0.nin_shortcut.weight': (256, 128, 1, 1),
    'encoder.down.2.downsample.conv.bias': (512,),
    'encoder.down.3.block.1.conv2.weight': (512, 512, 3, 3),
    'encoder.mid.block_1.norm2.bias': (512,),
    'encoder.mid.attn_1.norm.weight': (512,),
    'encoder.mid.attn_1.q.weight': (512, 512, 1, 1),
    'encoder.norm_out.weight': (512,),
    'encoder.conv_out.weight': (8, 512, 3, 3),
    'decoder.conv_in.weight': (512, 4, 3, 3),
    'decoder.mid.attn_1.proj_out.weight': (512, 512, 1, 1),
    'decoder.mid.block_2.conv1.weight': (512, 512, 3, 3),
    'decoder.up.0.block.0.nin_shortcut.weight': (128, 256, 1, 1),
    'decoder.up.0.block.2.conv2.weight': (128, 128, 3, 3),
    'decoder.up.1.block.0.conv1.weight': (256, 512, 3, 3),
    'decoder.up.1.upsample.conv.weight': (256, 256, 3, 3),
    'decoder.up.3.block.0.conv1.weight': (512, 512, 3, 3),
    'decoder.up.3.upsample.conv.weight': (512, 512, 3, 3),
    'decoder.norm_out.weight': (128,),
    'decoder.conv_out.weight': (3, 128, 3, 3),
    'quant_conv.weight': (8, 8, 1, 1),
    'post_quant_conv.bias': (4,),
  }
  assert {name: shapes.get(name) for name in spots} == spots
  assert 'decoder.up.0.upsample.conv.weight' not in shapes
  assert 'encoder.down.3.downsample.conv.weight' not in shapes


def test_names_of_the_two_layouts_correspond():
  """diffusers' own conversion is the truth."""
  autoencoder = imported(NARROW, 'diffusers', random_checkpoint(NARROW))
  as_ldm = exported(autoencoder, NARROW, 'ldm')
  converted = single_file_utils.convert_ldm_vae_checkpoint(
    {f'first_stage_model.{k}': torch.tensor(x) for k, x in as_ldm.items()},
    naming.diffusers_config(NARROW),
  )
  checkpoint = exported(autoencoder, NARROW, 'diffusers')
  assert converted.keys() == checkpoint.keys()
  for name, tensor in converted.items():
    np.testing.assert_array_equal(tensor, checkpoint[name], err_msg=name)


def test_round_trip_is_exact():
  autoencoder = imported(NARROW, 'diffusers', random_checkpoint(NARROW))
  ldm = exported(autoencoder, NARROW, 'ldm')
  first = imported(NARROW, 'ldm', ldm)
  second = imported(NARROW, 'diffusers', exported(first, NARROW, 'diffusers'))
  again = exported(second, NARROW, 'ldm')
  assert again.keys() == ldm.keys()
  for name, tensor in ldm.items():
    np.testing.assert_array_equal(again[name], tensor, err_msg=name)


def test_first_level_may_be_wider_than_the_input_layer():
  settings = dict(TINY, channel_mult=(2, 3))
  assert {entry.path for entry in naming.entries(settings, 'ldm')} == flat(
    vae.abstract(settings).params
  ).keys()
  shapes = shapes_of(settings, 'ldm')
  assert (
    naming.settings_from_shapes(shapes, 'ldm', num_groups=2, scale=0.5)
    == settings
  )
  with pytest.raises(ValueError, match='does not start with 1'):
    naming.diffusers_config(settings)


def test_legacy_names_of_the_attention():
  prefix = 'decoder.mid_block.attentions.0'
  renamed = {
    'group_norm.weight': 'group_norm.weight',
    'query.weight': 'to_q.weight',
    'key.bias': 'to_k.bias',
    'value.weight': 'to_v.weight',
    'proj_attn.bias': 'to_out.0.bias',
  }
  for old, new in renamed.items():
    assert naming.renamed_legacy(f'{prefix}.{old}') == f'{prefix}.{new}'
  for entry in naming.entries(FULL, 'diffusers'):
    assert naming.renamed_legacy(entry.name) == entry.name


@pytest.mark.parametrize('layout', naming.LAYOUTS)
@pytest.mark.parametrize('settings', [FULL, NARROW, TINY])
def test_settings_are_read_from_shapes(settings, layout):
  read = naming.settings_from_shapes(
    shapes_of(settings, layout),
    layout,
    num_groups=settings['num_groups'],
    scale=settings['scale'],
  )
  assert read == settings


# What the shapes of Stable Diffusion's do not tell.
UNTOLD = {name: FULL[name] for name in ('num_groups', 'scale')}


@pytest.mark.parametrize(
  'change, message',
  [
    ({'quant_conv.weight': None}, 'no tensor quant_conv.weight'),
    ({'quant_conv.weight': (4, 4, 1, 1)}, 'quant_conv has 4 outputs'),
    ({'encoder.conv_in.weight': None}, 'no tensor encoder.conv_in'),
    ({'encoder.conv_in.weight': (96, 3, 3, 3)}, 'no multiple of 96'),
    ({'encoder.conv_in.weight': (16, 3, 3, 3)}, 'groups do not divide 16'),
    ({'encoder.down.1.block.1.conv1.weight': None}, 'same number'),
    ({'encoder.down.9.block.0.conv1.weight': (1, 1, 3, 3)}, 'same number'),
  ],
)
def test_shapes_of_something_else_are_refused(change, message):
  shapes = shapes_of(FULL, 'ldm') | change
  shapes = {name: shape for name, shape in shapes.items() if shape}
  with pytest.raises(ValueError, match=message):
    naming.settings_from_shapes(shapes, 'ldm', **UNTOLD)


def test_shapes_in_another_layout_are_refused():
  with pytest.raises(ValueError, match='same number'):
    naming.settings_from_shapes(shapes_of(FULL, 'ldm'), 'diffusers', **UNTOLD)


# With the fields that an early diffusers wrote.
OLD_CONFIG = {
  '_class_name': 'AutoencoderKL',
  '_diffusers_version': '0.2.2',
  'act_fn': 'silu',
  'block_out_channels': [128, 256, 512, 512],
  'down_block_types': ['DownEncoderBlock2D'] * 4,
  'in_channels': 3,
  'latent_channels': 4,
  'layers_per_block': 2,
  'out_channels': 3,
  'sample_size': 512,
  'up_block_types': ['UpDecoderBlock2D'] * 4,
}


def test_settings_are_read_from_diffusers_config():
  scale = FULL['scale']
  assert naming.settings_from_diffusers(OLD_CONFIG, scale=scale) == FULL
  narrow = diffusers_autoencoder(NARROW, 'meta').config
  assert naming.settings_from_diffusers(narrow, scale=scale) == NARROW


def test_the_scale_is_that_of_diffusers():
  with torch.device('meta'):
    reference = diffusers.AutoencoderKL.from_config(OLD_CONFIG)
  assert reference.config['scaling_factor'] == FULL['scale']


@pytest.mark.parametrize(
  'change, message',
  [
    ({'block_out_channels': None}, 'block_out_channels is missing'),
    ({'block_out_channels': [128, 192, 512, 512]}, 'width 192'),
    ({'use_quant_conv': False}, 'use_quant_conv=False'),
    ({'shift_factor': 0.1}, 'shift_factor=0.1'),
    ({'act_fn': 'relu'}, 'act_fn=relu'),
    ({'down_block_types': ['DownEncoderBlock2D'] * 3}, 'down_block_types'),
    ({'up_block_types': ['AttnUpDecoderBlock2D'] * 4}, 'up_block_types'),
    ({'norm_num_groups': 48}, '48 groups do not divide 128'),
    ({'num_vq_embeddings': 256}, 'unknown field num_vq_embeddings'),
    ({'_class_name': 'AutoencoderTiny'}, 'AutoencoderTiny'),
  ],
)
def test_config_of_another_autoencoder_is_refused(change, message):
  with pytest.raises(ValueError, match=message):
    naming.settings_from_diffusers(OLD_CONFIG | change, scale=1.0)
