"""What the denoiser is told: the source view and the relative pose.

Beside the noisy latent the network always gets the source's latent, as in
Zero-1-to-3 (2303.11328). The rest is composed of parts, whose names are joined
by '+' in the config, as in `clip+se3+plucker`:

  se3      a token of `target2source`, field of view and scene scale;
  clip     the embedding of the source by an image encoder, as a token;
  zero123  that embedding and Zero-1-to-3's pose of a camera around an object;
  zeronvs  that embedding and ZeroNVS's pose of a camera (2310.17994);
  plucker  channels: at every latent pixel the rays of both cameras;
  rays     channels: the target's rays; and a token for every latent pixel of
           the source, with its ray in the target's axes, so that attention
           compares like with like;
  sweep    channels: the source as seen from the target on spheres of a few
           distances (`odin_jax.models.sweep`), encoded, with the share of
           every latent pixel that the source sees.

A new part is a class here and a row of `PARTS`.
"""

from typing import NamedTuple, TypedDict

from einops import rearrange
from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from odin_jax.models import layers, rays

Pose = Float[Array, '*b 3 4']
Scalar = Float[Array, '*b']


class Condition(TypedDict):
  """What a pair of views tells, computed once per pair.

  Keys:
    source: [b n n c], latent of the source view.
    image: [b d], embedding of the source by the image encoder; d = 0 without.
    swept: [b n n s], latents of the sweep and what of it the source sees; s = 0
      but for the part `sweep`.
    target2source: [b 3 4], relative pose, scene units.
    fov_deg: [b], full field of view of both views.
    scale: [b], median depth of the source view, scene units; 0 = not known.
  """

  source: Array
  image: Array
  swept: Array
  target2source: Array
  fov_deg: Array
  scale: Array


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


def zero123_pose(
  source: Float[Array, '*b 3'], target: Float[Array, '*b 3']
) -> Float[Array, '*b 4']:
  """Zero-1-to-3's relative pose of two cameras that look at the origin.

  From cvlab-columbia/zero123 `ldm/data/simple.py`, `get_T`.

  Args:
    source: position of the source camera; +z is up.
    target: position of the target camera.

  Returns:
    change of the angle from +z (radians), sine and cosine of the change of
    azimuth (positive from x to y), change of the distance from the origin;
    each is the target's less the source's.
  """

  def spherical(position: Array) -> tuple[Array, Array, Array]:
    x, y, z = jnp.moveaxis(position, -1, 0)
    horizontal = jnp.hypot(x, y)
    return (
      jnp.arctan2(horizontal, z),
      jnp.arctan2(y, x),
      jnp.hypot(horizontal, z),
    )

  polar, azimuth, radius = (
    b - a for a, b in zip(spherical(source), spherical(target), strict=True)
  )
  return jnp.stack([polar, jnp.sin(azimuth), jnp.cos(azimuth), radius], axis=-1)


def zero123_vector(target2source: Pose, scale: Scalar) -> Float[Array, '*b 4']:
  """Zero-1-to-3's relative pose of any two cameras.

  Zero-1-to-3 knows cameras that look at an object, with z up. A scene has no
  object: the point on the source's optical axis at the scene's distance stands
  for it, and the source camera's -y for up. So the source looks at the object
  from its horizon, and a target that circles it changes angles alone. What the
  vector cannot say is lost: where else the target looks, and its roll.

  Args:
    target2source: relative pose, scene units.
    scale: distance of the object, scene units; where it is 0, 1 is taken.
  """
  distance = jnp.where(scale > 0, scale, 1.0)
  x, y, z = jnp.moveaxis(target2source[..., 3], -1, 0)
  nil = jnp.zeros_like(distance)
  # Axes of the object: x towards the source camera, y to its right, z up.
  return zero123_pose(
    jnp.stack([distance, nil, nil], axis=-1),
    jnp.stack([distance - z, x, -y], axis=-1),
  )


def zeronvs_vector(
  target2source: Pose, fov_deg: Scalar, scale: Scalar
) -> Float[Array, '*b 19']:
  """ZeroNVS's relative pose: a flat 4x4 matrix and the field of view.

  From kylesargent/zeronvs_diffusion `zero123/ldm/data/common.py`, `compute_T`,
  mode `7dof_quantile_scale`. There the scale is the 0.2 quantile of the
  source's depth; here it is its median, the one figure that a record has.

  Args:
    target2source: relative pose, scene units.
    fov_deg: full field of view.
    scale: of the scene, scene units; 1 is taken where it is 0, and never less
      than 0.01.

  Returns:
    16 numbers: the pose in axes x right, y up, z backward (OpenGL), row by
    row, its translation t replaced by 5 tanh(t / (10 scale)); then the field
    of view in radians, its sine and its cosine.
  """
  # inv(source2world) @ target2world is target2source; both cameras' axes turn.
  opengl = jnp.array([1.0, -1.0, -1.0])
  rotation = opengl[:, None] * target2source[..., :3] * opengl
  unit = jnp.where(scale > 0, jnp.maximum(scale, 1e-2), 1.0)[..., None]
  translation = 5 * jnp.tanh(opengl * target2source[..., 3] / unit / 10)
  matrix = jnp.concatenate([rotation, translation[..., None]], axis=-1)
  flat = matrix.reshape(*matrix.shape[:-2], 12)
  last_row = jnp.broadcast_to(jnp.eye(4)[3], (*flat.shape[:-1], 4))
  fov = jnp.deg2rad(fov_deg)[..., None]
  return jnp.concatenate(
    [flat, last_row, fov, jnp.sin(fov), jnp.cos(fov)], axis=-1
  )


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


class Sizes(NamedTuple):
  """Arguments of the same names of `Conditioning`."""

  latent_channels: int
  context_dim: int
  image_width: int
  fourier_bands: int
  sweep_distances: int


class Part(nnx.Module):
  """Something to tell the denoiser: channels, tokens, or both.

  Attributes:
    needs_image: whether it reads the embedding of an image encoder.
    width: number of its channels.
  """

  needs_image = False
  width = 0

  def __init__(self, sizes: Sizes, *, rngs: nnx.Rngs):
    del sizes, rngs

  def channels(self, condition: Condition) -> Array | None:
    """[b n n width], or None if it has none."""
    return None

  def tokens(
    self, condition: Condition, dropped: Bool[Array, 'b']
  ) -> Array | None:
    """[b m context_dim] with what is dropped away, or None if it has none."""
    return None


class Se3(Part):
  """A token of the pose, the field of view and the scale."""

  def __init__(self, sizes: Sizes, *, rngs: nnx.Rngs):
    width = sizes.context_dim
    self.pose1 = layers.Linear(15, width, rngs=rngs)
    self.pose2 = layers.Linear(width, width, rngs=rngs)

  def tokens(self, condition: Condition, dropped: Array) -> Array:
    known = condition['scale'] > 0
    numbers = jnp.stack(
      [
        jnp.deg2rad(condition['fov_deg']),
        jnp.log(jnp.where(known, condition['scale'], 1.0)),
        known.astype(condition['scale'].dtype),
      ],
      axis=-1,
    )
    pose = rearrange(condition['target2source'], 'b i j -> b (i j)')
    numbers = jnp.concatenate([pose, numbers], axis=-1)
    token = self.pose2(nnx.silu(self.pose1(numbers)))
    return _zero_where(dropped, token)[:, None]


class Clip(Part):
  """The embedding of the source; projected if the context is not as wide."""

  needs_image = True

  def __init__(self, sizes: Sizes, *, rngs: nnx.Rngs):
    self.projection = (
      None
      if sizes.image_width == sizes.context_dim
      else layers.Linear(sizes.image_width, sizes.context_dim, rngs=rngs)
    )

  def tokens(self, condition: Condition, dropped: Array) -> Array:
    token = condition['image']
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
  pose_width: int

  def __init__(self, sizes: Sizes, *, rngs: nnx.Rngs):
    self.projection = layers.Linear(
      sizes.image_width + self.pose_width, sizes.context_dim, rngs=rngs
    )
    self.projection.kernel[...] = zero123_init(
      rngs.params(), sizes.image_width, self.pose_width, sizes.context_dim
    )

  def _token(self, condition: Condition, dropped: Array, pose: Array) -> Array:
    """[b 1 context_dim] of the embedding and of poses [b pose_width]."""
    image = _zero_where(dropped, condition['image'])
    token = self.projection(jnp.concatenate([image, pose], axis=-1))
    return token[:, None]


class Zero123(_ImageAndPose):
  """The token of Zero-1-to-3."""

  pose_width = 4

  def tokens(self, condition: Condition, dropped: Array) -> Array:
    pose = zero123_vector(condition['target2source'], condition['scale'])
    return self._token(condition, dropped, pose)


class ZeroNvs(_ImageAndPose):
  """The token of ZeroNVS."""

  pose_width = 19

  def tokens(self, condition: Condition, dropped: Array) -> Array:
    pose = zeronvs_vector(
      condition['target2source'], condition['fov_deg'], condition['scale']
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


class Plucker(Part):
  """Channels: rays of the target, then of the source, in the source's axes."""

  def __init__(self, sizes: Sizes, *, rngs: nnx.Rngs):
    del rngs
    self.bands = sizes.fourier_bands
    self.width = rays.fourier_width(12, sizes.fourier_bands)

  def channels(self, condition: Condition) -> Array:
    directions = _directions(condition)
    target = rays.plucker(directions, condition['target2source'])
    both = jnp.concatenate([target, rays.own_plucker(directions)], axis=-1)
    return _as_image(rays.fourier_features(both, self.bands), condition)


class Rays(Part):
  """Channels: the target's rays. Tokens: the source's latents with rays."""

  def __init__(self, sizes: Sizes, *, rngs: nnx.Rngs):
    self.bands = sizes.fourier_bands
    self.width = rays.fourier_width(6, sizes.fourier_bands)
    inputs, width = sizes.latent_channels + self.width, sizes.context_dim
    self.source1 = layers.Linear(inputs, width, rngs=rngs)
    self.source2 = layers.Linear(width, width, rngs=rngs)

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


class Sweep(Part):
  """Channels: the latents of the sweep and what of it the source sees."""

  def __init__(self, sizes: Sizes, *, rngs: nnx.Rngs):
    del rngs
    self.width = sizes.sweep_distances * (sizes.latent_channels + 1)

  def channels(self, condition: Condition) -> Array:
    return condition['swept']


PARTS: dict[str, type[Part]] = {
  'se3': Se3,
  'clip': Clip,
  'zero123': Zero123,
  'zeronvs': ZeroNvs,
  'plucker': Plucker,
  'rays': Rays,
  'sweep': Sweep,
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


class Conditioning(nnx.Module):
  """Channels to concatenate after the noisy latent, and a context of tokens.

  Args:
    names: of `PARTS`, joined by '+'.
    latent_channels: of the autoencoder.
    context_dim: width of the context's tokens.
    image_width: of the image encoder's embedding; 0 without an encoder.
    fourier_bands: frequencies of the rays' Fourier features; 0 gives the rays
      as they are.
    sweep_distances: number of distances of a sweep.

  Attributes:
    channels: number of channels: the source's latent, then those of the parts
      in the order of their names.

  Raises:
    ValueError: `parse` does, or a part needs an image encoder and there is
      none.
  """

  def __init__(
    self,
    names: str,
    *,
    latent_channels: int,
    context_dim: int,
    image_width: int,
    fourier_bands: int,
    sweep_distances: int,
    rngs: nnx.Rngs,
  ):
    self.names = parse(names)
    for name in self.names:
      if PARTS[name].needs_image and image_width <= 0:
        raise ValueError(
          f'conditioning {name!r} needs image_width > 0, which is that of an '
          f'image encoder; it is {image_width}'
        )
    sizes = Sizes(
      latent_channels=latent_channels,
      context_dim=context_dim,
      image_width=image_width,
      fourier_bands=fourier_bands,
      sweep_distances=sweep_distances,
    )
    self.parts = nnx.Dict(
      {name: PARTS[name](sizes, rngs=rngs) for name in self.names}
    )
    self.context_dim = context_dim
    self.channels = latent_channels + sum(
      self.parts[name].width for name in self.names
    )

  def __call__(
    self, condition: Condition, drop: Drop
  ) -> tuple[Float[Array, 'b n n e'], Float[Array, 'b m d']]:
    """Channels and context of every example.

    Args:
      condition: of every example.
      drop: whose channels become zeros, and whose tokens each part drops in
        its own way.

    Returns:
      `channels` channels; and the tokens of all parts, or one token of zeros
      if no part has any.
    """
    # An nnx.Dict forgets its order when it is split and merged.
    parts = [self.parts[name] for name in self.names]
    source = condition['source']
    channels = [part.channels(condition) for part in parts]
    channels = [source, *(x for x in channels if x is not None)]
    tokens = [part.tokens(condition, drop.tokens) for part in parts]
    tokens = [x for x in tokens if x is not None]
    if not tokens:
      tokens = [jnp.zeros((len(source), 1, self.context_dim), source.dtype)]
    return (
      _zero_where(drop.channels, jnp.concatenate(channels, axis=-1)),
      jnp.concatenate(tokens, axis=1),
    )
