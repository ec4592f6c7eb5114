"""What a checkpoint holds, ready to be used."""

import os
from typing import Any

import jax

from odin_jax import sharding
from odin_jax.checkpoints import checkpoint
from odin_jax.models import encoders, odin


def restore(
  workdir: str | os.PathLike[str],
) -> tuple[Any, encoders.Encoders, dict[str, Any]]:
  """Averaged parameters, encoders and config of the newest checkpoint."""
  checkpoints, newest, config = checkpoint.open_step(workdir)
  everywhere = sharding.replicated(
    sharding.make_mesh({'data': -1, 'fsdp': 1, 'tensor': 1})
  )
  abstract = jax.eval_shape(lambda: odin.init_params(config))
  params = checkpoints.restore_params(
    newest, 'ema', abstract, jax.tree.map(lambda _: everywhere, abstract)
  )
  frozen = checkpoints.restore_encoders(newest, config, everywhere)
  checkpoints.close()
  return params, frozen, config
