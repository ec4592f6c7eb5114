"""What the denoiser is conditioned on: the source view and the relative pose.

Beside the noisy latent the network always gets the source's latent, as in
Zero-1-to-3 (2303.11328). The rest is composed of parts, whose names are joined
by '+' in the config, as in `clip+se3+plucker`:

  se3      a token of `target2source`, field of view and scene scale;
  clip     the embedding of the source by an image encoder, as a token;
  zero123  that embedding and Zero-1-to-3's pose of a camera around an object;
  zeronvs  that embedding and ZeroNVS's pose of a camera (2310.17994);
  stable-zero123  that embedding and the pose of Stable Zero123, whose last
           number is the source's angle from up, not a change of distance;
  plucker  channels: at every latent pixel the rays of both cameras;
  rays     channels: the target's rays; and a token for every latent pixel of
           the source, with its ray in the target's axes, so that attention
           compares like with like;
  sweep    channels: the source as seen from the target on spheres of a few
           distances (`odin_jax.models.sweep`), encoded, with the share of
           every latent pixel that the source sees; of several sources their
           mean, and how well they agree.
  time     a token of when source and target were taken, seconds of their video;
           views whose times are not known are of one moment, the video's first.

A new part is a subclass of `Part` and a row of `PARTS`, whose key is its name
in the config; nothing else has to know of it. The class says

  * what it adds: `channels`, `tokens` or both;
  * `channel_names`, a name for every channel: training that starts from another
    model (`odin_jax.training.warm_start`) takes the weights of channels of the
    same name and gives zeros to new ones, so a name has to tell all that gives
    the channel its meaning, options of the config among it;
  * `prepares`, what it needs of the frozen encoders, made once per pair, and
    with `needs_image` whether there has to be an image encoder, with
    `needs_times` whether records have to give the times of their views;
  * `sharding`, the mesh axes of every parameter that it has.

Its arrays are parameters; constants are Python numbers and tuples.

It is built from the whole config and reads its own options there, which are
fields of `model` in configs/train.py, as `fourier_bands` is.
"""

import functools
import re
from typing import Any, Callable, ClassVar, Mapping, NamedTuple, TypedDict

from einops import rearrange, reduce
from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from odin_jax.models import (
  encoders,
  layers,
  rays,
  reference_poses,
  sweep,
  views,
)
from odin_jax.shared import posed_pair

Config = Mapping[str, Any]
Pose = Float[Array, '*b 3 4']
Scalar = Float[Array, '*b']


class Condition(TypedDict):
  """What parts make channels and tokens of, computed once per pair.

  Keys:
    source: [b n n c], latent of the source view.
    target2source, fov_deg, median_depth: see `posed_pair.PosedPair`.
    prepared: by its name, what a part of the config has prepared.
  """

  source: Array
  target2source: Array
  fov_deg: Array
  median_depth: Array
  prepared: Mapping[str, Array]


# Makes an entry of `Condition.prepared`: an array with a row for every pair.
Prepare = Callable[[encoders.Encoders, Config, posed_pair.PosedPair], Array]
# The mesh axis that splits each dimension of a parameter; None: not split. A
# parameter without any, (), is on every device.
Axes = tuple[str | None, ...]


def num_sources(config: Config) -> int:
  """The most views at once that a model is made for; ported ones take one."""
  return config['model'].get('sources', 1)


class Drop(NamedTuple):
  """Which examples lose their tokens, and which their channels (True)."""

  tokens: Bool[Array, 'b']
  channels: Bool[Array, 'b']


def draw_drop(uniform: Float[Array, 'b'], rate: float) -> Drop:
  """The dropout that teaches the network to do without its condition.

  One number decides on both: tokens alone, channels alone and both together
  are each dropped with probability `rate`. It is the rule of Zero-1-to-3
  (cvlab-columbia/zero123 `ldm/models/diffusion/ddpm.py`, `get_input`).

  Args:
    uniform: one draw from [0, 1) per example.
    rate: at most 1/3; the reference's is 0.05.
  """
  return Drop(
    tokens=uniform < 2 * rate,
    channels=(uniform >= rate) & (uniform < 3 * rate),
  )


def null(
  channels: Float[Array, 'b n n e'], context: Float[Array, 'b m d']
) -> tuple[Float[Array, 'b n n e'], Float[Array, 'b m d']]:
  """The null condition of classifier-free guidance, as Zero-1-to-3 samples.

  Its tokens are zeros, whereas those that training drops keep the pose where
  the part says so.
  """
  return jnp.zeros_like(channels), jnp.zeros_like(context)


def zero123_init(
  key: Array, image_width: int, pose_width: int, outputs: int
) -> Float[Array, 'inputs outputs']:
  """Kernel that passes the image's embedding on and is random in the pose.

  As Zero-1-to-3 starts: the pose has the default of a linear layer in PyTorch,
  uniform in +-1 / sqrt(number of inputs).
  """
  bound = (image_width + pose_width) ** -0.5
  pose = jax.random.uniform(
    key, (pose_width, outputs), minval=-bound, maxval=bound
  )
  return jnp.concatenate([jnp.eye(image_width, outputs), pose])


def _zero_where(dropped: Bool[Array, 'b'], values: Array) -> Array:
  """The values, zero in the examples that are dropped."""
  dropped = dropped.reshape(-1, *(1,) * (values.ndim - 1))
  return jnp.where(dropped, jnp.zeros((), values.dtype), values)


class Part(nnx.Module):
  """Something to condition the denoiser on: channels, tokens, or both.

  Attributes:
    needs_image: whether it reads the embedding of an image encoder.
    needs_times: whether it reads `PosedPair.times_s`.
    pose_width: where it is one projection of that embedding and a pose's vector,
      the size of that vector: such parts are known in other projects.
    prepares: by its name, what it reads of `Condition.prepared`. Parts that
      name the same function share what it makes.
    sharding: by its path within the part (a regular expression for the whole of
      it), the axes of every parameter.

  Args:
    config: a whole training config.
    rngs: of the initial parameters.
  """

  needs_image: ClassVar[bool] = False
  needs_times: ClassVar[bool] = False
  pose_width: ClassVar[int] = 0
  prepares: ClassVar[Mapping[str, Prepare]] = {}
  sharding: ClassVar[Mapping[str, Axes]] = {}

  def __init__(self, config: Config, *, rngs: nnx.Rngs):
    del config, rngs

  @classmethod
  def channel_names(cls, config: Config) -> tuple[str, ...]:
    """What each of its channels means; as many names as it has channels."""
    return ()

  def channels(self, condition: Condition) -> Array | None:
    """[b n n e], a channel for each of its names, or None if it has none."""
    return None

  def tokens(
    self, condition: Condition, dropped: Bool[Array, 'b']
  ) -> Array | None:
    """[b m context_dim] with what is dropped away, or None if it has none."""
    return None


def _context_dim(config: Config) -> int:
  return config['model']['unet']['context_dim']


VIEW_NUMBERS = ('fov_rad', 'log_median_depth', 'is_median_depth_known')


def view_numbers(fov_deg: Scalar, median_depth: Scalar) -> Float[Array, '*b 3']:
  """What is known of a source beside its pixels: the `VIEW_NUMBERS`."""
  known = median_depth > 0
  return jnp.stack(
    [
      jnp.deg2rad(fov_deg),
      jnp.log(jnp.where(known, median_depth, 1.0)),
      known.astype(median_depth.dtype),
    ],
    axis=-1,
  )


class Se3(Part):
  """A token of the pose, the field of view and the scale."""

  # Two layers share the hidden dimension out over `tensor`: the first its
  # outputs, the second its inputs, so one reduction serves both.
  sharding = {
    'pose1/kernel': ('fsdp', 'tensor'),
    'pose2/kernel': ('tensor', 'fsdp'),
    r'pose[12]/bias': (),
  }

  def __init__(self, config: Config, *, rngs: nnx.Rngs):
    width = _context_dim(config)
    self.pose1 = layers.Linear(15, width, rngs=rngs)
    self.pose2 = layers.Linear(width, width, rngs=rngs)

  def tokens(self, condition: Condition, dropped: Array) -> Array:
    numbers = view_numbers(condition['fov_deg'], condition['median_depth'])
    pose = rearrange(condition['target2source'], 'b i j -> b (i j)')
    numbers = jnp.concatenate([pose, numbers], axis=-1)
    token = self.pose2(nnx.silu(self.pose1(numbers)))
    return _zero_where(dropped, token)[:, None]


def image_embedding(
  frozen: encoders.Encoders, config: Config, pairs: posed_pair.PosedPair
) -> Float[Array, 'b d']:
  """Of the source, by the image encoder."""
  del config
  return encoders.embedding(frozen, pairs.source, pairs.source_encoded)


class Clip(Part):
  """The embedding of the source; projected if the context is not as wide."""

  needs_image = True
  prepares = {'image_embedding': image_embedding}
  sharding = {'projection/kernel': ('fsdp', 'tensor'), 'projection/bias': ()}

  def __init__(self, config: Config, *, rngs: nnx.Rngs):
    image_width = encoders.image_width(config)
    self.projection = (
      None
      if image_width == _context_dim(config)
      else layers.Linear(image_width, _context_dim(config), rngs=rngs)
    )

  def tokens(self, condition: Condition, dropped: Array) -> Array:
    token = condition['prepared']['image_embedding']
    if self.projection is not None:
      token = self.projection(token)
    return _zero_where(dropped, token)[:, None]


class _ImageAndPose(Part):
  """A token projected from the embedding and a pose; dropping keeps the pose.

  Dropped embeddings are zeros before the projection, as in training of
  Zero-1-to-3 (cvlab-columbia/zero123 `ldm/models/diffusion/ddpm.py`,
  `get_input`: `null_prompt` is zeros) and of ZeroNVS (the same file of
  kylesargent/zeronvs_diffusion).
  """

  needs_image = True
  prepares = {'image_embedding': image_embedding}
  sharding = {'projection/kernel': ('fsdp', 'tensor'), 'projection/bias': ()}

  def __init__(self, config: Config, *, rngs: nnx.Rngs):
    image_width = encoders.image_width(config)
    context_dim = _context_dim(config)
    self.projection = layers.Linear(
      image_width + self.pose_width, context_dim, rngs=rngs
    )
    self.projection.kernel[...] = zero123_init(
      rngs.params(), image_width, self.pose_width, context_dim
    )

  def _token(self, condition: Condition, dropped: Array, pose: Array) -> Array:
    """[b 1 context_dim] of the embedding and of poses [b pose_width]."""
    image = _zero_where(dropped, condition['prepared']['image_embedding'])
    token = self.projection(jnp.concatenate([image, pose], axis=-1))
    return token[:, None]


class Zero123(_ImageAndPose):
  """The token of Zero-1-to-3."""

  pose_width = 4

  def tokens(self, condition: Condition, dropped: Array) -> Array:
    pose = reference_poses.zero123_vector(
      condition['target2source'], condition['median_depth']
    )
    return self._token(condition, dropped, pose)


class StableZero123(_ImageAndPose):
  """The token of Stable Zero123."""

  pose_width = 4

  def tokens(self, condition: Condition, dropped: Array) -> Array:
    pose = reference_poses.stable_zero123_vector(
      condition['target2source'], condition['median_depth']
    )
    return self._token(condition, dropped, pose)


class ZeroNvs(_ImageAndPose):
  """The token of ZeroNVS."""

  pose_width = 19

  def tokens(self, condition: Condition, dropped: Array) -> Array:
    pose = reference_poses.zeronvs_vector(
      condition['target2source'],
      condition['fov_deg'],
      condition['median_depth'],
    )
    return self._token(condition, dropped, pose)


def _directions(condition: Condition) -> Float[Array, 'b n 3']:
  """Rays of either camera, in its own axes, through its latent pixels."""
  return rays.camera_rays(condition['fov_deg'], condition['source'].shape[1])


def _as_image(
  features: Float[Array, 'b n f'], condition: Condition
) -> Float[Array, 'b i j f']:
  """Features of rays, row by row, as channels of latent pixels."""
  size = condition['source'].shape[1]
  return rearrange(features, 'b (i j) f -> b i j f', i=size)


def _fourier_names(views: tuple[str, ...], config: Config) -> tuple[str, ...]:
  """Names of the Fourier features of one ray of each view, in this order."""
  numbers = [f'{view}.{name}' for view in views for name in rays.PLUCKER]
  return rays.fourier_names(numbers, config['model']['fourier_bands'])


class Plucker(Part):
  """Channels: rays of the target, then of the source, in the source's axes."""

  def __init__(self, config: Config, *, rngs: nnx.Rngs):
    del rngs
    self.bands = config['model']['fourier_bands']

  @classmethod
  def channel_names(cls, config: Config) -> tuple[str, ...]:
    return _fourier_names(('target', 'source'), config)

  def channels(self, condition: Condition) -> Array:
    directions = _directions(condition)
    target = rays.plucker(directions, condition['target2source'])
    both = jnp.concatenate([target, rays.own_plucker(directions)], axis=-1)
    return _as_image(rays.fourier_features(both, self.bands), condition)


class Rays(Part):
  """Channels: the target's rays. Tokens: the source's latents with rays."""

  sharding = {
    'source1/kernel': ('fsdp', 'tensor'),
    'source2/kernel': ('tensor', 'fsdp'),
    r'source[12]/bias': (),
  }

  def __init__(self, config: Config, *, rngs: nnx.Rngs):
    self.bands = config['model']['fourier_bands']
    # The source's rays have as many features as the target's.
    features = len(self.channel_names(config))
    inputs = encoders.latent_channels(config) + features
    width = _context_dim(config)
    self.source1 = layers.Linear(inputs, width, rngs=rngs)
    self.source2 = layers.Linear(width, width, rngs=rngs)

  @classmethod
  def channel_names(cls, config: Config) -> tuple[str, ...]:
    return _fourier_names(('target',), config)

  def channels(self, condition: Condition) -> Array:
    target = rays.own_plucker(_directions(condition))
    return _as_image(rays.fourier_features(target, self.bands), condition)

  def tokens(self, condition: Condition, dropped: Array) -> Array:
    source2target = rays.inverse(condition['target2source'])
    features = rays.fourier_features(
      rays.plucker(_directions(condition), source2target), self.bands
    )
    latents = rearrange(condition['source'], 'b i j c -> b (i j) c')
    tokens = jnp.concatenate([latents, features], axis=-1)
    tokens = self.source2(nnx.silu(self.source1(tokens)))
    return _zero_where(dropped, tokens)


def _sweep_channels(
  frozen: encoders.Encoders, config: Config, pairs: posed_pair.PosedPair
) -> Float[Array, 'b i j e']:
  """Latents of the sweep's images, the visible share of each, agreement."""
  distances = config['model']['sweep_distances']
  given = views.given(pairs)
  num_views = given.image.shape[1]
  swept, shown = sweep.sweep(
    views.flat(given.image),
    views.flat(given.target2view),
    jnp.repeat(pairs.fov_deg, num_views),
    distances,
    views.flat(given.fov_deg),
  )
  swept = views.unflat(swept, num_views)
  shown = views.unflat(shown, num_views)
  shown = shown * given.is_there[..., None, None, None]
  visible = shown.max(axis=1)
  mean = jnp.einsum('bvkyxc,bvkyx->bkyxc', swept, shown)
  mean = mean / jnp.maximum(shown.sum(axis=1), 1)[..., None]
  # Where none sees it the first one's mean colour stays.
  mean = jnp.where(visible[..., None] > 0, mean, swept[:, 0])
  count, size = mean.shape[1], encoders.latent_size(config)
  latents = frozen.autoencoder.encode(
    rearrange(mean, 'b k y x c -> (b k) y x c')
  )
  latents = rearrange(latents, '(b k) i j c -> b i j (k c)', k=count)
  coarser = functools.partial(
    reduce, pattern='b k (i y) (j x) -> b i j k', reduction='mean'
  )
  channels = [latents, coarser(visible, i=size, j=size)]
  if num_sources(config) > 1:
    agrees = sweep.agreement(
      rearrange(swept, 'b v k y x c -> b v k (y x) c'),
      rearrange(shown, 'b v k y x -> b v k (y x)') > 0,
    )
    agrees = rearrange(agrees, 'b k (y x) -> b k y x', y=mean.shape[2])
    channels.append(coarser(agrees, i=size, j=size))
  return jnp.concatenate(channels, axis=-1)


class Sweep(Part):
  """Channels: the latents of the sweep and what of it the sources see."""

  prepares = {'sweep': _sweep_channels}

  @classmethod
  def channel_names(cls, config: Config) -> tuple[str, ...]:
    distances = [float(x) for x in config['model']['sweep_distances']]
    latent = range(encoders.latent_channels(config))
    compared = distances if num_sources(config) > 1 else []
    return (
      *(f'{distance}.latent{i}' for distance in distances for i in latent),
      *(f'{distance}.visible' for distance in distances),
      *(f'{distance}.agreement' for distance in compared),
    )

  def channels(self, condition: Condition) -> Array:
    return condition['prepared']['sweep']


# Of the waves that tell times apart, seconds: pairs are seconds apart, videos
# minutes long.
_PERIODS_S = tuple(2.0**k for k in range(1, 10))


def time_features(times_s: Float[Array, '*b 2']) -> Float[Array, '*b f']:
  """Sine and cosine of the source's time, and of what passes to the target's.

  Args:
    times_s: of source and target, seconds.
  """
  source, target = times_s[..., 0], times_s[..., 1]
  numbers = jnp.stack([source, target - source], axis=-1)
  angles = 2 * jnp.pi * numbers[..., None] / jnp.array(_PERIODS_S)
  angles = rearrange(angles, '... n p -> ... (n p)')
  return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def times(
  frozen: encoders.Encoders, config: Config, pairs: posed_pair.PosedPair
) -> Float[Array, 'b 2']:
  """Those of the pairs; zeros where they are not known."""
  del frozen, config
  if pairs.times_s is None:
    return jnp.zeros((len(pairs.target2source), 2))
  return pairs.times_s


class Time(Part):
  """A token of when the two views were taken."""

  needs_times = True
  prepares = {'times': times}
  sharding = {
    'time1/kernel': ('fsdp', 'tensor'),
    'time2/kernel': ('tensor', 'fsdp'),
    r'time[12]/bias': (),
  }

  def __init__(self, config: Config, *, rngs: nnx.Rngs):
    width = _context_dim(config)
    self.time1 = layers.Linear(4 * len(_PERIODS_S), width, rngs=rngs)
    self.time2 = layers.Linear(width, width, rngs=rngs)

  def tokens(self, condition: Condition, dropped: Array) -> Array:
    features = time_features(condition['prepared']['times'])
    token = self.time2(nnx.silu(self.time1(features)))
    return _zero_where(dropped, token)[:, None]


PARTS: dict[str, type[Part]] = {
  'se3': Se3,
  'clip': Clip,
  'zero123': Zero123,
  'zeronvs': ZeroNvs,
  'stable-zero123': StableZero123,
  'plucker': Plucker,
  'rays': Rays,
  'sweep': Sweep,
  'time': Time,
}


def parse(names: str) -> tuple[str, ...]:
  """The parts that a config names.

  Raises:
    ValueError: one of them is unknown or comes twice.
  """
  parts = tuple(names.split('+'))
  for index, name in enumerate(parts):
    if name not in PARTS:
      raise ValueError(
        f'conditioning {names!r}: {name!r} is none of {", ".join(PARTS)}'
      )
    if name in parts[:index]:
      raise ValueError(
        f'conditioning {names!r}: {name!r} comes twice; name each of '
        f'{", ".join(PARTS)} at most once'
      )
  return parts


def needs_times(config: Config) -> bool:
  """Whether a part reads `PosedPair.times_s`."""
  names = parse(config['model']['conditioning'])
  return any(PARTS[name].needs_times for name in names)


def channel_names(config: Config) -> tuple[str, ...]:
  """Names of the channels that are concatenated after the noisy latent.

  Those of the source's latent, then those of the parts in their order, each
  after the name of its part and a dot.

  Raises:
    ValueError: `parse` does, or two channels have one name.
  """
  names = [f'source.{i}' for i in range(encoders.latent_channels(config))]
  for part in parse(config['model']['conditioning']):
    names += [f'{part}.{name}' for name in PARTS[part].channel_names(config)]
  for index, name in enumerate(names):
    if name in names[:index]:
      raise ValueError(
        f'conditioning {config["model"]["conditioning"]!r}: two channels are '
        f'named {name!r}'
      )
  return tuple(names)


def prepare(
  frozen: encoders.Encoders, config: Config, pairs: posed_pair.PosedPair
) -> dict[str, Array]:
  """What the parts of a config prepare, each entry once.

  Raises:
    ValueError: two parts give one name to different things.
  """
  functions: dict[str, Prepare] = {}
  for part in parse(config['model']['conditioning']):
    for name, function in PARTS[part].prepares.items():
      if functions.setdefault(name, function) is not function:
        raise ValueError(
          f'conditioning {part!r}: {name!r} is what another part prepares'
        )
  return {
    name: function(frozen, config, pairs)
    for name, function in functions.items()
  }


def sharding_rules() -> dict[str, Axes]:
  """By its path in a `Conditioning`, the axes of every parameter of any part.

  Returns:
    a regular expression for each whole path, and the axes.
  """
  return {
    f'parts/{re.escape(name)}/(?:{pattern})': axes
    for name, part in PARTS.items()
    for pattern, axes in part.sharding.items()
  }


class Conditioning(nnx.Module):
  """Channels to concatenate after the noisy latent, and a context of tokens.

  Args:
    config: a whole training config; its `model.conditioning` names `PARTS`,
      joined by '+'.
    rngs: of the initial parameters.

  Raises:
    ValueError: `channel_names` does, or a part needs an image encoder and
      there is none.
  """

  def __init__(self, config: Config, *, rngs: nnx.Rngs):
    self.names = parse(config['model']['conditioning'])
    image_width = encoders.image_width(config)
    for name in self.names:
      if PARTS[name].needs_image and image_width <= 0:
        raise ValueError(
          f'conditioning {name!r} needs image_width > 0, which is that of an '
          f'image encoder; it is {image_width}'
        )
    self.parts = nnx.Dict(
      {name: PARTS[name](config, rngs=rngs) for name in self.names}
    )
    self.context_dim = _context_dim(config)
    self.num_channels = len(channel_names(config))

  def __call__(
    self, condition: Condition, drop: Drop
  ) -> tuple[Float[Array, 'b n n e'], Float[Array, 'b m d']]:
    """Channels and context of every example.

    Args:
      condition: of every example.
      drop: whose channels become zeros, and whose tokens each part drops in
        its own way.

    Returns:
      a channel for each of `channel_names`; and the tokens of all parts, or
      one token of zeros if no part has any.

    Raises:
      ValueError: the parts give more or fewer channels than they name.
    """
    # An nnx.Dict forgets its order when it is split and merged.
    parts = [self.parts[name] for name in self.names]
    source = condition['source']
    channels = [part.channels(condition) for part in parts]
    channels = [source, *(x for x in channels if x is not None)]
    channels = jnp.concatenate(channels, axis=-1)
    if channels.shape[-1] != self.num_channels:
      raise ValueError(
        f'conditioning {"+".join(self.names)!r}: {channels.shape[-1]} channels '
        f'under {self.num_channels} names'
      )
    tokens = [part.tokens(condition, drop.tokens) for part in parts]
    tokens = [x for x in tokens if x is not None]
    if not tokens:
      tokens = [jnp.zeros((len(source), 1, self.context_dim), source.dtype)]
    return (
      _zero_where(drop.channels, channels),
      jnp.concatenate(tokens, axis=1),
    )
