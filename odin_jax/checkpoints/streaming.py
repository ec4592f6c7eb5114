"""Orbax writes lazy arrays one after the other.

Orbax copies all NumPy arrays of a tree before it writes the first. Lazy ones
are read, written and freed in turn, so that making a checkpoint takes the
memory of one of them. What is on disk is the same.
"""

from typing import Any, Sequence

import orbax.checkpoint as ocp
from orbax.checkpoint import future, type_handlers

from odin_jax.shared.lazy_array import LazyArray


class _LazyHandler(type_handlers.NumpyHandler):
  """Saves `LazyArray`s as NumPy arrays are saved."""

  async def serialize(
    self,
    values: Sequence[LazyArray],
    infos: Sequence[Any],
    args: Sequence[Any] | None = None,
  ) -> Sequence[future.Future]:
    args = args or [ocp.SaveArgs()] * len(values)
    return [
      future.CommitFutureAwaitingContractedSignals(
        self._write_in_turn(values, infos, args), name='lazy_arrays'
      )
    ]

  async def _write_in_turn(
    self,
    values: Sequence[LazyArray],
    infos: Sequence[Any],
    args: Sequence[Any],
  ) -> None:
    for value, info, arg in zip(values, infos, args, strict=True):
      for written in await super().serialize([value.read()], [info], [arg]):
        written.result()


def handler() -> ocp.PyTreeCheckpointHandler:
  """Of an item of `ocp.CheckpointManager` whose leaves are lazy arrays.

  Saved with `ocp.args.PyTreeSave`, it is restored as any other.
  """
  return ocp.PyTreeCheckpointHandler(
    type_handler_registry=type_handlers.create_type_handler_registry(
      (LazyArray, _LazyHandler(deepcopy_host_arrays=False))
    )
  )
