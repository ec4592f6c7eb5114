"""Names of the KL autoencoder's tensors in diffusers and latent diffusion.

`diffusers` is `AutoencoderKL` of huggingface/diffusers, `ldm` is the class of
that name in CompVis/latent-diffusion (`ldm/models/autoencoder.py`), without
the prefix `first_stage_model.` of whole checkpoints.
"""

import re
from typing import Any, Mapping, NamedTuple

from odin_jax.porting import tensors

# The arguments of `odin_jax.models.vae.AutoencoderKL` and `scale`.
Settings = Mapping[str, Any]


class Names(NamedTuple):
  """How a layout names modules.

  Templates may use `side` (encoder or decoder), `block` and `ordinal` (block
  + 1), and `level`, which counts in the order of computation, and `reverse`,
  which counts the other way.
  """

  down: str
  downsample: str
  up: str
  upsample: str
  middle: str
  attention: str
  norm_out: str
  skip: str
  # Children of the attention, and the layout of its linear layers.
  attention_norm: str
  projections: Mapping[str, str]
  projection_layout: str


LAYOUTS = {
  'diffusers': Names(
    down='encoder.down_blocks.{level}.resnets.{block}',
    downsample='encoder.down_blocks.{level}.downsamplers.0.conv',
    up='decoder.up_blocks.{level}.resnets.{block}',
    upsample='decoder.up_blocks.{level}.upsamplers.0.conv',
    middle='{side}.mid_block.resnets.{block}',
    attention='{side}.mid_block.attentions.0',
    norm_out='{side}.conv_norm_out',
    skip='conv_shortcut',
    attention_norm='group_norm',
    projections={
      'to_q': 'to_q',
      'to_k': 'to_k',
      'to_v': 'to_v',
      'to_out': 'to_out.0',
    },
    projection_layout='linear',
  ),
  'ldm': Names(
    down='encoder.down.{level}.block.{block}',
    downsample='encoder.down.{level}.downsample.conv',
    up='decoder.up.{reverse}.block.{block}',
    upsample='decoder.up.{reverse}.upsample.conv',
    middle='{side}.mid.block_{ordinal}',
    attention='{side}.mid.attn_1',
    norm_out='{side}.norm_out',
    skip='nin_shortcut',
    attention_norm='norm',
    projections={'to_q': 'q', 'to_k': 'k', 'to_v': 'v', 'to_out': 'proj_out'},
    projection_layout='pointwise',
  ),
}

# What old versions of diffusers called the attention's layers.
_LEGACY = {
  'query': 'to_q',
  'key': 'to_k',
  'value': 'to_v',
  'proj_attn': 'to_out.0',
}


def renamed_legacy(name: str) -> str:
  """Today's name of a tensor of a diffusers checkpoint of any age."""
  return re.sub(
    r'(\.attentions\.\d+\.)(query|key|value|proj_attn)(?=\.)',
    lambda match: match[1] + _LEGACY[match[2]],
    name,
  )


def _residual(
  path: str, name: str, names: Names, inputs: int, outputs: int
) -> list[tensors.Entry]:
  rows = [
    *tensors.norm(f'{path}/norm1', f'{name}.norm1'),
    *tensors.layer(f'{path}/conv1', f'{name}.conv1', 'conv'),
    *tensors.norm(f'{path}/norm2', f'{name}.norm2'),
    *tensors.layer(f'{path}/conv2', f'{name}.conv2', 'conv'),
  ]
  if inputs != outputs:
    rows += tensors.layer(f'{path}/skip', f'{name}.{names.skip}', 'conv')
  return rows


def _middle(side: str, names: Names, width: int) -> list[tensors.Entry]:
  path = f'{side}/middle'
  rows = []
  for block in range(2):
    name = names.middle.format(side=side, block=block, ordinal=block + 1)
    rows += _residual(f'{path}/residual/{block}', name, names, width, width)
  path, name = f'{path}/attention', names.attention.format(side=side)
  rows += tensors.norm(f'{path}/norm', f'{name}.{names.attention_norm}')
  for leaf, child in names.projections.items():
    rows += tensors.layer(
      f'{path}/{leaf}', f'{name}.{child}', names.projection_layout
    )
  return rows


def _levels(
  path: str,
  resample_path: str,
  names: Names,
  widths: list[int],
  blocks: int,
) -> list[tensors.Entry]:
  """Rows of one side's levels.

  Args:
    path: of the levels: `encoder/down` or `decoder/up`.
    resample_path: of the layers between levels.
    names: of the layout.
    widths: of the input and of each level, in the order of computation.
    blocks: per level.
  """
  down = path.endswith('down')
  residual = names.down if down else names.up
  resample = names.downsample if down else names.upsample
  last = len(widths) - 2
  rows = []
  for level, width in enumerate(widths[1:]):
    where = dict(level=level, reverse=last - level)
    for block in range(blocks):
      rows += _residual(
        f'{path}/{level}/{block}',
        residual.format(block=block, **where),
        names,
        width if block else widths[level],
        width,
      )
    if level < last:
      rows += tensors.layer(
        f'{resample_path}/{level}', resample.format(**where), 'conv'
      )
  return rows


def entries(settings: Settings, layout: str) -> list[tensors.Entry]:
  """One row for every parameter of the autoencoder of these settings.

  Args:
    settings: `base_channels`, `channel_mult` and `num_res_blocks` are read.
    layout: a key of `LAYOUTS`.
  """
  names = LAYOUTS[layout]
  base, blocks = settings['base_channels'], settings['num_res_blocks']
  widths = [base * mult for mult in settings['channel_mult']]
  rows = [
    *_levels(
      'encoder/down', 'encoder/downsample', names, [base, *widths], blocks
    ),
    *_levels(
      'decoder/up',
      'decoder/upsample',
      names,
      [widths[-1], *widths[::-1]],
      blocks + 1,
    ),
    *tensors.layer('quant_conv', 'quant_conv', 'conv'),
    *tensors.layer('post_quant_conv', 'post_quant_conv', 'conv'),
  ]
  for side in ('encoder', 'decoder'):
    rows += tensors.layer(f'{side}/conv_in', f'{side}.conv_in', 'conv')
    rows += _middle(side, names, widths[-1])
    rows += tensors.norm(f'{side}/norm_out', names.norm_out.format(side=side))
    rows += tensors.layer(f'{side}/conv_out', f'{side}.conv_out', 'conv')
  return rows


def settings_from_shapes(
  shapes: Mapping[str, tuple[int, ...]],
  layout: str,
  *,
  num_groups: int,
  scale: float,
) -> dict[str, Any]:
  """The settings of a checkpoint, read from the shapes of its tensors.

  Args:
    shapes: of all tensors by name.
    layout: a key of `LAYOUTS`.
    num_groups: of the group normalisations; shapes do not tell.
    scale: of the latents; shapes do not tell.

  Raises:
    ValueError: this is no KL autoencoder, or one that ours cannot be.
  """
  first = 'encoder.conv_in.weight'
  for name in (first, 'quant_conv.weight', 'post_quant_conv.weight'):
    if name not in shapes:
      raise ValueError(f'no tensor {name} of a KL autoencoder')
  pattern = LAYOUTS[layout].down.replace('.', r'\.') + r'\.conv1\.weight'
  pattern = pattern.format(level=r'(\d+)', block=r'(\d+)')
  width_of = {
    (int(match[1]), int(match[2])): shape[0]
    for name, shape in shapes.items()
    if (match := re.fullmatch(pattern, name))
  }
  levels = 1 + max((level for level, _ in width_of), default=-1)
  blocks = 1 + max((block for _, block in width_of), default=-1)
  expected = {(i, j) for i in range(levels) for j in range(blocks)}
  if not expected or set(width_of) != expected:
    raise ValueError(
      f'residual blocks of the encoder are {sorted(width_of)}, '
      'not the same number at every level'
    )
  base = shapes[first][0]
  latent_channels = shapes['post_quant_conv.weight'][0]
  if shapes['quant_conv.weight'][0] != 2 * latent_channels:
    raise ValueError(
      f'quant_conv has {shapes["quant_conv.weight"][0]} outputs, '
      f'not a mean and a log variance of {latent_channels} channels'
    )
  return _settings(
    base_channels=base,
    widths=[width_of[level, 0] for level in range(levels)],
    num_res_blocks=blocks,
    latent_channels=latent_channels,
    num_groups=num_groups,
    scale=scale,
  )


def _settings(
  *, base_channels: int, widths: list[int], num_groups: int, **rest: Any
) -> dict[str, Any]:
  for width in widths:
    if width % base_channels:
      raise ValueError(f'width {width} is no multiple of {base_channels}')
  if base_channels % num_groups:
    raise ValueError(
      f'{num_groups} groups do not divide {base_channels} channels'
    )
  return dict(
    base_channels=base_channels,
    channel_mult=tuple(width // base_channels for width in widths),
    num_groups=num_groups,
    **rest,
  )


_CLASS = 'AutoencoderKL'
# Fields of diffusers' config that ours cannot change, and their defaults there.
_FIXED = dict(
  in_channels=3,
  out_channels=3,
  act_fn='silu',
  shift_factor=None,
  latents_mean=None,
  latents_std=None,
  use_quant_conv=True,
  use_post_quant_conv=True,
  mid_block_add_attention=True,
)
# Fields that ours reads, and their defaults there.
_READ = dict(
  layers_per_block=1,
  latent_channels=4,
  norm_num_groups=32,
)
# Fields that do not change what the network computes.
_FREE = ('sample_size', 'force_upcast')


def _block_types(levels: int) -> dict[str, list[str]]:
  return dict(
    down_block_types=['DownEncoderBlock2D'] * levels,
    up_block_types=['UpDecoderBlock2D'] * levels,
  )


def diffusers_config(settings: Settings) -> dict[str, Any]:
  """The `config.json` of diffusers' AutoencoderKL of these settings.

  Raises:
    ValueError: the first level is wider than the input layer, which diffusers
      cannot express; or its groups do not divide its channels.
  """
  base, mult = settings['base_channels'], settings['channel_mult']
  if mult[0] != 1:
    raise ValueError(f'channel_mult={tuple(mult)} does not start with 1')
  if base % settings['num_groups']:
    raise ValueError(
      f'diffusers cannot divide {base} channels of the autoencoder into '
      f'{settings["num_groups"]} groups'
    )
  return dict(
    _class_name=_CLASS,
    **_FIXED,
    **_block_types(len(mult)),
    block_out_channels=[base * m for m in mult],
    layers_per_block=settings['num_res_blocks'],
    latent_channels=settings['latent_channels'],
    norm_num_groups=settings['num_groups'],
    scaling_factor=settings['scale'],
    sample_size=256,
    force_upcast=True,
  )


def _check_fixed(given: Mapping[str, Any], levels: int) -> None:
  fixed = dict(_FIXED, **_block_types(levels))
  for key, value in given.items():
    if key in fixed:
      value = list(value) if isinstance(value, tuple) else value
      if value != fixed[key]:
        raise ValueError(f'{key}={value} is not supported, {fixed[key]} is')
    elif key not in (*_READ, *_FREE, 'scaling_factor'):
      raise ValueError(f'unknown field {key}={value}')


def settings_from_diffusers(
  config: Mapping[str, Any], *, scale: float
) -> dict[str, Any]:
  """The settings of a `config.json` of diffusers' AutoencoderKL.

  Args:
    config: a field that an older diffusers did not write has the default of
      today's.
    scale: Stable Diffusion's, which is that default of `scaling_factor`.

  Raises:
    ValueError: a field is unknown, missing or has a value that ours cannot be.
  """
  made_for = config.get('_class_name', _CLASS)
  if made_for != _CLASS:
    raise ValueError(f'the config is of {made_for}, not of {_CLASS}')
  given = {k: v for k, v in config.items() if not k.startswith('_')}
  widths = given.pop('block_out_channels', None)
  if not widths:
    raise ValueError('block_out_channels is missing')
  _check_fixed(given, len(widths))
  read = {key: given.get(key, default) for key, default in _READ.items()}
  return _settings(
    base_channels=widths[0],
    widths=list(widths),
    num_res_blocks=read['layers_per_block'],
    latent_channels=read['latent_channels'],
    num_groups=read['norm_num_groups'],
    scale=given.get('scaling_factor', scale),
  )
