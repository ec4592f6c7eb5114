"""Names of the U-Net's tensors in the two public layouts.

  ldm        CompVis `openaimodel.UNetModel`, which Stable Diffusion 1.x,
             Zero-1-to-3 and ZeroNVS hold under `model.diffusion_model.`; it
             numbers the blocks of all levels through.
  diffusers  `UNet2DConditionModel`, which numbers them level by level.

Widths come from the arguments of `odin_jax.models.unet.UNet`, here called the
settings; a mapping with more in it will do.
"""

from itertools import count
import re
from typing import Any, Iterator, Mapping, NamedTuple, Sequence

from odin_jax.porting import tensors

Settings = Mapping[str, Any]
Shapes = Mapping[str, tuple[int, ...]]


class Layer(NamedTuple):
  """A layer, or a part of its name: what it is, and what it is called."""

  kind: str
  path: str
  ldm: str
  diffusers: str


# Parameters of each kind of layer: ours, theirs, key of `tensors.LAYOUTS`.
_BIAS = ('bias', 'bias', 'same')
PARAMETERS = {
  'norm': (('scale', 'weight', 'same'), _BIAS),
  'conv': (('kernel', 'weight', 'conv'), _BIAS),
  'linear': (('kernel', 'weight', 'linear'), _BIAS),
  'matrix': (('kernel', 'weight', 'linear'),),
  'pointwise': (('kernel', 'weight', 'pointwise'), _BIAS),
}

INPUT = (
  Layer('linear', 'time1', 'time_embed.0', 'time_embedding.linear_1'),
  Layer('linear', 'time2', 'time_embed.2', 'time_embedding.linear_2'),
  Layer('conv', 'conv_in', 'input_blocks.0.0', 'conv_in'),
)
OUTPUT = (
  Layer('norm', 'norm_out', 'out.0', 'conv_norm_out'),
  Layer('conv', 'conv_out', 'out.2', 'conv_out'),
)
RESIDUAL = (
  Layer('norm', 'norm1', 'in_layers.0', 'norm1'),
  Layer('conv', 'conv1', 'in_layers.2', 'conv1'),
  Layer('linear', 'embed', 'emb_layers.1', 'time_emb_proj'),
  Layer('norm', 'norm2', 'out_layers.0', 'norm2'),
  Layer('conv', 'conv2', 'out_layers.3', 'conv2'),
)
SKIP = (Layer('conv', 'skip', 'skip_connection', 'conv_shortcut'),)
# Both layouts name a transformer's layers alike: kind, ours, theirs.
PROJECTIONS = (
  ('norm', 'norm', 'norm'),
  ('pointwise', 'project_in', 'proj_in'),
  ('pointwise', 'project_out', 'proj_out'),
)
TRANSFORMER_BLOCK = (
  ('norm', 'norm1', 'norm1'),
  ('matrix', 'self_attention/to_q', 'attn1.to_q'),
  ('matrix', 'self_attention/to_k', 'attn1.to_k'),
  ('matrix', 'self_attention/to_v', 'attn1.to_v'),
  ('linear', 'self_attention/to_out', 'attn1.to_out.0'),
  ('norm', 'norm2', 'norm2'),
  ('matrix', 'cross_attention/to_q', 'attn2.to_q'),
  ('matrix', 'cross_attention/to_k', 'attn2.to_k'),
  ('matrix', 'cross_attention/to_v', 'attn2.to_v'),
  ('linear', 'cross_attention/to_out', 'attn2.to_out.0'),
  ('norm', 'norm3', 'norm3'),
  ('linear', 'feedforward/project', 'ff.net.0.proj'),
  ('linear', 'feedforward/out', 'ff.net.2'),
)

# What is counted to find the number of levels, and of residual blocks on the
# way down.
DOWNSAMPLES = {
  'ldm': r'input_blocks\.\d+\.0\.op\.weight',
  'diffusers': r'down_blocks\.\d+\.downsamplers\.0\.conv\.weight',
}
DOWN_CONVOLUTIONS = {
  'ldm': r'input_blocks\.\d+\.0\.in_layers\.2\.weight',
  'diffusers': r'down_blocks\.\d+\.resnets\.\d+\.conv1\.weight',
}
MIDDLE_TRANSFORMER_BLOCKS = {
  'ldm': r'middle_block\.1\.transformer_blocks\.\d+\.norm1\.weight',
  'diffusers': r'mid_block\.attentions\.0\.transformer_blocks\.\d+'
  r'\.norm1\.weight',
}

# Arguments of diffusers' class with one supported value, which is also their
# default. Those that are in no table here must be off: null, false or 0.
FIXED = {
  'act_fn': 'silu',
  'addition_embed_type_num_heads': 64,
  'attention_type': 'default',
  'conv_in_kernel': 3,
  'conv_out_kernel': 3,
  'downsample_padding': 1,
  'flip_sin_to_cos': True,
  'mid_block_scale_factor': 1,
  'mid_block_type': 'UNetMidBlock2DCrossAttn',
  'norm_eps': 1e-5,
  'resnet_out_scale_factor': 1,
  'resnet_time_scale_shift': 'default',
  'time_embedding_type': 'positional',
}
# Ours by theirs, where the value is the same.
RENAMED = {
  'in_channels': 'in_channels',
  'out_channels': 'out_channels',
  'layers_per_block': 'num_res_blocks',
  'transformer_layers_per_block': 'transformer_depth',
  'attention_head_dim': 'num_heads',
  'cross_attention_dim': 'context_dim',
  'norm_num_groups': 'num_groups',
}
# Files older than the argument lack it.
OPTIONAL = {'transformer_layers_per_block': 1}
DERIVED = ('block_out_channels', 'down_block_types', 'up_block_types')
# The side of a latent is not the network's; the precision of a softmax is not
# a choice here. Neither changes the function.
IGNORED = ('sample_size', 'upcast_attention')
DOWN_BLOCKS = ('DownBlock2D', 'CrossAttnDownBlock2D')
UP_BLOCKS = ('UpBlock2D', 'CrossAttnUpBlock2D')
# Not an argument there.
FEEDFORWARD_FACTOR = 4


def entries(settings: Settings, layout: str) -> list[tensors.Entry]:
  """One row per parameter of the U-Net, 686 for Stable Diffusion 1.x.

  Our last convolution has one output more than theirs, the motion mask's;
  its rows here are of the tensor that both have.

  Args:
    settings: arguments of `odin_jax.models.unet.UNet`.
    layout: 'ldm' or 'diffusers'; names are without a prefix.
  """
  return [
    tensors.Entry(
      f'{layer.path}/{leaf}', f'{getattr(layer, layout)}.{name}', layout_key
    )
    for layer in _layers(settings)
    for leaf, name, layout_key in PARAMETERS[layer.kind]
  ]


def _layers(settings: Settings) -> Iterator[Layer]:
  yield from INPUT
  yield from _down(settings)
  depth = settings['transformer_depth']
  yield from _block('middle', 'middle_block', 'mid_block', 0, depth=depth)
  yield from _inside(
    'middle/1/residual', 'middle_block.2', 'mid_block.resnets.1', RESIDUAL
  )
  yield from _up(settings)
  yield from OUTPUT


def _down(settings: Settings) -> Iterator[Layer]:
  number = count(1)
  inputs = 1
  last = len(settings['channel_mult']) - 1
  for level, outputs in enumerate(settings['channel_mult']):
    diffusers = f'down_blocks.{level}'
    for index in range(settings['num_res_blocks']):
      yield from _block(
        f'down/{level}',
        f'input_blocks.{next(number)}',
        diffusers,
        index,
        depth=_depth(settings, level),
        skip=inputs != outputs,
      )
      inputs = outputs
    if level < last:
      yield Layer(
        'conv',
        f'downsample/{level}',
        f'input_blocks.{next(number)}.0.op',
        f'{diffusers}.downsamplers.0.conv',
      )


def _up(settings: Settings) -> Iterator[Layer]:
  number = count()
  last = len(settings['channel_mult']) - 1
  for index in range(last + 1):
    diffusers = f'up_blocks.{index}'
    depth = _depth(settings, last - index)
    for block in range(settings['num_res_blocks'] + 1):
      ldm = f'output_blocks.{next(number)}'
      # Every block takes a skip in, so all are wider on that side.
      yield from _block(
        f'up/{index}', ldm, diffusers, block, depth=depth, skip=True
      )
    if index < last:
      yield Layer(
        'conv',
        f'upsample/{index}',
        f'{ldm}.{2 if depth else 1}.conv',
        f'{diffusers}.upsamplers.0.conv',
      )


def _depth(settings: Settings, level: int) -> int:
  attends = level in settings['attention_levels']
  return settings['transformer_depth'] if attends else 0


def _block(
  path: str,
  ldm: str,
  diffusers: str,
  index: int,
  *,
  depth: int,
  skip: bool = False,
) -> Iterator[Layer]:
  """Layers of a residual block and of its transformer, none for depth 0."""
  yield from _inside(
    f'{path}/{index}/residual',
    f'{ldm}.0',
    f'{diffusers}.resnets.{index}',
    RESIDUAL + (SKIP if skip else ()),
  )
  yield from _inside(
    f'{path}/{index}/attention',
    f'{ldm}.1',
    f'{diffusers}.attentions.{index}',
    _transformer(depth) if depth else (),
  )


def _transformer(depth: int) -> list[Layer]:
  rows = list(PROJECTIONS) + [
    (kind, f'blocks/{index}/{path}', f'transformer_blocks.{index}.{name}')
    for index in range(depth)
    for kind, path, name in TRANSFORMER_BLOCK
  ]
  return [Layer(kind, path, name, name) for kind, path, name in rows]


def _inside(
  path: str, ldm: str, diffusers: str, layers: Sequence[Layer]
) -> Iterator[Layer]:
  for layer in layers:
    yield Layer(
      layer.kind,
      f'{path}/{layer.path}',
      f'{ldm}.{layer.ldm}',
      f'{diffusers}.{layer.diffusers}',
    )


def settings_from_shapes(
  shapes: Shapes, layout: str, *, num_heads: int, num_groups: int
) -> dict[str, Any]:
  """Arguments of the `UNet` that a checkpoint's tensors belong to.

  Args:
    shapes: by name without a prefix; others may be among them.
    layout: 'ldm' or 'diffusers'.
    num_heads: of attention; no shape depends on it.
    num_groups: of group normalisation; no shape depends on it.

  Returns:
    All arguments but `rngs`, `dtype` and `remat`.

  Raises:
    ValueError: a tensor that every such network has is missing; levels differ
      in the number of their blocks; or a width is no multiple of the first.
  """

  def matches(pattern: str) -> int:
    return sum(re.fullmatch(pattern, name) is not None for name in shapes)

  levels = matches(DOWNSAMPLES[layout]) + 1
  num_res_blocks, uneven = divmod(matches(DOWN_CONVOLUTIONS[layout]), levels)
  if uneven:
    raise ValueError(
      f'not a U-Net in the {layout} layout: residual blocks of its {levels} '
      'levels differ in number'
    )
  settings = dict(
    channel_mult=range(levels),
    num_res_blocks=num_res_blocks,
    attention_levels=range(levels),
    transformer_depth=matches(MIDDLE_TRANSFORMER_BLOCKS[layout]),
  )
  names = {entry.path: entry.name for entry in entries(settings, layout)}

  def shape(path: str) -> tuple[int, ...]:
    name = names.get(path, path)
    if name not in shapes:
      raise ValueError(f'not a U-Net in the {layout} layout: no {name!r}')
    return tuple(shapes[name])

  model_channels, in_channels = shape('conv_in/kernel')[:2]
  widths = [
    shape(f'down/{level}/0/residual/conv1/kernel')[0] for level in range(levels)
  ]
  if any(width % model_channels for width in widths):
    raise ValueError(f'widths {widths} are no multiples of {model_channels}')
  block = 'middle/0/attention/blocks/0'
  width, hidden = shape(f'{block}/feedforward/out/kernel')[:2]
  return settings | dict(
    in_channels=in_channels,
    out_channels=shape('conv_out/kernel')[0],
    model_channels=model_channels,
    channel_mult=tuple(width // model_channels for width in widths),
    attention_levels=tuple(
      level
      for level in range(levels)
      if names[f'down/{level}/0/attention/norm/scale'] in shapes
    ),
    num_heads=num_heads,
    context_dim=shape(f'{block}/cross_attention/to_k/kernel')[1],
    num_groups=num_groups,
    feedforward_factor=hidden // width,
  )


def diffusers_config(settings: Settings, *, sample_size: int) -> dict[str, Any]:
  """What `diffusers.UNet2DConditionModel.from_config` builds the network from.

  As in the files of Stable Diffusion 1.x, `attention_head_dim` is the number
  of heads (https://github.com/huggingface/diffusers/issues/2011).

  Args:
    settings: arguments of `odin_jax.models.unet.UNet`; out_channels is that
      of the tensor to be loaded.
    sample_size: side of the latents, px.

  Raises:
    ValueError: diffusers cannot have the settings.
  """
  if settings['channel_mult'][0] != 1:
    raise ValueError('diffusers has no first level that is not 1 wide')
  if settings['feedforward_factor'] != FEEDFORWARD_FACTOR:
    raise ValueError(
      'diffusers has no feed-forward factor but '
      f'{FEEDFORWARD_FACTOR}: {settings["feedforward_factor"]}'
    )
  _check_divisions(settings)
  return _config(settings, sample_size)


def _config(settings: Settings, sample_size: int) -> dict[str, Any]:
  widths, attends = _levels(settings)
  return {
    '_class_name': 'UNet2DConditionModel',
    'sample_size': sample_size,
    'block_out_channels': widths,
    'down_block_types': [DOWN_BLOCKS[attend] for attend in attends],
    'up_block_types': [UP_BLOCKS[attend] for attend in reversed(attends)],
    **{field: settings[setting] for field, setting in RENAMED.items()},
    **FIXED,
  }


def _levels(settings: Settings) -> tuple[list[int], list[bool]]:
  """Width of every level, and whether it has transformers."""
  widths = [settings['model_channels'] * m for m in settings['channel_mult']]
  attends = [
    level in settings['attention_levels'] for level in range(len(widths))
  ]
  return widths, attends


def _check_divisions(settings: Settings) -> None:
  """Raises ValueError for channels or blocks that diffusers cannot have."""
  groups, heads = settings['num_groups'], settings['num_heads']
  widths, attends = _levels(settings)
  # The middle always attends.
  attending = {w for w, attend in zip(widths, attends, strict=True) if attend}
  attending.add(widths[-1])
  for name, parts, divided in (
    ('groups', groups, set(widths)),
    ('heads of attention', heads, attending),
  ):
    odd = sorted(width for width in divided if width % parts)
    if odd:
      raise ValueError(
        f'diffusers cannot divide {", ".join(map(str, odd))} channels into '
        f'{parts} {name}'
      )
  for name in ('num_res_blocks', 'transformer_depth'):
    if settings[name] < 1:
      raise ValueError(f'diffusers has no U-Net of {name}={settings[name]}')


def settings_from_diffusers(config: Mapping[str, Any]) -> dict[str, Any]:
  """Arguments of the `UNet` that a `config.json` of diffusers describes.

  Args:
    config: of a `UNet2DConditionModel`.

  Returns:
    All arguments but `rngs`, `dtype` and `remat`.

  Raises:
    ValueError: an argument is missing; or the network is another one: named
      is every argument that says so.
  """
  config = OPTIONAL | config
  missing = [name for name in (*RENAMED, *DERIVED) if name not in config]
  if missing:
    raise ValueError(f'the config of the U-Net lacks {", ".join(missing)}')
  widths = config['block_out_channels']
  settings = {
    setting: config[field] for field, setting in RENAMED.items()
  } | dict(
    model_channels=widths[0],
    channel_mult=tuple(width // widths[0] for width in widths),
    attention_levels=tuple(
      level
      for level, block in enumerate(config['down_block_types'])
      if block == DOWN_BLOCKS[True]
    ),
    feedforward_factor=FEEDFORWARD_FACTOR,
  )
  # What our arguments cannot say does not come back out of them.
  expected = _config(settings, sample_size=0)
  unsupported = [
    f'{name}={value!r}'
    for name, value in config.items()
    if not (name.startswith('_') or name in IGNORED)
    and not _is_supported(name, value, expected)
  ]
  if unsupported:
    raise ValueError(f'unsupported by this U-Net: {", ".join(unsupported)}')
  return settings


def _is_supported(name: str, value: Any, expected: Mapping[str, Any]) -> bool:
  if name in RENAMED:
    return isinstance(value, int)
  if name in DERIVED:
    return list(value) == expected[name]
  return value == expected[name] if name in expected else not value
