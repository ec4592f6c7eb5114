"""How well errors can find what moves, against the true motion of pairs.

    python -m tests.benchmarks.motion_bounds --output=runs/bounds [--pairs=160]

The motion mask learns from an error which places move. Whatever it learns, the
error has to know it first: here, without any training of a mask, are errors
that it could be taught, as detectors of cells that move. Pairs, truth, cells
and figures are those of `tests.benchmarks.motion_mask`, whose own rows compare
with these; pictures are of 64 px, cells of 8 px. Prints a JSON line for each:

  contrast       variance of the target within the cell: knows nothing
  model          squared error of one step of the checkpoint that comes with
                 the project, made one of 64 px: about that of its conditional
                 mean
  model, seen    the same times the share that the model blends of the source,
                 which leaves out what it knows to be made up
  exact          squared error of the source taken to the target by the exact
                 depth of the target, where that falls into its picture
  exact, seen    the same without what the source cannot see although nothing
                 moves: known to the truth alone
"""

import json
from typing import Any

from absl import flags
from einops import reduce
from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Float
import numpy as np
from scipy import ndimage

from odin_jax.benchmarks import pairs, records
from odin_jax.models import conditioning, encoders, odin
from odin_jax.shared import camera, command, files, posed_pair
from odin_jax.training import patch_size
from tests.benchmarks import true_motion
from tests.helpers import restored

_TOOL = 'tests.benchmarks.motion_bounds'
_OUTPUT = flags.DEFINE_string('output', None, 'Folder to write.', required=True)
_PAIRS = flags.DEFINE_integer('pairs', 160, 'Held-out pairs.', 1)
_SIZE_PX, _CELLS, _BATCH = 64, 8, 16

Maps = Float[np.ndarray, 'b n n']


def _in_cells(maps: np.ndarray) -> Maps:
  return reduce(maps, 'b (i y) (j x) -> b i j', 'mean', i=_CELLS, j=_CELLS)


def contrast(images: Float[np.ndarray, 'b s s 3']) -> Maps:
  """Variance within every cell, mean over colours."""
  mean, square = (
    reduce(x, 'b (i y) (j x) c -> b i j c', 'mean', i=_CELLS, j=_CELLS)
    for x in (images, images**2)
  )
  return (square - mean**2).mean(-1)


def errors_of_the_model(
  given: posed_pair.PosedPair,
) -> tuple[Float[np.ndarray, 'b s s'], Maps]:
  """Squared error of one step, and in cells the share of the made up."""
  params, _, config = restored.restore('pretrained')
  # Of 128 px: these pictures are smaller, its patches as many.
  patch_px = _SIZE_PX // encoders.latent_size(config)
  params = patch_size.resized(params, config, patch_px)
  config = {
    **config,
    'image_size_px': _SIZE_PX,
    'autoencoder': {**config['autoencoder'], 'patch_px': patch_px},
  }
  frozen = encoders.fit(config, given.source[:1])
  graph, last = odin.graph(config), config['diffusion']['num_timesteps'] - 1

  @jax.jit
  def look(params: Any, frozen: Any, batch: posed_pair.PosedPair) -> Any:
    model = nnx.merge(graph, params)
    condition = odin.condition(frozen, config, batch)
    kept = jnp.zeros(len(batch.source), bool)
    cond = model.cond(condition, conditioning.Drop(kept, kept))
    noise = jax.random.normal(jax.random.key(0), condition['source'].shape)
    found = model.denoise(noise, jnp.full(len(noise), float(last)), cond)
    rest = jax.nn.softmax(found.blended.logits, axis=-1)[..., -1]
    error = jnp.square(found.blended.picture - batch.target / 255.0)
    return error.mean(axis=-1), rest

  rows = [
    look(params, frozen, posed_pair.select(given, slice(i, i + _BATCH)))
    for i in range(0, len(given.source), _BATCH)
  ]
  error, rest = (np.concatenate(column) for column in zip(*rows))
  return error, _in_cells(rest)


def errors_of_exact_depth(
  pair_set: pairs.PairSet,
) -> Float[np.ndarray, 'b s s']:
  """Squared error of the source where it is; 0 beyond its picture."""
  rows = []
  for facts, source, target in zip(
    pair_set.facts,
    pair_set.pairs.source / 255.0,
    pair_set.pairs.target / 255.0,
    strict=True,
  ):
    depth = true_motion.target_depth_m(facts, _SIZE_PX)
    points = camera.view_rays(true_motion.FOV_DEG, _SIZE_PX) * depth[..., None]
    pixels, z = camera.project(
      camera.transform(true_motion.target2source_m(facts), points),
      camera.intrinsics(true_motion.FOV_DEG, _SIZE_PX),
    )
    inside = (z > 0) & np.all((pixels > 0) & (pixels < _SIZE_PX), axis=-1)
    places = np.where(inside[..., None], pixels, 0.5)[..., ::-1] - 0.5
    colours = np.stack(
      [
        ndimage.map_coordinates(
          source[..., i], np.moveaxis(places, -1, 0), order=1, mode='nearest'
        )
        for i in range(3)
      ],
      axis=-1,
    )
    rows.append(np.square(colours - target).mean(-1) * inside)
  return np.stack(rows)


def main() -> None:
  """Makes the pairs, asks every detector."""
  watch = command.Stopwatch()
  output = files.claim_output(_OUTPUT.value, _TOOL).absolute()
  data = output / 'records'
  true_motion.make_records(data)
  pair_set = records.held_out_pairs(
    data, image_size_px=_SIZE_PX, num_pairs=_PAIRS.value, seed=0
  )
  truth = true_motion.find_truth(pair_set, _SIZE_PX, _CELLS)
  unseen = truth.pixels[..., true_motion.KINDS.index('unseen')]
  of_model, rest = errors_of_the_model(pair_set.pairs)
  of_depth = errors_of_exact_depth(pair_set)
  detectors = {
    'contrast': contrast(pair_set.pairs.target / 255.0),
    'model': _in_cells(of_model),
    'model, seen': _in_cells(of_model) * (1 - rest),
    'exact': _in_cells(of_depth),
    'exact, seen': _in_cells(of_depth * (unseen < 0.5)),
  }
  figures = {
    'held_out_pairs': len(pair_set.facts),
    'share_of_moving_cells': round(float(truth.moving.mean()), 4),
    'detectors': {
      name: true_motion.detection(score, truth.moving, None)
      for name, score in detectors.items()
    },
  }
  for name, row in figures['detectors'].items():
    print(json.dumps({'what': name, **row}), flush=True)
  files.write_json(output / 'motion_bounds.json', figures | watch.figures())


if __name__ == '__main__':
  command.run(main)
