"""The journal of a run: `metrics.jsonl` and TensorBoard events."""

import contextlib
import json
import pathlib
import sys
from typing import Iterator, Mapping, Sequence

from jaxtyping import UInt8
import numpy as np

from odin_jax.shared import files
from odin_jax.training import trackers as tracking

_NAME = 'metrics.jsonl'


def _cut_back(path: pathlib.Path, step: int) -> None:
  """Drops rows after `step`, and a last row that a kill left unfinished."""
  kept = []
  for line in path.read_text().splitlines(keepends=True):
    if not line.endswith('\n') or json.loads(line)['step'] > step:
      break
    kept.append(line)
  with files.atomic_path(path) as temporary:
    temporary.write_text(''.join(kept))


@contextlib.contextmanager
def _without_torch() -> Iterator[None]:
  """Imports go as if torch were not installed.

  tensorboardX loads it where it can, and einops then loads its compiler, which
  takes every training two seconds; nothing here has a use for either.
  """
  if 'torch' in sys.modules:
    yield
    return
  # Python's own way to say that a module can't be imported.
  sys.modules['torch'] = None
  try:
    yield
  finally:
    del sys.modules['torch']


class Journal:
  """Appends rows, each on disk before `write` returns.

  Args:
    workdir: of the run; None: rows go nowhere, as where another process of the
      run writes them.
    step: the step that the run goes on from; rows after it are cut off.
    trackers: that are told, too, where rows are kept.
  """

  def __init__(
    self,
    workdir: pathlib.Path | None,
    step: int,
    trackers: Sequence[tracking.Tracker] = (),
  ):
    self._is_kept = workdir is not None
    self._trackers = trackers
    if workdir is None:
      return
    path = workdir / _NAME
    if path.exists():
      _cut_back(path, step)
    self._rows = open(path, 'a')
    # Here, since --help has no use for it.
    with _without_torch():
      import tensorboardX

    self._events = tensorboardX.SummaryWriter(
      str(workdir / 'tensorboard'), purge_step=step + 1, flush_secs=10
    )

  def write(self, step: int, values: Mapping[str, float | None]) -> None:
    """Adds the row of a step; what is None is null in it."""
    if not self._is_kept:
      return
    row = json.dumps({'step': step, **values}, allow_nan=False)
    self._rows.write(row + '\n')
    self._rows.flush()
    known = {name: x for name, x in values.items() if x is not None}
    for name, value in known.items():
      self._events.add_scalar(name, value, step)
    for tracker in self._trackers:
      tracker.write(step, known)

  def picture(
    self, step: int, name: str, image: UInt8[np.ndarray, 'h w 3']
  ) -> None:
    """Adds a picture of a step to TensorBoard."""
    if not self._is_kept:
      return
    self._events.add_image(name, image, step, dataformats='HWC')
    for tracker in self._trackers:
      tracker.picture(step, name, image)

  def close(self) -> None:
    """Flushes and closes all that is written to."""
    if not self._is_kept:
      return
    self._rows.close()
    self._events.close()
    for tracker in self._trackers:
      tracker.close()
