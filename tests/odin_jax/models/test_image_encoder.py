"""CLIP's image encoder: parity with transformers, preprocessing, naming."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from odin_jax import sharding
from odin_jax.models import image_encoder
from odin_jax.porting import clip, tensors
from tests.helpers import stable_diffusion

TINY = dict(
  width=128,
  num_layers=2,
  num_heads=2,
  patch_px=4,
  image_size_px=12,
  projection=6,
  hidden=20,
)
VIT_L_14 = stable_diffusion.IMAGE_ENCODER
LAYOUTS = ('transformers', 'openai')


class OpenaiBlock(torch.nn.Module):
  """`ResidualAttentionBlock` of clip/model.py, github.com/openai/CLIP."""

  def __init__(self, settings):
    super().__init__()
    width, hidden = settings['width'], settings['hidden']
    self.attn = torch.nn.MultiheadAttention(
      width, settings['num_heads'], batch_first=True
    )
    self.ln_1 = torch.nn.LayerNorm(width)
    self.mlp = torch.nn.ModuleDict(
      {
        'c_fc': torch.nn.Linear(width, hidden),
        'c_proj': torch.nn.Linear(hidden, width),
      }
    )
    self.ln_2 = torch.nn.LayerNorm(width)

  def forward(self, x):
    y = self.ln_1(x)
    x = x + self.attn(y, y, y, need_weights=False)[0]
    y = self.mlp['c_fc'](self.ln_2(x))
    return x + self.mlp['c_proj'](y * torch.sigmoid(1.702 * y))


class OpenaiVision(torch.nn.Module):
  """`VisionTransformer` of the same file, its names and its order."""

  def __init__(self, settings):
    super().__init__()
    width, patch_px = settings['width'], settings['patch_px']
    tokens = (settings['image_size_px'] // patch_px) ** 2 + 1
    self.conv1 = torch.nn.Conv2d(3, width, patch_px, patch_px, bias=False)
    self.class_embedding = torch.nn.Parameter(torch.zeros(width))
    self.positional_embedding = torch.nn.Parameter(torch.zeros(tokens, width))
    self.ln_pre = torch.nn.LayerNorm(width)
    self.transformer = torch.nn.Module()
    self.transformer.resblocks = torch.nn.Sequential(
      *(OpenaiBlock(settings) for _ in range(settings['num_layers']))
    )
    self.ln_post = torch.nn.LayerNorm(width)
    self.proj = torch.nn.Parameter(torch.zeros(width, settings['projection']))

  def forward(self, x):
    x = self.conv1(x).flatten(2).transpose(1, 2)
    first = self.class_embedding.expand(len(x), 1, -1)
    x = torch.cat([first, x], dim=1) + self.positional_embedding
    x = self.transformer.resblocks(self.ln_pre(x))
    return self.ln_post(x[:, 0]) @ self.proj


class TransformersVision(torch.nn.Module):
  """`CLIPVisionModelWithProjection`, called as OpenAI's is."""

  def __init__(self, settings):
    super().__init__()
    config = clip.transformers_config(settings)
    self.model = transformers.CLIPVisionModelWithProjection(
      transformers.CLIPVisionConfig.from_dict(config)
    )

  def forward(self, x):
    return self.model(pixel_values=x).image_embeds

  def load_state_dict(self, state, **options):
    return self.model.load_state_dict(state, **options)

  def state_dict(self):
    return self.model.state_dict()


THEIRS = {'transformers': TransformersVision, 'openai': OpenaiVision}


def by_path(params):
  return {
    sharding.path_name(path): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  }


def export(params, settings, layout):
  """Parameters by path as tensors by their name in a layout."""
  by_name = {}
  for entry in clip.entries(settings, layout):
    by_name.setdefault(entry.name, []).append(entry)
  return {
    name: tensors.to_torch(entries, [params[entry.path] for entry in entries])
    for name, entries in by_name.items()
  }


def restore(state, settings, layout):
  """Tensors by name as parameters by path."""
  return {
    entry.path: tensors.to_flax(entry, state[entry.name])
    for entry in clip.entries(settings, layout)
  }


@pytest.fixture(scope='module')
def tiny():
  """A tiny encoder with every parameter random: zeros would hide errors."""
  encoder = image_encoder.abstract(TINY)
  generator = np.random.default_rng(1)
  params = jax.tree.map(
    lambda leaf: generator.normal(0, 0.3, leaf.shape).astype(np.float32),
    encoder.params,
  )
  # Tokens so small that the epsilon of the first norm matters.
  for name in ('class_token', 'position'):
    params[name] *= 0.01
  params['patch']['kernel'] *= 0.01
  return encoder.replace(params=params)


def tiny_theirs(tiny, layout):
  """Their network with the same parameters."""
  model = THEIRS[layout](TINY).eval()
  state = {
    name: torch.tensor(np.ascontiguousarray(tensor))
    for name, tensor in export(by_path(tiny.params), TINY, layout).items()
  }
  model.load_state_dict(state, strict=True)
  return model


def random_images(size, batch=2):
  shape = (batch, size, size, 3)
  return np.random.default_rng(size).uniform(0, 1, shape).astype(np.float32)


def preprocessed_by_torch(images, size):
  """FrozenCLIPImageEmbedder.preprocess of zero123, kornia's calls spelt out."""
  x = torch.tensor(images, dtype=torch.float64).permute(0, 3, 1, 2) * 2 - 1
  x = torch.nn.functional.interpolate(
    x, (size, size), mode='bicubic', align_corners=True
  )
  x = (x + 1.0) / 2.0
  mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
  std = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
  return (x - mean) / std


encode = jax.jit(lambda encoder, images: encoder.encode(images))


@pytest.mark.parametrize(
  'layout, size', [('transformers', 12), ('transformers', 32), ('openai', 12)]
)
def test_embedding_is_theirs(tiny, layout, size):
  images = random_images(size)
  with jax.default_matmul_precision('highest'):
    embeddings = encode(tiny, images)
  with torch.no_grad():
    pixels = preprocessed_by_torch(images, TINY['image_size_px']).float()
    expected = tiny_theirs(tiny, layout)(pixels).numpy()
  assert embeddings.dtype == jnp.float32 and np.abs(expected).max() > 1
  # Images must differ by far more than the tolerance.
  assert np.abs(expected[0] - expected[1]).max() > 0.1
  np.testing.assert_allclose(embeddings, expected, atol=1e-4)


def test_bfloat16_is_near_float32(tiny):
  images = random_images(12)
  exact = encode(tiny, images)
  rounded = encode(tiny.replace(dtype='bfloat16'), images)
  assert rounded.dtype == jnp.float32
  error = np.linalg.norm(rounded - exact) / np.linalg.norm(exact)
  assert 1e-5 < error < 0.1


@pytest.mark.parametrize(
  'before, after', [(256, 224), (32, 224), (300, 224), (224, 224), (5, 1)]
)
def test_resize_is_that_of_torch(before, after):
  images = random_images(before, batch=1)
  expected = torch.nn.functional.interpolate(
    torch.tensor(images, dtype=torch.float64).permute(0, 3, 1, 2),
    (after, after),
    mode='bicubic',
    align_corners=True,
  )
  np.testing.assert_allclose(
    image_encoder.resize(jnp.asarray(images), after),
    expected.permute(0, 2, 3, 1),
    atol=1e-5,
  )


def test_preprocessing_is_that_of_zero123():
  images = random_images(32)
  np.testing.assert_allclose(
    image_encoder.preprocess(jnp.asarray(images), 24),
    preprocessed_by_torch(images, 24).permute(0, 2, 3, 1),
    atol=1e-5,
  )


def test_preprocessing_of_a_grey_image_by_hand():
  grey = jnp.full((1, 7, 7, 3), 0.5)
  expected = [0.0690368, 0.1613933, 0.3328386]
  np.testing.assert_allclose(
    image_encoder.preprocess(grey, 9),
    np.broadcast_to(expected, (1, 9, 9, 3)),
    atol=1e-5,
  )


def test_random_encoder_has_the_abstract_shapes():
  settings = TINY | {'num_layers': 1}
  made = image_encoder.random(settings, 3, dtype='bfloat16')
  shapes = image_encoder.abstract(settings, dtype='bfloat16')
  assert jax.tree.structure(made) == jax.tree.structure(shapes)
  for a, b in zip(jax.tree.leaves(made), jax.tree.leaves(shapes), strict=True):
    assert a.shape == b.shape and a.dtype == b.dtype == jnp.float32


@pytest.fixture(scope='module')
def full():
  """Shapes of every parameter of CLIP ViT-L/14, by path."""
  return by_path(image_encoder.abstract(VIT_L_14).params)


def their_shape(entries, params):
  """The shape that `tensors.to_torch` would give; makes no array."""
  shape = params[entries[0].path].shape
  if entries[0].layout == 'linear':
    shape = shape[::-1]
  elif entries[0].layout == 'conv':
    shape = tuple(shape[axis] for axis in (3, 2, 0, 1))
  return (shape[0] * len(entries), *shape[1:])


def shapes_by_name(full, layout):
  rows = clip.entries(VIT_L_14, layout)
  groups = {}
  for entry in rows:
    groups.setdefault(entry.name, []).append(entry)
  assert sorted(entry.path for entry in rows) == sorted(full)
  return {name: their_shape(group, full) for name, group in groups.items()}


def test_full_size_has_the_parameters_of_vit_l_14(full):
  assert len(full) == 392
  assert sum(leaf.size for leaf in full.values()) == 303_966_208


@pytest.mark.parametrize('layout', LAYOUTS)
def test_full_size_has_their_names_and_shapes(full, layout):
  with torch.device('meta'):
    state = THEIRS[layout](VIT_L_14).state_dict()
  assert shapes_by_name(full, layout) == {
    name: tuple(tensor.shape) for name, tensor in state.items()
  }


def test_full_size_has_the_known_names_of_openai(full):
  shapes = shapes_by_name(full, 'openai')
  # 12 tensors per block and 8 beside them.
  assert len(shapes) == 24 * 12 + 8
  fused = [name for name in shapes if name.endswith('in_proj_weight')]
  assert len(fused) == 24
  # Read from clip/model.py of github.com/openai/CLIP, `VisionTransformer`.
  block = 'transformer.resblocks.23'
  expected = {
    'class_embedding': (1024,),
    'positional_embedding': (257, 1024),
    'proj': (1024, 768),
    'conv1.weight': (1024, 3, 14, 14),
    'ln_pre.weight': (1024,),
    'ln_post.bias': (1024,),
    f'{block}.attn.in_proj_weight': (3072, 1024),
    f'{block}.attn.in_proj_bias': (3072,),
    f'{block}.attn.out_proj.weight': (1024, 1024),
    f'{block}.attn.out_proj.bias': (1024,),
    f'{block}.ln_1.weight': (1024,),
    f'{block}.mlp.c_fc.weight': (4096, 1024),
    f'{block}.mlp.c_fc.bias': (4096,),
    f'{block}.mlp.c_proj.weight': (1024, 4096),
    f'{block}.mlp.c_proj.bias': (1024,),
    f'{block}.ln_2.bias': (1024,),
  }
  assert {name: shapes.get(name) for name in expected} == expected


def test_openai_to_ours_to_transformers_and_back_is_exact(tiny):
  first = export(by_path(tiny.params), TINY, 'openai')
  params = restore(first, TINY, 'openai')
  middle = export(params, TINY, 'transformers')
  again = restore(middle, TINY, 'transformers')
  last = export(again, TINY, 'openai')
  assert first.keys() == last.keys()
  for name in first:
    np.testing.assert_array_equal(first[name], last[name], err_msg=name)
  for path, param in by_path(tiny.params).items():
    np.testing.assert_array_equal(param, params[path], err_msg=path)


@pytest.mark.parametrize('layout', LAYOUTS)
def test_settings_are_read_from_shapes(tiny, full, layout):
  state = export(by_path(tiny.params), TINY, layout)
  shapes = {name: tensor.shape for name, tensor in state.items()}
  assert clip.settings_from_shapes(shapes, layout) == TINY
  shapes = shapes_by_name(full, layout)
  assert clip.settings_from_shapes(shapes, layout) == VIT_L_14


@pytest.mark.parametrize('width, heads', [(32, 1), (63, 1), (130, 2)])
def test_heads_of_a_narrow_encoder_are_at_least_one(tiny, width, heads):
  state = export(by_path(tiny.params), TINY, 'openai')
  shapes = {name: tensor.shape for name, tensor in state.items()}
  shapes['conv1.weight'] = (width, 3, 4, 4)
  settings = clip.settings_from_shapes(shapes, 'openai')
  assert settings['num_heads'] == heads
  shapes['conv1.weight'] = (200, 3, 4, 4)
  with pytest.raises(ValueError, match='3 heads do not divide the width 200'):
    clip.settings_from_shapes(shapes, 'openai')


@pytest.mark.parametrize('layout', LAYOUTS)
def test_settings_of_another_network_are_refused(layout):
  with pytest.raises(ValueError, match='no tensor .* of a CLIP image encoder'):
    clip.settings_from_shapes({'conv_in.weight': (320, 4, 3, 3)}, layout)


def test_config_of_transformers_is_read_back():
  config = clip.transformers_config(TINY)
  config = transformers.CLIPVisionConfig.from_dict(config).to_dict()
  assert clip.settings_from_transformers(config) == TINY
  assert clip.settings_from_transformers(clip.transformers_config(TINY)) == TINY
  with pytest.raises(ValueError, match='quick_gelu'):
    clip.settings_from_transformers({**config, 'hidden_act': 'gelu'})
  del config['patch_size']
  with pytest.raises(ValueError, match='patch_size'):
    clip.settings_from_transformers(config)
