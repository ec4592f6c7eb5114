"""The training state and one pure step of it."""

from typing import Any, Callable, Mapping, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import optax

from odin_jax import sharding
from odin_jax.diffusion import loss as diffusion_loss
from odin_jax.diffusion import schedule
from odin_jax.models import (
  conditioning,
  encoders,
  lpips,
  multisphere,
  odin,
  ops,
)
from odin_jax.shared import posed_pair

Config = Mapping[str, Any]
# params, ema, optimizer and step: a plain pytree of arrays.
State = dict[str, Any]
# Of the first layer of AlexNet.
_STRIDE_PX = 4


def learning_rate(config: Config) -> optax.Schedule:
  """Linear warm-up, then constant or half a cosine down to zero at `steps`."""
  optimizer = config['optimizer']
  if optimizer['schedule'] == 'constant':
    return optax.warmup_constant_schedule(
      0.0, optimizer['learning_rate'], max(optimizer['warmup_steps'], 1)
    )
  return optax.warmup_cosine_decay_schedule(
    init_value=0.0,
    peak_value=optimizer['learning_rate'],
    warmup_steps=optimizer['warmup_steps'],
    decay_steps=max(config['steps'], optimizer['warmup_steps'] + 1),
  )


def _adamw(config: Config) -> optax.GradientTransformation:
  settings = config['optimizer']
  return optax.adamw(
    learning_rate(config),
    b1=settings['b1'],
    b2=settings['b2'],
    weight_decay=settings['weight_decay'],
    mask=_is_kernel,
  )


def _muon(config: Config) -> optax.GradientTransformation:
  """Muon for kernels, AdamW with Nesterov's momentum for vectors.

  Updates of kernels have the root mean square that is usual for AdamW's, so
  that its learning rates serve (Liu et al. 2502.16982, section 2.2). A
  convolution is a matrix from all that it sees to its outputs.
  """
  settings = config['optimizer']

  def dimensions(params: Any) -> Any:
    return jax.tree.map(
      lambda p: optax.contrib.MuonDimensionNumbers(
        reduction_axis=tuple(range(p.ndim - 1)), output_axis=p.ndim - 1
      )
      if p.ndim > 1
      else None,
      params,
    )

  return optax.contrib.muon(
    learning_rate(config),
    weight_decay=settings['weight_decay'],
    adam_b1=settings['b1'],
    adam_b2=settings['b2'],
    muon_weight_dimension_numbers=dimensions,
    consistent_rms=0.2,
  )


def _adafactor(config: Config) -> optax.GradientTransformation:
  """Adafactor without momentum (Shazeer and Stern 2018, 1804.04235).

  Second moments of kernels are kept as means over rows and columns: next to no
  memory, where Adam has two arrays as large as the parameters. Learning rate
  and decay are those of AdamW: neither is scaled by the parameters' size.
  """
  settings = config['optimizer']
  return optax.chain(
    optax.scale_by_factored_rms(),
    optax.clip_by_block_rms(1.0),
    optax.add_decayed_weights(settings['weight_decay'], mask=_is_kernel),
    optax.scale_by_learning_rate(learning_rate(config)),
  )


def _is_kernel(params: Any) -> Any:
  return jax.tree.map(lambda p: p.ndim > 1, params)


OPTIMIZERS = {'adamw': _adamw, 'adafactor': _adafactor, 'muon': _muon}


def optimizer(config: Config) -> optax.GradientTransformation:
  """The config's optimiser, after the gradient's norm is clipped.

  The parameters of the conditioning learn `conditioning_factor` times as fast,
  as the pose projection of Zero-1-to-3 does.
  """
  settings = config['optimizer']
  return optax.chain(
    optax.clip_by_global_norm(settings['max_gradient_norm']),
    OPTIMIZERS[settings['kind']](config),
    optax.masked(
      optax.scale(settings['conditioning_factor']),
      lambda params: {
        name: jax.tree.map(lambda _: name == 'conditioning', network)
        for name, network in params.items()
      },
    ),
  )


def init(config: Config) -> State:
  """The state of step 0, a function of the config's seed alone."""
  return state_of(config, odin.init_params(config))


def state_of(config: Config, params: Any) -> State:
  """The state of step 0 with these parameters."""
  return {
    'params': params,
    'ema': jax.tree.map(jnp.copy, params),
    'optimizer': optimizer(config).init(params),
    'step': jnp.zeros((), jnp.int32),
  }


def ema_decay(config: Config, update: Array) -> Array:
  """Decay of the moving average at its `update`-th update, the first being 1.

  Short while the run is young, as `LitEma` of latent diffusion has it.
  """
  update = update.astype(jnp.float32)
  return jnp.minimum(config['ema_decay'], (1 + update) / (10 + update))


def _shifted_alike(
  key: Array, patch_px: int, *images: lpips.Images
) -> list[lpips.Images]:
  """All pictures moved by the same few pixels, drawn anew each step.

  AlexNet looks at every fourth pixel, further layers at every eighth and
  sixteenth: where patches always lie alike among these, pictures learn a grid.
  """
  places = max(_STRIDE_PX, patch_px)
  most = places - 1
  corner = jax.random.randint(key, (2,), 0, places)
  return [
    jax.lax.dynamic_slice(
      jnp.pad(x, ((0, 0), (most, 0), (most, 0), (0, 0)), mode='edge'),
      (0, *corner, 0),
      x.shape,
    )
    for x in images
  ]


class Part(NamedTuple):
  """A part of a batch: every `of`-th example, from the `index`-th on.

  So each device has its share of every part, and none is moved.
  """

  index: Array | int
  of: int

  def rows(self, values: Array) -> Array:
    """Its own of values of the whole batch."""
    if self.of == 1:
      return values
    return _parts(values, self.of)[:, self.index]


_WHOLE = Part(0, 1)


def _parts(values: Array, count: int) -> Array:
  return values.reshape(-1, count, *values.shape[1:])


def batch_loss(
  model: odin.Odin,
  config: Config,
  frozen: encoders.Encoders,
  batch: posed_pair.PosedPair,
  key: Array,
  perceptual: lpips.Lpips | None = None,
  part: Part = _WHOLE,
) -> tuple[Float[Array, ''], dict[str, Array]]:
  """Mean loss of a batch, and figures of it: see `train_step`.

  Of a part of a batch what is drawn is what the whole batch would draw for it.
  """
  settings = config['diffusion']
  prediction = settings['prediction']
  keys = jax.random.split(key, 5)
  count = batch.target2source.shape[0] * part.of
  size = encoders.latent_size(config)
  latents = (count, size, size, encoders.latent_channels(config))
  timesteps = schedule.sample_timesteps(
    keys[0],
    count,
    settings['num_timesteps'],
    power=settings['timestep_power'],
    terminal_share=settings['terminal_share'],
  )
  timesteps, noise, uniform, posterior = (
    sharding.by_example(part.rows(drawn))
    for drawn in (
      timesteps,
      jax.random.normal(keys[1], latents),
      jax.random.uniform(keys[2], (count,)),
      jax.random.normal(keys[3], latents),
    )
  )
  condition = odin.condition(frozen, config, batch)
  x0 = encoders.latents(frozen, batch.target, batch.target_encoded, posterior)
  drop = conditioning.draw_drop(uniform, settings['condition_dropout'])
  alpha_bars = schedule.alpha_bars(
    settings['schedule'],
    settings['num_timesteps'],
    zero_terminal_snr=settings['zero_terminal_snr'],
  )
  alpha_bar = jnp.asarray(alpha_bars, jnp.float32)[timesteps]
  cond = model.cond(condition, drop)
  output, mask_logit, blended = model.denoise(
    schedule.diffuse(x0, noise, alpha_bar),
    timesteps.astype(jnp.float32),
    cond,
  )
  error = diffusion_loss.squared_error(
    output, schedule.target(prediction, x0, noise, alpha_bar)
  )
  losses = diffusion_loss.masked_loss(
    error,
    mask_logit,
    mask_lambda=settings['mask_lambda'],
    auxiliary=settings['mask_auxiliary'],
  )
  if settings['min_snr_gamma']:
    losses *= schedule.min_snr_weight(
      prediction, alpha_bar, settings['min_snr_gamma']
    )
  if settings['max_v_weight']:
    losses *= schedule.v_weight(alpha_bar, settings['max_v_weight'])
  figures = {'mask_mean': jax.nn.sigmoid(mask_logit).mean()}
  if blended is not None and batch.source_depth is not None:
    of_depth = multisphere.depth_losses(config, batch, cond.blend, blended)
    figures['source_depth_loss'], figures['target_depth_loss'] = (
      values.mean() for values in of_depth
    )
    losses += config['model']['spheres']['depth_weight'] * sum(of_depth)
  if perceptual is not None:
    distance = perceptual.distance(
      *_shifted_alike(
        keys[4], model.patch_px, blended.picture, batch.target / 255.0
      )
    )
    # The best answer to noise alone is the mean of all pictures, which looks
    # like none of them.
    distance = jnp.where(
      timesteps < settings['num_timesteps'] - 1, distance, 0.0
    )
    figures['perceptual_loss'] = distance.mean()
    losses += config['model']['spheres']['perceptual_weight'] * distance
  quarters = jax.nn.one_hot(timesteps * 4 // settings['num_timesteps'], 4)
  figures['loss_sums'] = losses @ quarters
  figures['loss_counts'] = quarters.sum(axis=0)
  return losses.mean(), figures


def _sum_dtype(config: Config) -> str:
  return config.get('optimizer', {}).get('gradient_sum_dtype', 'compute')


def _accumulated(
  function: Callable[[posed_pair.PosedPair, Part], Any],
  batch: posed_pair.PosedPair,
  count: int,
) -> Any:
  """The mean of a function of the parts of a batch, one after the other."""
  if count == 1:
    return function(batch, _WHOLE)
  parts = jax.tree.map(lambda x: _parts(x, count).swapaxes(0, 1), batch)

  def add(total: Any, index_and_batch: tuple[Array, Any]) -> tuple[Any, None]:
    index, batch = index_and_batch
    batch = jax.tree.map(sharding.by_example, batch)
    terms = function(batch, Part(index, count))
    return jax.tree.map(jnp.add, total, terms), None

  first = jax.tree.map(lambda x: x[0], parts)
  shapes = jax.eval_shape(lambda batch: function(batch, Part(0, count)), first)
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  total, _ = jax.lax.scan(add, zeros, (jnp.arange(count), parts))
  return jax.tree.map(lambda x: x / count, total)


def train_step(
  state: State,
  batch: posed_pair.PosedPair,
  frozen: encoders.Encoders,
  perceptual: lpips.Lpips | None = None,
  *,
  config: Config,
  graphdef: nnx.GraphDef,
) -> tuple[State, dict[str, Array]]:
  """The next state, and figures of the batch and of the step.

  These are `loss` and `mask_mean`; `loss_sums` and `loss_counts` of the
  examples by the quarter of their timestep; `gradient_norm` before it is
  clipped; `update_norm` and `params_norm`, and whether `params_finite`. With
  depths also `source_depth_loss` and `target_depth_loss`, which are parts
  of the loss: see `multisphere.depth_losses`; with LPIPS `perceptual_loss`.

  Args:
    state: from `init` or an earlier step.
    batch: of pairs.
    frozen: the encoders.
    perceptual: LPIPS, for models that blend their picture, where it is a part
      of the loss.
    config: the training config; static.
    graphdef: from `odin.graph`; static.
  """
  step = state['step']
  key = jax.random.fold_in(jax.random.key(config['seed']), step)

  def slope(batch: posed_pair.PosedPair, part: Part) -> Any:
    def loss_of(params: Any) -> tuple[Array, dict[str, Array]]:
      model = nnx.merge(graphdef, params)
      return batch_loss(model, config, frozen, batch, key, perceptual, part)

    return jax.value_and_grad(loss_of, has_aux=True)(state['params'])

  with ops.gradients_summed_in(_sum_dtype(config)):
    (loss, figures), gradients = _accumulated(
      slope, batch, config.get('accumulate_steps', 1)
    )
  updates, opt_state = optimizer(config).update(
    gradients, state['optimizer'], state['params']
  )
  params = optax.apply_updates(state['params'], updates)
  decay = ema_decay(config, step + 1)
  ema = jax.tree.map(
    lambda old, new: decay * old + (1 - decay) * new, state['ema'], params
  )
  state = {
    'params': params,
    'ema': ema,
    'optimizer': opt_state,
    'step': step + 1,
  }
  return state, {
    'loss': loss,
    **figures,
    'gradient_norm': optax.global_norm(gradients),
    'update_norm': optax.global_norm(updates),
    'params_norm': optax.global_norm(params),
    'params_finite': jnp.stack(
      [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params)]
    ).all(),
  }
