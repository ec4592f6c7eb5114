"""Encodes the views of records once, so that training need not do it.

  python -m odin_jax.cache_latents --config=configs/train.py:odin \
    --workdir=PORTED --records=DIR --output=DIR
  python -m odin_jax.train --config=configs/train.py:odin --init=PORTED \
    --records=DIR --latents=DIR --workdir=DIR

Give the config of the training: latents depend on its image size, its dtype and
its encoders, and with `config.augment.mirror` there are those of the mirrored
views, too. A run that was stopped goes on with the same command, shard by shard.
"""

import sys

# As a file it finds none of the packages below.
if __name__ == '__main__' and not __package__:
  sys.stderr.write('error: type: python -m odin_jax.cache_latents\n')
  sys.exit(2)

from absl import flags, logging
import jax

from odin_jax import batches, encoding, latents, sharding
from odin_jax.checkpoints import checkpoint
from odin_jax.models import encoders
from odin_jax.shared import command, errors, files, workdirs
from odin_jax.training import settings

_CONFIG = command.define_config('configs/train.py')
_RECORDS = command.define_records('to train on')
_WORKDIR = command.define_model()
_CHECKPOINT_STEP = command.define_checkpoint_step()
_OUTPUT = command.define_output('Folder for the latents')
_BATCH_SIZE = flags.DEFINE_integer(
  'batch_size', 8, 'Records at once, on every device.', lower_bound=1
)
flags.mark_flags_as_required(['records', 'workdir', 'output'])
_TOOL = 'odin_jax.cache_latents'


def _frozen(
  config: checkpoint.Config, mesh: jax.sharding.Mesh
) -> encoders.Encoders:
  """The encoders of the checkpoint, to compute as the config says."""
  asked = _CHECKPOINT_STEP.value
  checkpoints, step, saved = checkpoint.open_step(
    workdirs.require(_WORKDIR.value, 'a training run', asked), asked
  )
  for name in ('autoencoder', 'image_encoder'):
    if saved[name] != config[name]:
      raise errors.UserError(
        f'{_WORKDIR.value}: its config.{name} is {saved[name]}, not '
        f'{config[name]}; give the config of the training that starts from it'
      )
  frozen = checkpoints.restore_encoders(step, config, sharding.replicated(mesh))
  checkpoints.close()
  return frozen


def main() -> None:
  """Reads the flags and encodes the records."""
  config = checkpoint.plain(_CONFIG.value.to_dict())
  settings.check(config)
  settings.check_latents(config)
  source = batches.PairSource(
    _RECORDS.value, latents.SPLIT, image_size_px=config['image_size_px']
  )
  logging.info(sharding.devices_text())
  mesh = sharding.local_mesh()
  frozen = _frozen(config, mesh)
  mirror = config['augment']['mirror']
  batch_size = _BATCH_SIZE.value * len(mesh.devices)
  split = sharding.batch_sharding(mesh, batch_size)
  output = files.claim_output(_OUTPUT.value, _TOOL)
  encode = jax.jit(
    encoders.encode_views,
    in_shardings=(sharding.replicated(mesh), split),
    out_shardings=split,
  )
  done = encoding.encode_folder(
    source,
    output,
    lambda images: encode(frozen, images),
    {
      'made_with': latents.of_config(config),
      'encoders_sha256': checkpoint.params_sha256(frozen),
    },
    shapes=encoders.encoded_shapes(config),
    batch_size=batch_size,
    mirror=mirror,
  )
  given = {
    'records': _RECORDS.value,
    'latents': _OUTPUT.value,
    'init': _WORKDIR.value,
    'workdir': command.beside(_OUTPUT.value, 'run'),
  }
  views = len(latents.view_names(mirror=mirror))
  command.finish(
    _OUTPUT.value,
    f'latents of {len(source)} records, {views} views each'
    + (f'; {done} shards were here' if done else ''),
    then=('train on them, with the same --config', 'odin_jax.train', given),
  )


if __name__ == '__main__':
  command.run(main)
