"""Services that rows of the journal are sent to as well, for who has them.

Neither package is installed by this project; each reads its own environment
(WANDB_PROJECT, WANDB_API_KEY; MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME). The
run's name there is kept in the workdir, so that a training which goes on goes on
there, too: https://docs.wandb.ai/guides/runs/resuming,
https://mlflow.org/docs/latest/python_api/mlflow.html#mlflow.start_run.
"""

import importlib
import importlib.util
import pathlib
import secrets
from typing import Any, Mapping, Protocol, Sequence, runtime_checkable

from jaxtyping import UInt8
import numpy as np

from odin_jax.shared import errors, files

_RUNS = 'trackers.json'


@runtime_checkable
class Tracker(Protocol):
  """Takes what the journal takes."""

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """The figures of a step."""

  def picture(
    self, step: int, name: str, image: UInt8[np.ndarray, 'h w 3']
  ) -> None:
    """A picture of a step."""

  def close(self) -> None:
    """Sends what is left."""


class _Wandb:
  """A run of Weights & Biases."""

  def __init__(
    self, workdir: pathlib.Path, config: Mapping[str, Any], run_id: str | None
  ):
    self._wandb = importlib.import_module('wandb')
    self.run_id = run_id or secrets.token_hex(8)
    self._run = self._wandb.init(
      id=self.run_id,
      resume='allow',
      name=workdir.name,
      dir=str(workdir),
      config=dict(config),
    )

  def write(self, step: int, values: Mapping[str, float]) -> None:
    self._run.log(dict(values), step=step)

  def picture(
    self, step: int, name: str, image: UInt8[np.ndarray, 'h w 3']
  ) -> None:
    self._run.log({name: self._wandb.Image(image)}, step=step)

  def close(self) -> None:
    self._run.finish()


class _MLflow:
  """A run of MLflow."""

  # What it takes of a parameter's value.
  _LENGTH = 500

  def __init__(
    self, workdir: pathlib.Path, config: Mapping[str, Any], run_id: str | None
  ):
    self._mlflow = importlib.import_module('mlflow')
    run = self._mlflow.start_run(run_id=run_id, run_name=workdir.name)
    self.run_id = run.info.run_id
    if run_id is None:
      self._mlflow.log_params(
        {name: str(value)[: self._LENGTH] for name, value in config.items()}
      )

  def write(self, step: int, values: Mapping[str, float]) -> None:
    self._mlflow.log_metrics(dict(values), step=step)

  def picture(
    self, step: int, name: str, image: UInt8[np.ndarray, 'h w 3']
  ) -> None:
    self._mlflow.log_image(image, f'{name}/{step:08d}.png')

  def close(self) -> None:
    self._mlflow.end_run()


_KINDS = {'wandb': _Wandb, 'mlflow': _MLflow}


def check(names: Sequence[str]) -> None:
  """Raises errors.UserError for one not known, or that is not installed."""
  for name in names:
    if name not in _KINDS:
      raise errors.UserError(f'--trackers={name}: none of {", ".join(_KINDS)}')
    if importlib.util.find_spec(name) is None:
      raise errors.UserError(
        f'--trackers={name}: the package {name} is not installed; pip install '
        f'{name}, or leave it out: metrics.jsonl and TensorBoard have the same'
      )


def start(
  names: Sequence[str], workdir: pathlib.Path, config: Mapping[str, Any]
) -> list[Tracker]:
  """Goes on with the runs of a workdir, or begins some.

  Args:
    names: that passed `check`.
    workdir: of the training.
    config: of the training.

  Raises:
    errors.UserError: one of them would not start; why is said.
  """
  path = workdir / _RUNS
  known = files.read_json(path, 'names of runs', ()) if path.exists() else {}
  trackers = []
  for name in names:
    try:
      tracker = _KINDS[name](workdir, config, known.get(name))
    except Exception as error:
      # Packages of others, which know many kinds of errors.
      raise errors.UserError(
        f'--trackers={name}: {type(error).__name__}: {error}; mend that, or '
        'leave it out'
      ) from error
    known[name] = tracker.run_id
    trackers.append(tracker)
  if names:
    files.write_json(path, known)
  return trackers
