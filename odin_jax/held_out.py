"""What a model in training makes of pairs that it is not trained on."""

from typing import Any, Mapping, NamedTuple

from flax import nnx
import jax
from jaxtyping import UInt8
import numpy as np

from odin_jax import batches, predictors, sharding
from odin_jax.models import encoders, odin
from odin_jax.shared import posed_pair, psnr

# Few: the run waits for them.
_COUNT, _NUM_STEPS = 8, 10


class Samples(NamedTuple):
  """Of some pairs, one each.

  Attributes:
    psnr_db: mean over the pairs.
    picture: a row for each pair: source, target, sample.
  """

  psnr_db: float
  picture: UInt8[np.ndarray, 'h w 3']


class HeldOut:
  """Samples the same pairs with the same noise each time.

  Args:
    source: of the pairs, which are spread evenly over it.
    config: of the training.
    mesh: its axes that split a batch split these pairs.
    params_shardings: of the parameters.
  """

  def __init__(
    self,
    source: batches.Source,
    config: Mapping[str, Any],
    mesh: jax.sharding.Mesh,
    params_shardings: Any,
  ):
    parts = mesh.shape['data'] * mesh.shape['fsdp']
    count = -(-_COUNT // parts) * parts
    chosen = np.linspace(0, len(source) - 1, count).astype(int)
    self._pairs = posed_pair.stack(
      [
        source[int(index)]._replace(target_median_depth=None)
        for index in chosen
      ]
    )
    given = posed_pair.as_float32(
      self._pairs._replace(target=None, source_depth=None, target_depth=None)
    )
    split = sharding.batch_sharding(mesh, count)
    self._given = jax.tree.map(
      lambda values: sharding.of_rows(split, count, np.arange(count), values),
      (given, np.arange(count, dtype=np.int32)),
    )
    graphdef = odin.graph(config)
    sampling = predictors.Sampling(
      sampler='ddim',
      num_steps=_NUM_STEPS,
      guidance=1.0,
      guidance_rescale=0.0,
      spacing=config['diffusion']['spacing'],
    )

    def sample(
      params: Any,
      frozen: encoders.Encoders,
      pairs: posed_pair.PosedPair,
      seeds: jax.Array,
    ) -> jax.Array:
      model = nnx.merge(graphdef, params)
      return predictors.sample(
        model, frozen, config, pairs, seeds, sampling=sampling
      )

    everywhere = sharding.replicated(mesh)
    self._sample = jax.jit(
      sample,
      # Encoders are taken as they lie.
      in_shardings=(params_shardings, None, split, split),
      out_shardings=everywhere,
    )

  def sample(self, params: Any, frozen: encoders.Encoders) -> Samples:
    """To be called by all processes of a run."""
    views = np.asarray(self._sample(params, frozen, *self._given))
    views = np.round(np.clip(views, 0, 1) * 255).astype(np.uint8)
    rows = list(zip(self._pairs.source, self._pairs.target, views, strict=True))
    errors_db = [psnr.psnr_db(target, view) for _, target, view in rows]
    picture = np.concatenate([np.concatenate(row, axis=1) for row in rows])
    return Samples(float(np.mean(errors_db)), picture)
