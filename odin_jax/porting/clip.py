"""The image encoder's parameters in the checkpoints of others.

Two layouts hold the vision tower of CLIP (Radford et al. 2021, 2103.00020):

  transformers  `CLIPVisionModelWithProjection`;
  openai        `model.visual` of github.com/openai/CLIP, query, key and value
                fused. A Zero-1-to-3 checkpoint holds it under
                `cond_stage_model.model.visual.`, which names here leave out.

Ours is `odin_jax.models.image_encoder.ClipVision`, whose arguments are the
settings here.
"""

import re
from typing import Any, Callable, Iterator, Mapping

from odin_jax.porting import tensors

Settings = dict[str, int]
Shapes = Mapping[str, tuple[int, ...]]

# Every head of every published CLIP is this wide.
_HEAD_WIDTH = 64

# Name there of what is the same in both layouts but for its name; our path is
# the key. Layers of a block come in `_BLOCK`.
_STEMS = {
  'transformers': {
    'patch': 'vision_model.embeddings.patch_embedding',
    'class_token': 'vision_model.embeddings.class_embedding',
    'position': 'vision_model.embeddings.position_embedding.weight',
    'norm_in': 'vision_model.pre_layrnorm',
    'blocks': 'vision_model.encoder.layers',
    'norm_out': 'vision_model.post_layernorm',
  },
  'openai': {
    'patch': 'conv1',
    'class_token': 'class_embedding',
    'position': 'positional_embedding',
    'norm_in': 'ln_pre',
    'blocks': 'transformer.resblocks',
    'norm_out': 'ln_post',
  },
}
_BLOCK = {
  'transformers': {
    'norm1': 'layer_norm1',
    'attention/to_out': 'self_attn.out_proj',
    'norm2': 'layer_norm2',
    'expand': 'mlp.fc1',
    'contract': 'mlp.fc2',
  },
  'openai': {
    'norm1': 'ln_1',
    'attention/to_out': 'attn.out_proj',
    'norm2': 'ln_2',
    'expand': 'mlp.c_fc',
    'contract': 'mlp.c_proj',
  },
}
_PROJECTION = {
  'transformers': tensors.Entry(
    'projection/kernel', 'visual_projection.weight', 'linear'
  ),
  # Kept there as [in out] already.
  'openai': tensors.Entry('projection/kernel', 'proj'),
}


def _separate(path: str, name: str) -> Iterator[tensors.Entry]:
  for letter in 'qkv':
    yield from tensors.layer(
      f'{path}/attention/to_{letter}',
      f'{name}.self_attn.{letter}_proj',
      'linear',
    )


def _fused(path: str, name: str) -> Iterator[tensors.Entry]:
  for index, letter in enumerate('qkv'):
    for leaf, kind, layout in (
      ('kernel', 'weight', 'linear'),
      ('bias', 'bias', 'same'),
    ):
      yield tensors.Entry(
        f'{path}/attention/to_{letter}/{leaf}',
        f'{name}.attn.in_proj_{kind}',
        layout,
        (index, 3),
      )


_ATTENTION: dict[str, Callable[[str, str], Iterator[tensors.Entry]]] = {
  'transformers': _separate,
  'openai': _fused,
}


def entries(settings: Settings, layout: str) -> list[tensors.Entry]:
  """One row per parameter of ours.

  Args:
    settings: arguments of `ClipVision`; read is `num_layers`.
    layout: 'transformers' or 'openai'.
  """
  stems, block = _STEMS[layout], _BLOCK[layout]
  rows = [
    tensors.Entry('patch/kernel', f'{stems["patch"]}.weight', 'conv'),
    tensors.Entry('class_token', stems['class_token']),
    tensors.Entry('position', stems['position']),
    *tensors.norm('norm_in', stems['norm_in']),
    *tensors.norm('norm_out', stems['norm_out']),
    _PROJECTION[layout],
  ]
  for index in range(settings['num_layers']):
    path, name = f'blocks/{index}', f'{stems["blocks"]}.{index}'
    rows += _ATTENTION[layout](path, name)
    for layer, child in block.items():
      if layer.startswith('norm'):
        rows += tensors.norm(f'{path}/{layer}', f'{name}.{child}')
      else:
        rows += tensors.layer(f'{path}/{layer}', f'{name}.{child}', 'linear')
  return rows


def settings_from_shapes(shapes: Shapes, layout: str) -> Settings:
  """Arguments of `ClipVision` that the tensors of a checkpoint belong to.

  Args:
    shapes: of every tensor, by its name in `layout`.
    layout: 'transformers' or 'openai'.

  Raises:
    ValueError: a tensor that tells a setting is absent, or the heads, which
      no tensor tells, cannot be those of a published CLIP.
  """
  stems, block = _STEMS[layout], _BLOCK[layout]
  stem = re.escape(stems['blocks'])
  numbers = [re.match(rf'{stem}\.(\d+)\.', name) for name in shapes]
  num_layers = len({number[1] for number in numbers if number})
  projection = _PROJECTION[layout]
  try:
    width, _, patch_px, _ = shapes[f'{stems["patch"]}.weight']
    tokens, _ = shapes[stems['position']]
    hidden, _ = shapes[f'{stems["blocks"]}.0.{block["expand"]}.weight']
    outputs = shapes[projection.name]
  except KeyError as error:
    raise ValueError(
      f'no tensor {error} of a CLIP image encoder in the {layout} layout'
    ) from error
  num_heads = max(1, width // _HEAD_WIDTH)
  if width % num_heads:
    raise ValueError(f'{num_heads} heads do not divide the width {width}')
  return dict(
    width=width,
    num_layers=num_layers,
    num_heads=num_heads,
    patch_px=patch_px,
    # One token is the class's; the rest are a square of patches.
    image_size_px=round((tokens - 1) ** 0.5) * patch_px,
    projection=outputs[0 if projection.layout == 'linear' else 1],
    hidden=hidden,
  )


# Setting -> its name in the config.json of transformers.
_TRANSFORMERS_NAMES = {
  'width': 'hidden_size',
  'num_layers': 'num_hidden_layers',
  'num_heads': 'num_attention_heads',
  'patch_px': 'patch_size',
  'image_size_px': 'image_size',
  'projection': 'projection_dim',
  'hidden': 'intermediate_size',
}
# What our network is always like.
_TRANSFORMERS_FIXED = {
  'num_channels': 3,
  'hidden_act': 'quick_gelu',
  'layer_norm_eps': 1e-5,
}


def transformers_config(settings: Settings) -> dict[str, Any]:
  """The config.json of `CLIPVisionModelWithProjection`."""
  return {
    'architectures': ['CLIPVisionModelWithProjection'],
    'model_type': 'clip_vision_model',
    **{
      field: settings[setting] for setting, field in _TRANSFORMERS_NAMES.items()
    },
    **_TRANSFORMERS_FIXED,
  }


def settings_from_transformers(config: Mapping[str, Any]) -> Settings:
  """Arguments of `ClipVision` for a config.json of transformers.

  Raises:
    ValueError: the config lacks a field, or asks for what our network is not.
  """
  needed = [*_TRANSFORMERS_NAMES.values(), *_TRANSFORMERS_FIXED]
  missing = [name for name in needed if name not in config]
  if missing:
    raise ValueError(f'config of the image encoder lacks {missing}')
  for name, value in _TRANSFORMERS_FIXED.items():
    if config[name] != value:
      raise ValueError(
        f'image encoder with {name} = {config[name]!r}; only {value!r} is known'
      )
  return {
    setting: config[field] for setting, field in _TRANSFORMERS_NAMES.items()
  }
