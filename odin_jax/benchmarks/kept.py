"""Predictions that outlive a process which is stopped before its figures.

A batch is kept in a file of its own, named by the digest of what it was
predicted from: sources, poses, fields of view, depths and seeds. What else its
pixels depend on (weights, sampler, code, devices) is the same for all files of
the folder and stands in `request.json`; of another request nothing is taken.
"""

import hashlib
import json
import os
import pathlib
import shutil
from typing import Any, Mapping
import zipfile

from absl import logging
from jaxtyping import Float32, Int
import numpy as np

from odin_jax.shared import digests, files, posed_pair

Prediction = Float32[np.ndarray, 'b s s 3']

_REQUEST = 'request.json'


class Kept:
  """The batches that were predicted for a request.

  Args:
    folder: of the files; begun anew where it is of another request.
    depends_on: what decides the predictions, besides what each is given.
  """

  def __init__(self, folder: pathlib.Path, depends_on: Mapping[str, Any]):
    self._folder = folder
    request = json.dumps(dict(depends_on), sort_keys=True)
    content = {'sha256': hashlib.sha256(request.encode()).hexdigest()}
    if _read(folder / _REQUEST) != content:
      discard(folder)
    folder.mkdir(exist_ok=True)
    files.write_json(folder / _REQUEST, content)
    if count := len(list(folder.glob('[!.]*.npz'))):
      logging.info('%s: batches that are predicted: %d; goes on', folder, count)

  def find(
    self, pairs: posed_pair.PosedPair, seeds: Int[np.ndarray, 'b']
  ) -> Prediction | None:
    """What was predicted before; None where nothing was."""
    path = self._path(pairs, seeds)
    try:
      with np.load(path) as file:
        return file['views']
    except FileNotFoundError:
      pass
    # Its checksum is wrong, or it is no such file.
    except (zipfile.BadZipFile, ValueError, KeyError, EOFError):
      logging.warning('%s: damaged; predicted again', path)
    return None

  def keep(
    self,
    pairs: posed_pair.PosedPair,
    seeds: Int[np.ndarray, 'b'],
    views: Prediction,
  ) -> None:
    """Keeps what was predicted."""
    path = self._path(pairs, seeds)
    with files.atomic_path(path) as temporary, open(temporary, 'wb') as file:
      np.savez(file, views=views)
      file.flush()
      os.fsync(file.fileno())

  def forget(self) -> None:
    """Removes what is kept: the figures are written."""
    shutil.rmtree(self._folder)

  def _path(
    self, pairs: posed_pair.PosedPair, seeds: Int[np.ndarray, 'b']
  ) -> pathlib.Path:
    return self._folder / f'{digests.of_arrays([*pairs, seeds])}.npz'


def discard(folder: pathlib.Path) -> None:
  """Removes what another evaluation has kept, if there is any, and says so."""
  if folder.exists():
    logging.warning(
      '%s: what another evaluation left unfinished here is removed', folder
    )
    shutil.rmtree(folder)


def _read(path: pathlib.Path) -> Any:
  """The JSON of a file; None where there is none."""
  try:
    return json.loads(path.read_text())
  except (OSError, ValueError):
    return None
