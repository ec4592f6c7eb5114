"""A JSON item of a checkpoint that is computed while the arrays are written.

Orbax takes the content of an item when a save is called for, and the loop of
training waits for that; this one takes a function, which is called in the
thread that writes.
"""

import dataclasses
from typing import Any, Callable, Mapping

from etils import epath
import orbax.checkpoint as ocp
from orbax.checkpoint import args as ocp_args


class LateJsonHandler(ocp.JsonCheckpointHandler):
  """Saves what a function gives; the file is that of any JSON item."""

  async def _save_fn(
    self, x: Callable[[], Mapping[str, Any]], directory: epath.Path
  ) -> None:
    # By all processes, of which the first one writes.
    await super()._save_fn(x(), directory)


@ocp_args.register_with_handler(LateJsonHandler, for_save=True)
@dataclasses.dataclass
class LateJsonSave(ocp_args.CheckpointArgs):
  """How to save it.

  Attributes:
    item: gives the content; a failure of it fails the save.
  """

  item: Callable[[], Mapping[str, Any]]


@ocp_args.register_with_handler(LateJsonHandler, for_restore=True)
@dataclasses.dataclass
class LateJsonRestore(ocp_args.CheckpointArgs):
  """How to restore it."""

  item: Any = None
