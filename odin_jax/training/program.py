"""The training step as a program: what goes in, and where that lives.

Training runs it, and odin_jax.plan makes the same one for other hardware.
"""

import functools
from typing import Any, Mapping, NamedTuple

import jax
import jax.numpy as jnp

from odin_jax import sharding
from odin_jax.models import conditioning, encoders, odin
from odin_jax.shared import posed_pair
from odin_jax.training import step

Config = Mapping[str, Any]


# Of compilers by platform. For TPUs XLA turns a gather and the product behind it
# into a loop that passes parts around from an array of this size on (MiB). Of
# kernels of convolutions these parts are small, 20 channels of 320, and over 16
# chips the loops move two and a half times the bytes through memory.
_OPTIONS = {'tpu': {'xla_jf_spmd_threshold_for_windowed_einsum_mib': '1000000'}}


class Placement(NamedTuple):
  """Where the arguments of a step live.

  Attributes:
    state: of every array of it.
    batch: of every array of a batch.
    frozen: of every array of the encoders.
    everywhere: of what each device has whole: LPIPS, and figures.
  """

  state: Any
  batch: jax.sharding.NamedSharding
  frozen: Any
  everywhere: jax.sharding.NamedSharding


def placement(
  config: Config, mesh: jax.sharding.Mesh, abstract: step.State
) -> Placement:
  """Where the arguments of the step of a config live.

  Args:
    config: of the training.
    mesh: its mesh.
    abstract: the shapes of the state.

  Raises:
    errors.UserError: the devices cannot share the batch evenly.
  """
  return Placement(
    state=sharding.shardings(abstract, mesh, odin.sharding_rules()),
    batch=sharding.batch_sharding(
      mesh, config['batch_size'], config['accumulate_steps']
    ),
    frozen=encoders.shardings(config, mesh),
    everywhere=sharding.replicated(mesh),
  )


def jitted(
  config: Config, mesh: jax.sharding.Mesh, where: Placement
) -> jax.stages.Wrapped:
  """`step.train_step` of a config on a mesh; it takes its state's memory."""
  train_step = functools.partial(
    step.train_step, config=config, graphdef=odin.graph(config)
  )
  return jax.jit(
    sharding.traced_for(mesh, train_step),
    donate_argnums=0,
    in_shardings=tuple(where),
    out_shardings=(where.state, where.everywhere),
    compiler_options=_OPTIONS.get(mesh.devices.flat[0].platform),
  )


def abstract_batch(config: Config) -> posed_pair.PosedPair:
  """The shapes of a batch; of depths, those of records that have none."""
  count, size = config['batch_size'], config['image_size_px']

  def views(*leading: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((count, *leading, size, size, 3), jnp.uint8)

  def floats(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((count, *shape), jnp.float32)

  def depth(*leading: int) -> jax.ShapeDtypeStruct | None:
    size = posed_pair.EMPTY_DEPTH_PX
    return floats(*leading, size, size) if odin.has_spheres(config) else None

  further = conditioning.num_sources(config) - 1
  more = posed_pair.MoreViews(
    image=views(further),
    target2view=floats(further, 3, 4),
    fov_deg=floats(further),
    is_there=jax.ShapeDtypeStruct((count, further), jnp.bool_),
    depth=depth(further),
  )
  return posed_pair.PosedPair(
    source=views(),
    target=views(),
    target2source=floats(3, 4),
    fov_deg=floats(),
    median_depth=floats(),
    source_depth=depth(),
    target_depth=depth(),
    more=more if further else None,
    times_s=floats(2) if conditioning.needs_times(config) else None,
  )


class Memory(NamedTuple):
  """What a compiled step needs of each device, bytes.

  Attributes:
    arguments: state, batch and frozen networks.
    temporaries: what it makes beside them.
    code: the program itself.
    peak: all of them, and what does not take the place of an argument.
  """

  arguments: int
  temporaries: int
  code: int
  peak: int

  def text(self) -> str:
    """On one line."""
    values = ', '.join(
      f'{name} {num_bytes / 2**30:.3f} GiB'
      for name, num_bytes in self._asdict().items()
    )
    return f'memory of a step on each device: {values}'


def memory(compiled: jax.stages.Compiled) -> Memory:
  """What a compiled program needs of each device."""
  analysis = compiled.memory_analysis()
  # What takes the place of an argument needs none of its own.
  held = (
    analysis.argument_size_in_bytes
    + analysis.output_size_in_bytes
    - analysis.alias_size_in_bytes
  )
  temporaries = analysis.temp_size_in_bytes
  code = analysis.generated_code_size_in_bytes
  return Memory(
    arguments=analysis.argument_size_in_bytes,
    temporaries=temporaries,
    code=code,
    peak=held + temporaries + code,
  )
