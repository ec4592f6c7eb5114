"""The checkpoint that comes with the project, in `odin_jax/pretrained`.

`multisphere.safetensors` holds the moving averages of the parameters in
bfloat16 and the arrays of the encoders in float32, under their slash-separated
paths: `params/unet/conv_in/kernel`, `encoders/autoencoder/mean`. What is known
of them is in `multisphere.json`:

  step           of training
  config         of training, all of it
  training       the command
  data           the worlds that it has seen: command, seed, number, settings
  started_from   what an earlier one says of all this, if it started from one
  figures        what it reached; written by hand
  licence        of the weights
  sha256         of the file of weights, checked when they are read
  config_sha256  of the config, checked likewise

The word `pretrained` in the place of a workdir means it
(`odin_jax.shared.workdirs`).
"""

import functools
import hashlib
import itertools
import os
import pathlib
from typing import Any, Iterator, Mapping

import jax
import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from odin_jax import sharding
from odin_jax.checkpoints import checksums
from odin_jax.models import encoders
from odin_jax.shared import errors, files, workdirs

FOLDER = pathlib.Path(__file__).resolve().parents[1] / 'pretrained'
WEIGHTS = 'multisphere.safetensors'
NOTE = 'multisphere.json'
# Field of the config of a run that started from it, or from a run that did, and
# so on: which one it was then.
INIT_SHA256 = 'init_sha256'
LICENCE = (
  "Apache-2.0, as the project; all training data are the project's own "
  'procedural worlds'
)
_WHAT = 'the checkpoint that comes with the project'
_AGAIN = 'get the project again, or make the file with odin_jax.port_weights'
_KEYS = ('step', 'config', 'data', 'sha256', 'config_sha256')
_ORIGIN = ('step', 'config', 'training', 'data', 'sha256', 'started_from')
_DTYPES = {'BF16': ml_dtypes.bfloat16, 'F32': np.float32}
_PARAMS, _ENCODERS = 'params', 'encoders'


# -- Reading -------------------------------------------------------------------


def read_note() -> dict[str, Any]:
  """What is known of the checkpoint, see above; the weights are not read.

  Raises:
    errors.UserError: it is not there, or damaged.
  """
  path = FOLDER / NOTE
  note = files.read_json(path, _WHAT, _KEYS)
  if checksums.config_sha256(note['config']) != note['config_sha256']:
    raise errors.UserError(
      f'{path}: its config is not as it was written; {_AGAIN}'
    )
  return note


def origin(sha256: str | None) -> dict[str, Any]:
  """What another checkpoint that started from this one says of it.

  Args:
    sha256: of the one that it started from; None where that was not noted.

  Raises:
    errors.UserError: see `read_note`; it started from another one.
  """
  note = read_note()
  if sha256 not in (None, note['sha256']):
    raise errors.UserError(
      f'{FOLDER / NOTE}: is not of the checkpoint that the run started from, '
      f'whose SHA-256 is {sha256}; get the version of the project that has it'
    )
  return {name: note[name] for name in _ORIGIN if name in note}


def _lineage() -> Iterator[Mapping[str, Any]]:
  """What is known of the checkpoint, then of the one it started from, ..."""
  note = read_note()
  while note is not None:
    yield note
    note = note.get('started_from')


def init_sha256(
  workdir: str | os.PathLike[str], config: Mapping[str, Any]
) -> str | None:
  """Digest of the weights of this checkpoint that a model came from.

  Args:
    workdir: of the model, or the word for the checkpoint itself.
    config: of its checkpoint.

  Returns:
    None of a run of which none is known, at whatever remove.

  Raises:
    errors.UserError: see `read_note`.
  """
  if workdirs.is_pretrained(workdir):
    return read_note()['sha256']
  return config.get(INIT_SHA256)


def seeds(
  workdir: str | os.PathLike[str], config: Mapping[str, Any]
) -> list[int]:
  """Seeds of the worlds that a model has seen by way of this checkpoint.

  Args:
    workdir: of the model, or the word for the checkpoint itself.
    config: of its checkpoint.

  Returns:
    none of a run that did not start from it, or from a version that is not
    known here.

  Raises:
    errors.UserError: see `read_note`.
  """
  sha256 = init_sha256(workdir, config)
  if sha256 is None:
    return []
  # The run may have started from what this one started from itself.
  seen = itertools.dropwhile(lambda note: note['sha256'] != sha256, _lineage())
  return sorted({note['data']['seed'] for note in seen})


class Pretrained:
  """The checkpoint, read as `checkpoint.Checkpoints` are.

  Raises:
    errors.UserError: it is not there, or damaged.
  """

  def __init__(self) -> None:
    self._note = read_note()

  def latest(self) -> int:
    """The step that it is of."""
    return self._note['step']

  def steps(self) -> list[int]:
    """All steps there are."""
    return [self.latest()]

  def seal(self, step: int) -> dict[str, str]:
    """The digests of its files."""
    del step
    return {name: self._note[name] for name in ('sha256', 'config_sha256')}

  def config(self, step: int) -> dict[str, Any]:
    """The config that it was trained by."""
    del step
    return self._note['config']

  def restore_params(
    self, step: int, name: str, abstract_params: Any, params_shardings: Any
  ) -> Any:
    """The parameters, straight into their shards.

    Args:
      step: of `latest`.
      name: `ema`; it has no others.
      abstract_params: their shapes and types.
      params_shardings: where each goes.

    Raises:
      errors.UserError: others are asked for, or they are damaged.
    """
    del step
    if name != 'ema':
      raise errors.UserError(
        f'{FOLDER / WEIGHTS}: has moving averages of the parameters alone; '
        'leave out --noema or --config.ema=False'
      )
    return self._restore(_PARAMS, abstract_params, params_shardings)

  def restore_encoders(
    self,
    step: int,
    config: Mapping[str, Any],
    where: Any,
  ) -> encoders.Encoders:
    """The encoders, in one sharding or in a tree of them.

    Args:
      step: of `latest`.
      config: of the model; read are the sections of the encoders.
      where: they go.

    Raises:
      errors.UserError: they are damaged, or of another config.
    """
    del step
    shapes = encoders.abstract(config)
    return self._restore(_ENCODERS, shapes, jax.tree.broadcast(where, shapes))

  def close(self) -> None:
    """Nothing is open."""

  @functools.cached_property
  def _arrays(self) -> dict[str, np.ndarray]:
    """All arrays by name, once they are known to be those that were written."""
    path = FOLDER / WEIGHTS
    content = files.require_file(path, _WHAT).read_bytes()
    if hashlib.sha256(content).hexdigest() != self._note['sha256']:
      raise errors.UserError(
        f'{path}: damaged: its SHA-256 is not that of {NOTE}; {_AGAIN}'
      )
    return {
      name: np.frombuffer(tensor['data'], _DTYPES[tensor['dtype']]).reshape(
        tensor['shape']
      )
      for name, tensor in safetensors.deserialize(content)
    }

  def _restore(self, part: str, abstract: Any, shardings: Any) -> Any:
    """The arrays of a part, in the types of `abstract`."""
    expected = {
      f'{part}/{name}': leaf.shape
      for name, leaf in sharding.by_path(abstract).items()
    }
    here = {
      name: array.shape
      for name, array in self._arrays.items()
      if name.startswith(f'{part}/')
    }
    if here != expected:
      unlike = sorted(dict(here.items() ^ expected.items()))
      raise errors.UserError(
        f'{FOLDER / WEIGHTS}: {unlike[0]} (and {len(unlike) - 1} more) is not '
        'as this version of the project has it; get the whole project of one '
        'version'
      )

    def place(path: Any, leaf: Any, where: Any) -> jax.Array:
      array = self._arrays[f'{part}/{sharding.path_name(path)}']
      array = array.astype(leaf.dtype)
      return jax.make_array_from_callback(
        leaf.shape, where, lambda index: array[index]
      )

    return jax.tree_util.tree_map_with_path(place, abstract, shardings)


# -- Writing -------------------------------------------------------------------


def write(
  folder: pathlib.Path,
  params: Any,
  frozen: encoders.Encoders,
  *,
  step: int,
  config: Mapping[str, Any],
  training: str,
  data: Mapping[str, Any],
  started_from: Mapping[str, Any] | None,
) -> dict[str, Any]:
  """Writes both files.

  Args:
    folder: to write into.
    params: moving averages of the parameters.
    frozen: the encoders of the run.
    step: that they are of.
    config: of the run.
    training: its command.
    data: of its records, see above.
    started_from: `origin` of the checkpoint that it started from, if any.

  Returns:
    counts for a report.
  """
  arrays = {
    f'{part}/{name}': np.asarray(leaf).astype(dtype)
    for part, tree, dtype in (
      (_PARAMS, params, ml_dtypes.bfloat16),
      (_ENCODERS, frozen, np.float32),
    )
    for name, leaf in sharding.by_path(tree).items()
  }
  # Where the run started is a path of one machine; its command tells of it.
  config = {**config, 'init': ''}
  content = safetensors.numpy.save(arrays)
  note = {
    'step': step,
    'training': training,
    'data': dict(data),
    **({} if started_from is None else {'started_from': dict(started_from)}),
    'figures': {},
    'licence': LICENCE,
    'sha256': hashlib.sha256(content).hexdigest(),
    'config_sha256': checksums.config_sha256(config),
    'config': dict(config),
  }
  # Never a note of other weights: without it nothing is read.
  (folder / NOTE).unlink(missing_ok=True)
  with files.atomic_path(folder / WEIGHTS) as temporary:
    temporary.write_bytes(content)
  files.write_json(folder / NOTE, note)
  return {
    'tensors': len(arrays),
    'parameters': sum(leaf.size for leaf in jax.tree.leaves(params)),
    'bytes': len(content),
    'sha256': note['sha256'],
  }
