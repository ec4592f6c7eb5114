"""What can be asked for the target view of a pair: baselines and the model.

A predictor has `predict(pairs, seeds)` and `protocol`, the facts that a table
of its results has to state.
"""

import dataclasses
import os
from typing import Any, Protocol, runtime_checkable

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int
import numpy as np

from odin_jax import sharding
from odin_jax.benchmarks.pairs import PairTruth
from odin_jax.checkpoints import checkpoint, pretrained
from odin_jax.diffusion import in_turn, sampler, schedule
from odin_jax.geometry import visibility
from odin_jax.models import conditioning, encoders, odin, sweep
from odin_jax.shared import camera, errors, posed_pair

Prediction = Float32[np.ndarray, 'b s s 3']


@runtime_checkable
class Predictor(Protocol):
  """Anything that predicts target views.

  Attributes:
    protocol: name of the predictor and every setting that its images depend
      on.
  """

  protocol: dict[str, Any]

  def predict(
    self, pairs: posed_pair.PosedPair, seeds: Int[np.ndarray, 'b']
  ) -> Prediction:
    """Target views, values in [0, 1].

    Args:
      pairs: a batch; their targets make no difference.
      seeds: of each pair's noise; the baselines have none.
    """


class Copy:
  """Predicts the source view itself."""

  name = 'copy'
  protocol = {'predictor': name}

  def predict(
    self, pairs: posed_pair.PosedPair, seeds: Int[np.ndarray, 'b']
  ) -> Prediction:
    """See `Predictor`."""
    del seeds
    return pairs.source.astype(np.float32) / 255


class Mean:
  """Predicts the mean colour of the source view."""

  name = 'mean'
  protocol = {'predictor': name}

  def predict(
    self, pairs: posed_pair.PosedPair, seeds: Int[np.ndarray, 'b']
  ) -> Prediction:
    """See `Predictor`."""
    del seeds
    source = pairs.source
    colour = source.mean(axis=(1, 2), keepdims=True, dtype=np.float64) / 255
    return np.broadcast_to(colour, source.shape).astype(np.float32)


class Sweep:
  """Predicts the mean of the source as seen if all stood at some distance.

  The geometry that the pose alone gives: eight distances from 0.4 to 4 times
  the median depth of the source, equal ratios apart, all of the same weight;
  the source's mean colour where a distance shows what it does not see.
  """

  name = 'sweep'
  distances = tuple(np.geomspace(0.4, 4.0, 8).round(4).tolist())
  protocol = {
    'predictor': name,
    'distances': list(distances),
    'unit': "the source's median depth, or 1 where that is not known",
  }

  def predict(
    self, pairs: posed_pair.PosedPair, seeds: Int[np.ndarray, 'b']
  ) -> Prediction:
    """See `Predictor`."""
    del seeds
    depth = np.where(pairs.median_depth > 0, pairs.median_depth, 1.0)
    poses = camera.make_pose(
      pairs.target2source[..., :3], pairs.target2source[..., 3] / depth[:, None]
    )
    views, _ = sweep.sweep(
      jnp.asarray(pairs.source, jnp.float32) / 255,
      jnp.asarray(poses, jnp.float32),
      jnp.asarray(pairs.fov_deg, jnp.float32),
      self.distances,
    )
    return np.asarray(views.mean(axis=1))


class Warp:
  """Predicts the source as the true depth takes it to the target.

  What geometry alone can give, and none but the truth knows: a ceiling. See
  `odin_jax.geometry.visibility.warp`.
  """

  name = 'warp'
  protocol = {
    'predictor': name,
    'depth_tolerance': visibility.DEPTH_TOLERANCE,
    'unseen': "the source's mean colour",
  }

  def predict(
    self,
    pairs: posed_pair.PosedPair,
    seeds: Int[np.ndarray, 'b'],
    truth: PairTruth,
  ) -> Prediction:
    """See `Predictor`; `truth` is that of the pairs."""
    del seeds
    args = pairs.target2source, pairs.fov_deg, *truth[:2]
    views = [
      visibility.warp(source.astype(np.float64) / 255, *of_pair)
      for source, *of_pair in zip(pairs.source, *args, strict=True)
    ]
    return np.stack(views).astype(np.float32)


BASELINES = {baseline.name: baseline for baseline in (Copy, Mean, Sweep, Warp)}


# Of models without spheres, and with them.
_USUAL_STEPS = (10, 2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
  """How samples are drawn; configs/evaluate.py has the usual way.

  Attributes:
    sampler: one of `odin_jax.diffusion.sampler.SAMPLERS`.
    num_steps: of the sampler; 0 is what suits the model: two of one with
      spheres, whose first step has the picture already, else ten.
    guidance: scale of classifier-free guidance; 1 is none.
    guidance_rescale: share of the conditional output's deviation that the
      guided one is given back (2305.08891, section 3.4); 0 is none.
    spacing: of the timesteps; '' is that of the training config.
  """

  sampler: str
  num_steps: int
  guidance: float
  guidance_rescale: float
  spacing: str


def _timesteps(sampling: Sampling, diffusion: Any) -> sampler.Timesteps:
  return sampler.timesteps(
    sampling.num_steps,
    diffusion['num_timesteps'],
    spacing=sampling.spacing,
    kind=sampling.sampler,
  )


def _alpha_bar(diffusion: Any) -> Float[np.ndarray, 't']:
  return schedule.alpha_bars(
    diffusion['schedule'],
    diffusion['num_timesteps'],
    zero_terminal_snr=diffusion['zero_terminal_snr'],
  )


def _one_by_one(pairs: posed_pair.PosedPair) -> list[posed_pair.PosedPair]:
  """The pairs with each of their views for the only source.

  All views have the field of view of the target.
  """
  alone = pairs._replace(more=None)
  if pairs.more is None:
    return [alone]
  return [alone] + [
    alone._replace(
      source=pairs.more.image[:, view],
      target2source=pairs.more.target2view[:, view],
      median_depth=jnp.zeros_like(pairs.median_depth),
      # When those were taken is not known.
      times_s=pairs.times_s
      if pairs.times_s is None
      else jnp.repeat(pairs.times_s[:, 1:], 2, axis=1),
    )
    for view in range(pairs.more.image.shape[1])
  ]


def sample(
  model: odin.Odin,
  frozen: encoders.Encoders,
  config: checkpoint.Config,
  pairs: posed_pair.PosedPair,
  seeds: Int[Array, 'b'],
  *,
  sampling: Sampling,
  is_in_turn: bool = False,
) -> Float[Array, 'b s s 3']:
  """One sample of the target view per example, values in [0, 1].

  Args:
    model: with the parameters to use.
    frozen: the encoders that the model was trained with.
    config: the training config.
    pairs: a batch; their targets make no difference.
    seeds: of each example's noise, so that a sample does not depend on the
      batch it is drawn in.
    sampling: how; its spacing is given.
    is_in_turn: of several views each step looks at one, drawn anew (see
      `odin_jax.diffusion.in_turn`); else at all that the model takes.
  """
  diffusion = config['diffusion']
  looks = _one_by_one(pairs) if is_in_turn else [pairs]
  conditions = [odin.condition(frozen, config, look) for look in looks]
  kept = jnp.zeros(len(pairs.source), bool)
  conds = [
    model.cond(condition, conditioning.Drop(kept, kept))
    for condition in conditions
  ]
  nulls = [odin.null(cond) for cond in conds]
  noise = jax.vmap(
    lambda seed: jax.random.normal(
      jax.random.key(seed), conditions[0]['source'].shape[1:]
    )
  )(seeds)

  def denoise(x: Array, timestep: Array, cond: odin.Cond) -> Array:
    return model.denoise(x, timestep, cond).output

  cond, null = conds[0], nulls[0]
  if is_in_turn and pairs.more is not None:
    denoise = in_turn.denoising(denoise)
    count = 1 + pairs.more.is_there.sum(1)
    cond, null = (in_turn.stack(x, seeds, count) for x in (conds, nulls))
  alpha_bar = _alpha_bar(diffusion)
  latents = sampler.sample(
    sampling.sampler,
    sampler.guided(
      denoise,
      cond,
      null,
      guidance=sampling.guidance,
      rescale=sampling.guidance_rescale,
    ),
    noise,
    alpha_bar=alpha_bar,
    steps=_timesteps(sampling, diffusion),
    prediction=diffusion['prediction'],
    final_alpha_bar=sampler.final_alpha_bar(
      sampling.sampler,
      sampling.spacing,
      alpha_bar,
      # Of a ported scheduler whose end is not that of its spacing.
      set_alpha_to_one=diffusion.get('set_alpha_to_one'),
    ),
    spacing=sampling.spacing,
  )
  return frozen.autoencoder.decode(latents)


class Model:
  """One sample per pair from a trained model, on all devices.

  Args:
    params: of the model, on `mesh`.
    frozen: the encoders that it was trained with, on `mesh`.
    config: the training config.
    mesh: its axis `data` splits every batch.
    sampling: how samples are drawn; its spacing is given.
    batch_size: of one call of the network; smaller requests are padded to
      powers of two, so that few shapes are compiled.
    protocol: further facts for the protocol.
    is_in_turn: see `sample`.
  """

  name = 'model'
  _is_in_turn = False
  _knows_times = False

  def __init__(
    self,
    params: Any,
    frozen: encoders.Encoders,
    config: checkpoint.Config,
    *,
    mesh: jax.sharding.Mesh,
    sampling: Sampling,
    batch_size: int,
    protocol: dict[str, Any],
    is_in_turn: bool = False,
  ):
    graphdef = odin.graph(config)
    batch = jax.sharding.NamedSharding(mesh, sharding.BATCH)
    everywhere = sharding.replicated(mesh)

    def sample_with(params, frozen, pairs, seeds):
      model = nnx.merge(graphdef, params)
      return sample(
        model,
        frozen,
        config,
        pairs,
        seeds,
        sampling=sampling,
        is_in_turn=is_in_turn,
      )

    self._arrays, self._config = (params, frozen), config
    self._mesh, self._facts = mesh, protocol
    self._sample = jax.jit(
      sharding.traced_for(mesh, sample_with),
      in_shardings=(everywhere, everywhere, batch, batch),
      out_shardings=batch,
    )
    self._placed = batch
    self._devices = mesh.size
    self._batch_size = batch_size
    self._is_in_turn = is_in_turn
    self._knows_times = conditioning.needs_times(config)
    self.num_sources = conditioning.num_sources(config)
    self.image_size_px: int = config['image_size_px']
    self.protocol = {
      'predictor': self.name,
      'image_size_px': self.image_size_px,
      'parameters': sum(leaf.size for leaf in jax.tree.leaves(params)),
      **dataclasses.asdict(sampling),
      'timesteps': _timesteps(sampling, config['diffusion']).tolist(),
      'eta': 0.0,
      'samples_per_pair': 1,
      'trained_on_sources': self.num_sources,
      **protocol,
    }

  def resampled(self, sampling: Sampling) -> 'Model':
    """The same model, whose samples are drawn otherwise.

    Args:
      sampling: how; a spacing of '' is that of the training config.

    Raises:
      errors.UserError: as `load_model`.
    """
    sampling = completed(sampling, self._config)
    _check('the model', sampling, self._config)
    return Model(
      *self._arrays,
      self._config,
      mesh=self._mesh,
      sampling=sampling,
      batch_size=self._batch_size,
      protocol=self._facts,
      is_in_turn=self._is_in_turn,
    )

  def _padded(self, count: int) -> int:
    """The batch that `count` examples are sampled in."""
    size = min(1 << (count - 1).bit_length(), self._batch_size)
    return -(-size // self._devices) * self._devices

  def predict(
    self, pairs: posed_pair.PosedPair, seeds: Int[np.ndarray, 'b']
  ) -> Prediction:
    """See `Predictor`; sources are `image_size_px` square.

    Raises:
      errors.UserError: a view has values that are no numbers.
    """
    count = len(pairs.source)
    pairs = posed_pair.as_float32(
      posed_pair.PosedPair(
        source=pairs.source,
        target=None,
        target2source=pairs.target2source,
        fov_deg=pairs.fov_deg,
        median_depth=pairs.median_depth,
        more=pairs.more if self.num_sources > 1 or self._is_in_turn else None,
        times_s=pairs.times_s if self._knows_times else None,
      )
    )
    seeds = seeds.astype(np.int32)
    size = self._padded(count)
    images = []
    for start in range(0, count, size):
      rows = np.arange(start, start + size).clip(max=count - 1)
      batch = posed_pair.select(pairs, rows)
      # Of several processes a mesh holds the devices of one: what goes onto it
      # has to be placed first.
      batch, of_rows = jax.device_put((batch, seeds[rows]), self._placed)
      sampled = self._sample(*self._arrays, batch, of_rows)
      images.append(np.asarray(sampled))
    views = np.concatenate(images)[:count]
    if not np.isfinite(views).all():
      raise errors.UserError(
        'the model gives views with values that are no numbers (NaN or '
        'infinite); train it again, or sample with other settings'
      )
    return views


def completed(sampling: Sampling, config: Any) -> Sampling:
  """With the steps and the spacing that go with the model, if none are given."""
  spheres = bool(config['model'].get('spheres'))
  return dataclasses.replace(
    sampling,
    num_steps=sampling.num_steps or _USUAL_STEPS[spheres],
    spacing=sampling.spacing or config['diffusion']['spacing'],
  )


def _check(where: str, sampling: Sampling, config: Any) -> None:
  diffusion = config['diffusion']
  if config['autoencoder']['kind'] == 'none':
    raise errors.UserError(
      f'{where}: a U-Net that was ported without its autoencoder; port their '
      'folders together'
    )
  names = config['model']['conditioning']
  blind = [
    name
    for name in conditioning.parse(names)
    if conditioning.PARTS[name].needs_image
  ]
  if blind and config['image_encoder']['kind'] == 'none':
    raise errors.UserError(
      f'{where}: a U-Net that was ported without its image encoder, which its '
      f'conditioning {names} needs for {", ".join(blind)}; port their folders '
      'together'
    )
  if sampling.guidance != 1.0 and not diffusion['condition_dropout']:
    raise errors.UserError(
      f'{where}: trained without condition_dropout, so guidance='
      f'{sampling.guidance} has nothing to guide from; use 1.0'
    )
  if sampling.sampler not in sampler.SAMPLERS:
    raise errors.UserError(
      f'sampler {sampling.sampler!r} is none of {", ".join(sampler.SAMPLERS)}'
    )
  try:
    steps = _timesteps(sampling, diffusion)
    # The noisiest step is the one that may have nothing left of the signal.
    if float(steps[0]).is_integer():
      schedule.x0_weights(
        diffusion['prediction'], _alpha_bar(diffusion)[[int(steps[0])]]
      )
  except ValueError as error:
    raise errors.UserError(
      f'{where}: spacing={sampling.spacing}, num_steps={sampling.num_steps}: '
      f'{error}'
    ) from error


def takes_guidance(
  workdir: str | os.PathLike[str], step: int | None = None
) -> bool:
  """Whether the model there was trained for classifier-free guidance.

  Args:
    workdir: see `load_model`.
    step: see `load_model`.

  Raises:
    errors.UserError: no checkpoint there.
  """
  checkpoints, _, config = checkpoint.open_step(workdir, step)
  checkpoints.close()
  return bool(config['diffusion']['condition_dropout'])


def load_model(
  workdir: str | os.PathLike[str],
  *,
  sampling: Sampling,
  batch_size: int,
  ema: bool,
  step: int | None = None,
  is_in_turn: bool = False,
) -> Model:
  """The model of a checkpoint of a training run, or a ported one.

  Args:
    workdir: of `odin_jax.train`, output of `odin_jax.port_weights`, or the
      word for the checkpoint that comes with the project.
    sampling: how samples are drawn.
    batch_size: examples of one call of the network.
    ema: use the moving average of the parameters; a ported checkpoint has one
      set of parameters only.
    step: of the checkpoint; None: the newest.
    is_in_turn: see `sample`.

  Raises:
    errors.UserError: no checkpoint there; a part of the model is not there;
      guidance for a model that was trained without dropping its condition; too
      many steps, or steps that its prediction cannot take.
  """
  checkpoints, step, config = checkpoint.open_step(workdir, step)
  sampling = completed(sampling, config)
  _check(str(workdir), sampling, config)
  checkpoint.warn_of_other_units(workdir, config)
  averaged = ema and not checkpoint.is_ported(config)
  # Of several processes each predicts for itself.
  mesh = sharding.local_mesh()
  abstract = jax.eval_shape(lambda: odin.init_params(config))
  everywhere = sharding.replicated(mesh)
  params = checkpoints.restore_params(
    step,
    'ema' if averaged else 'params',
    abstract,
    jax.tree.map(lambda _: everywhere, abstract),
  )
  frozen = checkpoints.restore_encoders(step, config, everywhere)
  checkpoints.close()
  return Model(
    params,
    frozen,
    config,
    mesh=mesh,
    sampling=sampling,
    batch_size=batch_size,
    is_in_turn=is_in_turn,
    protocol={
      'ema': averaged or config.get('ported_average', False),
      'ported_from': config.get('ported_from'),
      'checkpoint_step': step,
      'started_from': config.get('init') or None,
      'pretraining_seeds': pretrained.seeds(workdir, config),
      # A ported one tells nothing of its training.
      'training_steps': None
      if checkpoint.is_ported(config)
      else config['steps'],
      'params_sha256': checkpoint.params_sha256(params),
      'conditioning': config['model']['conditioning'],
      'prediction': config['diffusion']['prediction'],
      'recipe': config['recipe'],
    },
  )
