"""The U-Net is that of diffusers and of CompVis: values, gradients, names."""

import functools
import hashlib
import zlib

import diffusers
from diffusers.loaders import single_file_utils
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from configs import train as recipes
from odin_jax import sharding
from odin_jax.models import odin, unet
from odin_jax.porting import tensors
from odin_jax.porting import unet as naming
from tests.helpers import stable_diffusion

FULL = stable_diffusion.UNET
NARROW = FULL | dict(model_channels=64, context_dim=48)
ODD = FULL | dict(
  in_channels=5,
  model_channels=8,
  channel_mult=(2, 1, 3),
  num_res_blocks=1,
  attention_levels=(1,),
  transformer_depth=2,
  context_dim=12,
  num_groups=4,
  feedforward_factor=3,
)
LAYOUTS = ('ldm', 'diffusers')
# What shapes do not tell.
UNTOLD = {name: NARROW[name] for name in ('num_heads', 'num_groups')}


@functools.cache
def split(channel_mult, attention_levels, **settings):
  graph, shapes = nnx.split(
    nnx.eval_shape(
      lambda: unet.UNet(
        channel_mult=channel_mult,
        attention_levels=attention_levels,
        **settings,
        rngs=nnx.Rngs(0),
      )
    )
  )
  return graph, nnx.to_pure_dict(shapes)


def by_path(tree):
  return {
    sharding.path_name(path): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def random_parameter(path, leaf):
  """No parameter at zero or one: either would hide errors."""
  generator = np.random.default_rng(zlib.crc32(path.encode()))
  x = generator.standard_normal(leaf.shape, np.float32)
  if path.endswith('kernel'):
    return x / np.sqrt(np.prod(leaf.shape[:-1]), dtype=np.float32)
  return np.float32(path.endswith('scale')) + np.float32(0.2) * x


def to_torch(settings, params, layout='diffusers'):
  """Parameters under their foreign names."""
  return {
    entry.name: tensors.to_torch([entry], [params[entry.path]])
    for entry in naming.entries(settings, layout)
  }


def diffusers_model(settings):
  """On the meta device: shapes, but no memory."""
  with torch.device('meta'):
    return diffusers.UNet2DConditionModel.from_config(
      naming.diffusers_config(settings, sample_size=8)
    )


def loaded(settings, params):
  """The model of diffusers with our parameters, loaded strictly."""
  model = diffusers_model(settings)
  state = {
    name: torch.tensor(np.ascontiguousarray(value))
    for name, value in to_torch(settings, params).items()
  }
  model.load_state_dict(state, strict=True, assign=True)
  return model


def torch_image(x):
  return torch.tensor(np.ascontiguousarray(np.moveaxis(x, -1, 1)))


# Not square, more tokens than one, unlike timesteps: nothing can be confused.
@pytest.fixture(scope='module')
def arguments():
  generator = np.random.default_rng(0)
  return (
    generator.standard_normal((2, 8, 16, NARROW['in_channels']), np.float32),
    np.array([3.0, 871.0], np.float32),
    generator.standard_normal((2, 3, NARROW['context_dim']), np.float32),
  )


@pytest.fixture(scope='module')
def cotangent():
  return np.random.default_rng(1).standard_normal((2, 8, 16, 5), np.float32)


@pytest.fixture(scope='module')
def params():
  shapes = by_path(split(**NARROW)[1])
  return {path: random_parameter(path, leaf) for path, leaf in shapes.items()}


@pytest.fixture(scope='module')
def jax_results(params, arguments, cotangent):
  """Outputs, the mask's channel last, and gradients: of parameters by path,
  of the image, of the context."""
  graph, shapes = split(**NARROW)
  state = jax.tree_util.tree_map_with_path(
    lambda path, _: params[sharding.path_name(path)], shapes
  )

  def forward(state, x, context):
    network = nnx.merge(graph, state)
    output, mask_logit = network(x, jnp.asarray(timestep), context)
    return jnp.concatenate([output, mask_logit[..., None]], axis=-1)

  def step(*arguments):
    outputs, backward = jax.vjp(forward, *arguments)
    return outputs, backward(cotangent)

  x, timestep, context = arguments
  with jax.default_matmul_precision('highest'):
    outputs, (gradients, *others) = jax.jit(step)(state, x, context)
  return np.asarray(outputs), by_path(gradients), *others


@pytest.fixture(scope='module')
def torch_results(params, arguments, cotangent):
  """The same of diffusers; the mask's channel is its fifth."""
  model = loaded(NARROW | dict(out_channels=5), params)
  x, timestep, context = arguments
  x, context = torch_image(x), torch.tensor(context)
  x.requires_grad_(), context.requires_grad_()
  output = model(x, torch.tensor(timestep), context).sample
  output.backward(torch_image(cotangent))
  return (
    np.moveaxis(output.detach().numpy(), 1, -1),
    {name: p.grad.numpy() for name, p in model.named_parameters()},
    np.moveaxis(x.grad.numpy(), 1, -1),
    context.grad.numpy(),
  )


def test_prediction_and_mask_are_those_of_diffusers(jax_results, torch_results):
  assert jax_results[0].shape == (2, 8, 16, 5)
  assert 0.3 < np.std(torch_results[0]) < 3
  np.testing.assert_allclose(
    jax_results[0], torch_results[0], rtol=0, atol=3e-5
  )


def test_without_its_mask_the_network_has_four_channels(
  jax_results, params, arguments
):
  head = {
    path: params[path][..., :4] for path in ('conv_out/kernel', 'conv_out/bias')
  }
  x, timestep, context = arguments
  with torch.no_grad():
    output = loaded(NARROW, params | head)(
      torch_image(x), torch.tensor(timestep), torch.tensor(context)
    ).sample
  np.testing.assert_allclose(
    jax_results[0][..., :4],
    np.moveaxis(output.numpy(), 1, -1),
    rtol=0,
    atol=3e-5,
  )


def test_the_small_recipe_is_a_network_of_diffusers():
  """`port_weights --export=diffusers` takes what `world` trains."""
  config = recipes.get_config('world').to_dict()
  channels = config['autoencoder']['channels']
  settings = config['model']['unet'] | dict(
    in_channels=len(odin.input_channels(config)), out_channels=channels
  )
  graph, shapes = split(**settings)
  params = {
    path: random_parameter(path, leaf) for path, leaf in by_path(shapes).items()
  }
  state = jax.tree_util.tree_map_with_path(
    lambda path, _: params[sharding.path_name(path)], shapes
  )
  generator = np.random.default_rng(0)
  size = config['image_size_px'] // config['autoencoder']['patch_px']
  x = generator.standard_normal(
    (1, size, size, settings['in_channels']), np.float32
  )
  context = generator.standard_normal(
    (1, 3, settings['context_dim']), np.float32
  )
  timestep = np.array([871.0], np.float32)
  with jax.default_matmul_precision('highest'):
    output, _ = jax.jit(
      lambda state: nnx.merge(graph, state)(
        *map(jnp.asarray, (x, timestep, context))
      )
    )(state)
  # The motion mask's channel is the last.
  model = loaded(settings | dict(out_channels=channels + 1), params)
  with torch.no_grad():
    expected = model(
      torch_image(x), torch.tensor(timestep), torch.tensor(context)
    ).sample
  np.testing.assert_allclose(
    output, np.moveaxis(expected.numpy(), 1, -1)[..., :-1], rtol=0, atol=3e-5
  )


def relative_error(a, b):
  return np.linalg.norm(a - b) / np.linalg.norm(b)


def test_gradients_of_parameters_are_those_of_torch(jax_results, torch_results):
  entries = naming.entries(NARROW, 'diffusers')
  assert len(entries) == len(torch_results[1]) == 686
  errors = {
    entry.path: relative_error(
      jax_results[1][entry.path],
      tensors.to_flax(entry, torch_results[1][entry.name]),
    )
    for entry in entries
  }
  worst = max(errors, key=errors.get)
  assert errors[worst] < 1e-3, (worst, errors[worst])


def test_gradients_of_inputs_are_those_of_torch(jax_results, torch_results):
  assert relative_error(jax_results[2], torch_results[2]) < 1e-3
  assert relative_error(jax_results[3], torch_results[3]) < 1e-3


def test_epsilons_are_those_of_diffusers():
  # Outputs of order one hardly show them.
  model = diffusers_model(NARROW)
  network = nnx.merge(*split(**NARROW))
  norms = [
    entry
    for entry in naming.entries(NARROW, 'diffusers')
    if entry.path.endswith('/scale')
  ]
  assert len(norms) == 2 * 22 + 16 * 4 + 1
  for entry in norms:
    module = network
    for name in entry.path.split('/')[:-1]:
      module = module[int(name)] if name.isdigit() else getattr(module, name)
    layer = model.get_submodule(entry.name.removesuffix('.weight'))
    assert module.epsilon == layer.eps, entry.path


def without_memory(settings, layout):
  """A checkpoint without our mask's channel, every tensor a view of a zero."""
  _, shapes = split(
    **settings | dict(out_channels=settings['out_channels'] - 1)
  )
  views = {
    path: np.broadcast_to(np.float32(0), leaf.shape)
    for path, leaf in by_path(shapes).items()
  }
  return to_torch(settings, views, layout)


def shapes_of(checkpoint):
  return {name: tuple(tensor.shape) for name, tensor in checkpoint.items()}


def renamed(checkpoint, settings, source, target):
  """From one layout to the other by way of ours."""
  params = {
    entry.path: tensors.to_flax(entry, checkpoint[entry.name])
    for entry in naming.entries(settings, source)
  }
  return to_torch(settings, params, target)


def test_names_and_shapes_are_those_of_diffusers():
  model = shapes_of(diffusers_model(FULL).state_dict())
  assert len(model) == 686
  assert shapes_of(without_memory(FULL, 'diffusers')) == model


def test_names_and_shapes_are_those_of_compvis():
  # Of `UNetModel` in github.com/cvlab-columbia/zero123, built with
  # `unet_config` of its sd-objaverse-finetune-c_concat-256.yaml.
  shapes = shapes_of(without_memory(FULL, 'ldm'))
  lines = (
    f'{name} {" ".join(map(str, shapes[name]))}' for name in sorted(shapes)
  )
  assert len(shapes) == 686
  assert sum(int(np.prod(shape)) for shape in shapes.values()) == 859_532_484
  assert hashlib.sha256('\n'.join(lines).encode()).hexdigest() == (
    'a21b68245ee43d14c3ab5304c53a0bef3f60200f65dfd3bb62e2489eba365927'
  )


@pytest.mark.parametrize('settings', [FULL, NARROW], ids=['full', 'narrow'])
def test_translation_of_names_is_that_of_diffusers(settings):
  single_names = dict(
    zip(
      *(
        [entry.name for entry in naming.entries(settings, layout)]
        for layout in ('diffusers', 'ldm')
      ),
      strict=True,
    )
  )
  prefix = single_file_utils.LDM_UNET_KEY
  converted = single_file_utils.convert_ldm_unet_checkpoint(
    {prefix + name: name for name in single_names.values()},
    naming.diffusers_config(settings, sample_size=32),
  )
  assert single_names == converted


def test_checkpoint_survives_the_way_through_both_layouts():
  checkpoint = without_memory(FULL, 'ldm')
  there = renamed(checkpoint, FULL, 'ldm', 'diffusers')
  back = renamed(there, FULL, 'diffusers', 'ldm')
  assert shapes_of(there) == shapes_of(diffusers_model(FULL).state_dict())
  assert shapes_of(back) == shapes_of(checkpoint)


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('settings', [FULL, ODD], ids=['full', 'odd'])
def test_every_parameter_has_one_name(settings, layout):
  entries = naming.entries(settings, layout)
  paths = [entry.path for entry in entries]
  assert sorted(paths) == sorted(by_path(split(**settings)[1]))
  assert len({entry.name for entry in entries}) == len(entries)


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize(
  'settings', [FULL, NARROW, ODD], ids=['full', 'narrow', 'odd']
)
def test_settings_come_back_from_shapes(settings, layout):
  checkpoint = shapes_of(without_memory(settings, layout))
  inferred = naming.settings_from_shapes(
    checkpoint | {'else.weight': (3,)},
    layout,
    num_heads=settings['num_heads'],
    num_groups=settings['num_groups'],
  )
  assert inferred == settings


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize(
  'path',
  [
    'conv_in/kernel',
    'conv_out/kernel',
    'middle/0/attention/blocks/0/cross_attention/to_k/kernel',
  ],
)
def test_missing_tensor_is_named(layout, path):
  checkpoint = shapes_of(without_memory(NARROW, layout))
  (name,) = (e.name for e in naming.entries(NARROW, layout) if e.path == path)
  del checkpoint[name]
  with pytest.raises(ValueError, match=f"in the {layout} layout: no '{name}'"):
    naming.settings_from_shapes(checkpoint, layout, **UNTOLD)


def test_levels_that_differ_are_refused():
  checkpoint = shapes_of(without_memory(NARROW, 'diffusers'))
  del checkpoint['down_blocks.2.resnets.1.conv1.weight']
  with pytest.raises(ValueError, match='its 4 levels differ'):
    naming.settings_from_shapes(checkpoint, 'diffusers', **UNTOLD)


def test_widths_that_are_no_multiples_are_refused():
  checkpoint = shapes_of(without_memory(NARROW, 'ldm'))
  checkpoint['input_blocks.4.0.in_layers.2.weight'] = (100, 64, 3, 3)
  with pytest.raises(ValueError, match='100.* are no multiples of 64'):
    naming.settings_from_shapes(checkpoint, 'ldm', **UNTOLD)


@pytest.mark.parametrize('settings', [FULL, NARROW], ids=['full', 'narrow'])
def test_settings_come_back_from_a_config_of_diffusers(settings):
  written = dict(diffusers_model(settings).config)
  assert naming.settings_from_diffusers(written) == settings
  assert (
    naming.settings_from_diffusers(
      naming.diffusers_config(settings, sample_size=32)
    )
    == settings
  )


# As published with Stable Diffusion 1.5; it is older than some arguments.
STABLE_DIFFUSION = {
  '_class_name': 'UNet2DConditionModel',
  '_diffusers_version': '0.6.0',
  'act_fn': 'silu',
  'attention_head_dim': 8,
  'block_out_channels': [320, 640, 1280, 1280],
  'center_input_sample': False,
  'cross_attention_dim': 768,
  'down_block_types': [*['CrossAttnDownBlock2D'] * 3, 'DownBlock2D'],
  'downsample_padding': 1,
  'flip_sin_to_cos': True,
  'freq_shift': 0,
  'in_channels': 4,
  'layers_per_block': 2,
  'mid_block_scale_factor': 1,
  'norm_eps': 1e-05,
  'norm_num_groups': 32,
  'out_channels': 4,
  'sample_size': 64,
  'up_block_types': ['UpBlock2D', *['CrossAttnUpBlock2D'] * 3],
}


def test_config_of_stable_diffusion_is_read():
  settings = naming.settings_from_diffusers(STABLE_DIFFUSION)
  assert settings == FULL | dict(in_channels=4)


@pytest.mark.parametrize(
  'change',
  [
    dict(use_linear_projection=True),
    dict(attention_head_dim=[5, 10, 20, 20]),
    dict(num_attention_heads=8),
    dict(mid_block_type=None),
    dict(act_fn='gelu'),
    dict(norm_eps=1e-6),
    dict(flip_sin_to_cos=False),
    dict(freq_shift=1),
    dict(class_embed_type='timestep'),
    dict(block_out_channels=[320, 640, 1280, 1000]),
    dict(down_block_types=['AttnDownBlock2D'] * 3 + ['DownBlock2D']),
    dict(up_block_types=['CrossAttnUpBlock2D'] * 4),
    dict(something_new=1),
  ],
  ids=lambda change: '-'.join(change),
)
def test_config_of_another_network_is_refused(change):
  ((name, value),) = change.items()
  with pytest.raises(ValueError) as error:
    naming.settings_from_diffusers(STABLE_DIFFUSION | change)
  assert f'{name}={value!r}' in str(error.value)


def test_incomplete_config_is_refused():
  config = dict(STABLE_DIFFUSION)
  del config['in_channels'], config['up_block_types']
  with pytest.raises(ValueError, match='lacks in_channels, up_block_types'):
    naming.settings_from_diffusers(config)


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(channel_mult=(2, 4, 4, 4)), 'first level'),
    (dict(feedforward_factor=2), 'feed-forward factor.*: 2'),
  ],
)
def test_what_diffusers_cannot_build_is_refused(change, message):
  with pytest.raises(ValueError, match=message):
    naming.diffusers_config(NARROW | change, sample_size=32)
