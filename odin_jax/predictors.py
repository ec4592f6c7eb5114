"""What can be asked for the target view of a pair: baselines and the model.

A predictor has `predict(source, target2source, fov_deg, seeds)` and
`protocol`, the facts that a table of its results has to state.
"""

import functools
import os
from typing import Any, Protocol

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int, Num, UInt8
import numpy as np

from odin_jax.diffusion import sampler
from odin_jax.models import autoencoder, odin
from odin_jax.shared import binary
from odin_jax.training import checkpoint, step

NAMES = ('model', 'copy', 'mean')
Source = UInt8[np.ndarray, 'b s s 3']
Prediction = Float32[np.ndarray, 'b s s 3']
# Every call is padded to a multiple of this, so that one shape is compiled.
_CHUNK = 32


class Predictor(Protocol):
  """Anything that predicts target views.

  Attributes:
    protocol: name of the predictor and every setting that its images depend
      on.
  """

  protocol: dict[str, Any]

  def predict(
    self,
    source: Source,
    target2source: Float[np.ndarray, 'b 3 4'],
    fov_deg: Num[np.ndarray, 'b'],
    seeds: Int[np.ndarray, 'b'],
  ) -> Prediction:
    """Target views, values in [0, 1].

    Args:
      source: source views, sRGB.
      target2source: relative poses, scene units.
      fov_deg: full field of view of both views.
      seeds: of each pair's noise; the baselines have none.
    """


class Copy:
  """Predicts the source view itself."""

  protocol = {'predictor': 'copy'}

  def predict(self, source, target2source, fov_deg, seeds) -> Prediction:
    """See `Predictor`."""
    del target2source, fov_deg, seeds
    return source.astype(np.float32) / 255


class Mean:
  """Predicts the mean colour of the source view."""

  protocol = {'predictor': 'mean'}

  def predict(self, source, target2source, fov_deg, seeds) -> Prediction:
    """See `Predictor`."""
    del target2source, fov_deg, seeds
    colour = source.mean(axis=(1, 2), keepdims=True, dtype=np.float64) / 255
    return np.broadcast_to(colour, source.shape).astype(np.float32)


def sample(
  model: odin.Odin,
  vae: autoencoder.PatchPca,
  config: checkpoint.Config,
  source_images: UInt8[Array, 'b s s 3'],
  target2source: Float[Array, 'b 3 4'],
  fov_deg: Float[Array, 'b'],
  seeds: Int[Array, 'b'],
  *,
  num_steps: int,
  guidance: float,
) -> Float[Array, 'b s s 3']:
  """One DDIM sample of the target view per example, values in [0, 1].

  Args:
    model: with the parameters to use.
    vae: the autoencoder that the model was trained with.
    config: the training config.
    source_images: sRGB.
    target2source: relative poses, scene units.
    fov_deg: full field of view of both views.
    seeds: of each example's noise, so that a sample does not depend on the
      batch it is drawn in.
    num_steps: of DDIM.
    guidance: scale of classifier-free guidance; 1 is none.
  """
  diffusion = config['diffusion']
  told = odin.condition(vae, config, source_images, target2source, fov_deg)
  source = told['source']

  def denoiser(dropped: bool) -> sampler.DenoiseFn:
    drop = jnp.full(source.shape[0], dropped)
    return lambda x, t: model(x, t, told, drop)[0]

  noise = jax.vmap(
    lambda seed: jax.random.normal(jax.random.key(seed), source.shape[1:])
  )(seeds)
  latents = sampler.ddim(
    sampler.guided(denoiser(False), denoiser(True), guidance),
    noise,
    alpha_bar=step.alpha_bars(config),
    steps=sampler.timesteps(
      num_steps, diffusion['num_timesteps'], spacing=diffusion['spacing']
    ),
    prediction=diffusion['prediction'],
  )
  return vae.decode(latents)


class Model:
  """One DDIM sample per pair from a trained model.

  Args:
    params: of the model.
    vae: the autoencoder that it was trained with.
    config: the training config.
    num_steps: of DDIM.
    guidance: scale of classifier-free guidance; 1 is none.
    protocol: further facts for the protocol.
  """

  def __init__(
    self,
    params: Any,
    vae: autoencoder.PatchPca,
    config: checkpoint.Config,
    *,
    num_steps: int,
    guidance: float,
    protocol: dict[str, Any],
  ):
    graphdef = step.graph(config)

    @jax.jit
    def sample_with(params, vae, source, target2source, fov_deg, seeds):
      return sample(
        nnx.merge(graphdef, params),
        vae,
        config,
        source,
        target2source,
        fov_deg,
        seeds,
        num_steps=num_steps,
        guidance=guidance,
      )

    self._sample = functools.partial(sample_with, params, vae)
    self.image_size_px: int = config['image_size_px']
    self.protocol = {
      'predictor': 'model',
      'image_size_px': self.image_size_px,
      'sampler': 'ddim',
      'eta': 0.0,
      'num_steps': num_steps,
      'spacing': config['diffusion']['spacing'],
      'guidance': guidance,
      'samples_per_pair': 1,
      **protocol,
    }

  def predict(
    self,
    source: Source,
    target2source: Float[np.ndarray, 'b 3 4'],
    fov_deg: Num[np.ndarray, 'b'],
    seeds: Int[np.ndarray, 'b'],
  ) -> Prediction:
    """See `Predictor`; sources are `image_size_px` square."""
    count = len(source)
    inputs = (
      source,
      target2source.astype(np.float32),
      fov_deg.astype(np.float32),
      seeds.astype(np.int32),
    )
    images = []
    for start in range(0, count, _CHUNK):
      rows = np.arange(start, start + _CHUNK).clip(max=count - 1)
      images.append(np.asarray(self._sample(*(x[rows] for x in inputs))))
    return np.concatenate(images)[:count]


def load_model(
  workdir: str | os.PathLike[str],
  *,
  num_steps: int,
  guidance: float = 1.0,
  ema: bool = True,
) -> Model:
  """The model of the newest checkpoint of a training run.

  Args:
    workdir: of `odin_jax.train`.
    num_steps: of DDIM.
    guidance: scale of classifier-free guidance; 1 is none.
    ema: use the moving average of the parameters.

  Raises:
    binary.UserError: no checkpoint there; guidance for a model that was
      trained without dropping its condition; too many steps.
  """
  path = binary.require_folder(workdir, 'the --workdir of odin_jax.train')
  binary.require_folder(
    path / checkpoint.FOLDER, 'a training run with a checkpoint'
  )
  checkpoints = checkpoint.Checkpoints(path, read_only=True)
  newest = checkpoints.latest()
  if newest is None:
    raise binary.UserError(f'{workdir}: no checkpoint here yet; train first')
  config = checkpoints.config(newest)
  diffusion = config['diffusion']
  if guidance != 1.0 and not diffusion['condition_dropout']:
    raise binary.UserError(
      f'{workdir}: trained without condition_dropout, so guidance={guidance} '
      'has nothing to guide from; use 1.0'
    )
  if not 1 <= num_steps <= diffusion['num_timesteps']:
    raise binary.UserError(
      f'num_steps={num_steps} is outside 1..{diffusion["num_timesteps"]}'
    )
  abstract = jax.eval_shape(functools.partial(step.init, config))
  params, vae = checkpoints.restore_params(
    newest, 'ema' if ema else 'params', abstract['params'], config
  )
  checkpoints.close()
  return Model(
    params,
    vae,
    config,
    num_steps=num_steps,
    guidance=guidance,
    protocol={
      'ema': ema,
      'checkpoint_step': newest,
      'params_sha256': checkpoint.params_sha256(params),
      'conditioning': config['model']['conditioning'],
      'prediction': diffusion['prediction'],
      'recipe': config['recipe'],
    },
  )
