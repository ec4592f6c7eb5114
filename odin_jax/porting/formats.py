"""The public checkpoint formats, a row each, and the folders of diffusers.

A format says under which prefix the tensors of each network are, in which
layout of `odin_jax.porting.unet`, `vae` and `clip`, and which other tensors
its files hold that nothing here needs, and why. Sources: cvlab-columbia/zero123
and kylesargent/zeronvs_diffusion `zero123/ldm/models/diffusion/ddpm.py`,
CompVis/latent-diffusion `ldm/modules/ema.py`, huggingface/diffusers;
threestudio-project/threestudio
`threestudio/models/guidance/stable_zero123_guidance.py` for Stable Zero123,
whose files differ from Zero-1-to-3's in no name and no shape: what the fourth
number of the pose means is known from the format alone.

The tensors of a folder of diffusers are named `component.name`, as if it were
one file.
"""

import pathlib
import re
from typing import Any, Mapping, NamedTuple

from odin_jax.models import conditioning
from odin_jax.porting import checkpoint_files
from odin_jax.porting import vae as vae_names
from odin_jax.shared import errors, files

# Pattern of whole names, and why tensors of these names are left out.
Ignored = tuple[tuple[str, str], ...]


class Format(NamedTuple):
  """A row of `FORMATS`.

  Attributes:
    networks: (prefix, layout) of `unet`, `autoencoder` and `image`.
    projection: prefix of the pose projection's `weight` and `bias`.
    pose: the part of the conditioning whose projection must be there; None:
      that of any part, as its size says, or none.
    averages: prefix of the moving average of the U-Net, or None.
    ignored: see `Ignored`.
    optional: those of `networks` that need not be there.
    scale: name of the tensor with the autoencoder's `scale`, in files whose
      training measured it.
  """

  networks: Mapping[str, tuple[str, str]]
  projection: str
  pose: str | None
  averages: str | None
  ignored: Ignored
  optional: tuple[str, ...] = ()
  scale: str = 'scale_factor'


# Ours, beside the tensors of any format.
MOTION_MASK = 'odin.motion_mask.'
CONDITIONING = 'odin.conditioning.'
CONFIG = 'odin.config'

_LDM = Format(
  networks={
    'unet': ('model.diffusion_model.', 'ldm'),
    'autoencoder': ('first_stage_model.', 'ldm'),
    'image': ('cond_stage_model.model.visual.', 'openai'),
  },
  projection='cc_projection.',
  pose=None,
  averages='model_ema.',
  ignored=(
    (
      r'betas|alphas_cumprod(_prev)?|lvlb_weights'
      r'|(sqrt|sqrt_one_minus|log_one_minus|sqrt_recip|sqrt_recipm1)'
      r'_alphas_cumprod'
      r'|posterior_(variance|log_variance_clipped|mean_coef[12])',
      'the noise schedule, which the config describes',
    ),
    (r'logvar', 'a weight of the loss per timestep'),
    (
      r'cond_stage_model\.model\.(positional_embedding|text_projection'
      r'|logit_scale|token_embedding\.weight|ln_final\.(weight|bias)'
      r'|transformer\..*)',
      "CLIP's text tower",
    ),
    (
      r'cond_stage_model\.(mean|std)',
      "constants of the image encoder's input",
    ),
    (
      r'first_stage_model\.loss\..*',
      'losses that the autoencoder was trained with',
    ),
    (r'model_ema\.(decay|num_updates)', 'how the moving average was made'),
  ),
)
# The folder that `EMAModel.save_pretrained` writes beside `unet`.
_EMA_UNET = 'unet_ema.'
_DIFFUSERS = Format(
  networks={
    'unet': ('unet.', 'diffusers'),
    'autoencoder': ('vae.', 'diffusers'),
    'image': ('image_encoder.', 'transformers'),
  },
  projection='projection.',
  pose=None,
  averages=_EMA_UNET,
  ignored=((r'image_encoder\..*\.position_ids', 'the numbers 0, 1, 2, ...'),),
  # The folder of a U-Net alone can be taken in and written out again.
  optional=('autoencoder', 'image'),
)
FORMATS: dict[str, Format] = {
  'zero123': _LDM._replace(pose='zero123'),
  'zeronvs': _LDM._replace(pose='zeronvs'),
  # Zero-1-to-3 was made from it; it knows of no poses.
  'sd-image-variations': _LDM,
  'diffusers': _DIFFUSERS,
  'stable-zero123': _LDM._replace(pose='stable-zero123'),
  'diffusers-stable-zero123': _DIFFUSERS._replace(pose='stable-zero123'),
}
# Parts that project a pose's vector -> its size. Of two of one size the first
# is meant where the format does not say.
WIDTHS = {
  name: part.pose_width
  for name, part in conditioning.PARTS.items()
  if part.pose_width
}
# A format that would misread the pose of the other one.
_MISREAD = {
  'zero123': 'stable-zero123',
  'diffusers': 'diffusers-stable-zero123',
}
_STABLE = re.compile(
  r'stable[\W_]*zero[\W_]*(1|one)[\W_]*(2|to|two)[\W_]*(3|three)', re.I
)
_NOT_STABLE = re.compile(r'zero123[\W_]*xl|^(105000|165000)\.', re.I)


class Source(NamedTuple):
  """A checkpoint as it was found.

  Attributes:
    tensors: by name.
    configs: of the components of diffusers: config.json by component.
    paths: of the files read.
    metadata: names that a pipeline gives itself and its components.
    only_average: whether the U-Net here is a moving average without the last
      parameters.
  """

  tensors: checkpoint_files.Tensors
  configs: dict[str, dict[str, Any]]
  paths: list[pathlib.Path]
  metadata: list[str]
  only_average: bool = False


def average_name(name: str, averages: str) -> str:
  """Where the average of a parameter is kept.

  Args:
    name: of the parameter, as its format has it.
    averages: prefix of the averages.
  """
  if averages == _EMA_UNET:
    return averages + name.removeprefix('unet.')
  # LitEma drops the dots.
  return averages + name.removeprefix('model.').replace('.', '')


def read(name: str, paths: list[pathlib.Path]) -> Source:
  """The checkpoint at `paths`.

  Args:
    name: of the format.
    paths: one file; or one or more folders of diffusers.

  Raises:
    errors.UserError: what is there is not of this format, or damaged.
  """
  if FORMATS[name].networks == _DIFFUSERS.networks:
    source = _read_folders(paths)
    _check_names(name, [*paths, *source.paths], source.metadata)
    return source
  if len(paths) > 1:
    raise errors.UserError(
      f'--source={",".join(map(str, paths))}: one file is needed'
    )
  checkpoint = checkpoint_files.read(paths[0])
  _check_names(name, checkpoint.paths, [])
  return Source(checkpoint.tensors, {}, checkpoint.paths, [])


def _check_names(
  name: str, paths: list[pathlib.Path], metadata: list[str]
) -> None:
  """Checks that no name speaks of another meaning of the pose.

  Args:
    name: of the format.
    paths: of files, and of the folders that were given.
    metadata: further names: of a pipeline and its components.

  Raises:
    errors.UserError: it is Stable Zero123's, and the format is that of
      Zero-1-to-3; or the other way round.
  """
  names = [text for path in paths for text in _names(path)]
  other = _MISREAD.get(name)
  for text in [*names, *metadata]:
    if other and _STABLE.search(text):
      raise errors.UserError(
        f'{paths[0]}: {text!r} says that it is Stable Zero123, whose fourth '
        'pose number has another meaning than that of Zero-1-to-3; give '
        f'--format={other}, or another name if it is not'
      )
  for text in names:
    if name in _MISREAD.values() and _NOT_STABLE.search(text):
      raise errors.UserError(
        f'{paths[0]}: {text!r} is a name of Zero-1-to-3, not of Stable Zero123; '
        'give --format=zero123, or another name if it is not'
      )


def _names(path: pathlib.Path) -> list[str]:
  """What a path says of what is there: its name, a model hub's among it."""
  # A file that a cache links to has its name in the link alone.
  path = path.resolve() if path.is_dir() else path
  component = [path.parent.name] if (path / 'config.json').is_file() else []
  hub = [part for part in path.parts if part.startswith('models--')]
  return [path.name, *component, *hub]


# -- Folders of diffusers ------------------------------------------------------

# Class that a component's config.json names -> prefix of its tensors here.
_COMPONENTS = {
  'UNet2DConditionModel': 'unet',
  'AutoencoderKL': 'vae',
  'CLIPVisionModelWithProjection': 'image_encoder',
  'CLIPCameraProjection': 'projection',
  'CCProjection': 'projection',
}
# Folders of a pipeline that hold nothing of these.
_OTHER_FOLDERS = (
  'feature_extractor',
  'safety_checker',
  'text_encoder',
  'tokenizer',
)
_SCHEDULER, _ODIN = 'scheduler', 'odin'
_PIPELINE = 'model_index.json'


def _note_names(config: Mapping[str, Any], source: Source) -> None:
  """Adds the class and the origin that diffusers write into a config."""
  values = [config.get(key) for key in ('_class_name', '_name_or_path')]
  source.metadata.extend(value for value in values if isinstance(value, str))


def _read_folders(paths: list[pathlib.Path]) -> Source:
  source = Source({}, {}, [], [])
  for path in paths:
    folder = files.require_folder(path, 'a folder of diffusers')
    if (folder / _PIPELINE).is_file():
      _note_names(checkpoint_files.read_json(folder / _PIPELINE), source)
    for part in _parts(folder):
      _READ_PART.get(part.name, _read_component)(part, source)
  return _without_last(source)


# What `EMAModel.save_pretrained` adds to the config of its network.
_EMA_FIELDS = (
  'decay',
  'min_decay',
  'optimization_step',
  'update_after_step',
  'use_ema_warmup',
  'inv_gamma',
  'power',
)


def _split_average(
  component: str, folder: pathlib.Path, config: dict[str, Any]
) -> tuple[str, dict[str, Any]]:
  """The component, `unet_ema` of an average, and its config without that."""
  network = {k: value for k, value in config.items() if k not in _EMA_FIELDS}
  averaged = 'optimization_step' in config or folder.name == 'unet_ema'
  if component == 'unet' and averaged:
    return _EMA_UNET.removesuffix('.'), network
  return component, config


def _without_last(source: Source) -> Source:
  """An average that comes alone takes the place of the U-Net.

  Raises:
    errors.UserError: both are there and are of different networks.
  """
  average = source.configs.pop('unet_ema', None)
  if average is None:
    return source
  if 'unet' not in source.configs:
    source.configs['unet'] = average
    tensors = {
      re.sub(f'^{re.escape(_EMA_UNET)}', 'unet.', name): tensor
      for name, tensor in source.tensors.items()
    }
    return source._replace(tensors=tensors, only_average=True)
  network = source.configs['unet']
  for name in sorted(network.keys() | average.keys()):
    if not name.startswith('_') and network.get(name) != average.get(name):
      raise errors.UserError(
        f'{source.paths[0]}: unet has {name}={network.get(name)} and its '
        f'moving average {average.get(name)}; give one of the two folders'
      )
  return source


def _parts(folder: pathlib.Path) -> list[pathlib.Path]:
  """The component that a folder is, or those of the pipeline that it is."""
  if (folder / 'config.json').is_file():
    return [folder]
  parts = sorted(
    path
    for path in folder.iterdir()
    if path.is_dir()
    and path.name not in _OTHER_FOLDERS
    and not path.name.startswith('.')
  )
  if not parts:
    raise errors.UserError(
      f'{folder}: neither a component nor a pipeline of diffusers: '
      'config.json or folders such as unet/ and vae/ are needed'
    )
  return parts


def _read_component(folder: pathlib.Path, source: Source) -> None:
  config = checkpoint_files.read_json(
    files.require_file(folder / 'config.json', 'the config of a component')
  )
  names = [config.get('_class_name'), *config.get('architectures', [])]
  components = [_COMPONENTS[name] for name in names if name in _COMPONENTS]
  if not components:
    raise errors.UserError(
      f'{folder}: a component of class {names[-1] or names[0]}; known are '
      f'{", ".join(_COMPONENTS)}; take the folder out'
    )
  component, config = _split_average(components[0], folder, config)
  if component in source.configs:
    raise errors.UserError(f'{folder}: a second {component}; give one')
  source.configs[component] = config
  _note_names(config, source)
  checkpoint = checkpoint_files.read_folder(folder)
  source.paths.extend(checkpoint.paths)
  for name, tensor in checkpoint.tensors.items():
    source.tensors[f'{component}.{_today(component, name)}'] = tensor


def _today(component: str, name: str) -> str:
  """A tensor's name as it is called here and in diffusers of today."""
  if component == 'projection':
    # The class, which no library defines, calls its one layer what it likes.
    return re.sub(r'^(proj|projection)\.', '', name)
  return vae_names.renamed_legacy(name) if component == 'vae' else name


def _read_scheduler(folder: pathlib.Path, source: Source) -> None:
  path = folder / 'scheduler_config.json'
  source.configs[_SCHEDULER] = checkpoint_files.read_json(
    files.require_file(path, 'the config of the scheduler')
  )


def _read_odin(folder: pathlib.Path, source: Source) -> None:
  source.configs[_ODIN] = checkpoint_files.read_json(
    files.require_file(folder / 'config.json', 'what port_weights wrote')
  )
  for prefix in (MOTION_MASK, CONDITIONING):
    path = folder / f'{prefix.split(".")[1]}.safetensors'
    checkpoint = checkpoint_files.read(path)
    source.paths.append(path)
    for name, tensor in checkpoint.tensors.items():
      source.tensors[prefix + name] = tensor


_READ_PART = {_SCHEDULER: _read_scheduler, _ODIN: _read_odin}
