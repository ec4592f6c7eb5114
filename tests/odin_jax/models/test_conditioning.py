"""Conditioning: vectors of the references, its parts, and what dropping does.

Golden vectors are what the public code gives: `get_T` of cvlab-columbia/zero123
`zero123/ldm/data/simple.py` and `compute_T` of kylesargent/zeronvs_diffusion
`zero123/ldm/data/common.py`, mode `7dof_quantile_scale`.
"""

import functools
import itertools

from flax import nnx
import hypothesis
from hypothesis import strategies
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from odin_jax.models import conditioning, encoders, reference_poses, sweep
from odin_jax.shared import camera, posed_pair

ALL = '+'.join(conditioning.PARTS)
SIZE = 3
# Of every part: its channels, and its tokens.
SHAPES = {
  'se3': (0, 1),
  'clip': (0, 1),
  'zero123': (0, 1),
  'stable-zero123': (0, 1),
  'zeronvs': (0, 1),
  'plucker': (60, 0),
  'rays': (30, 9),
  'sweep': (8, 0),
  'time': (0, 1),
}
zero123_pose = jax.jit(reference_poses.zero123_pose)
zero123_vector = jax.jit(reference_poses.zero123_vector)
stable_zero123_pose = jax.jit(reference_poses.stable_zero123_pose)
stable_zero123_vector = jax.jit(reference_poses.stable_zero123_vector)
zeronvs_vector = jax.jit(reference_poses.zeronvs_vector)


def make_config(names, *, image_width=5, context_dim=8, fourier_bands=2):
  return {
    'autoencoder': {'kind': 'pca', 'channels': 3},
    'image_encoder': {'kind': 'clip', 'projection': image_width},
    'model': {
      'conditioning': names,
      'fourier_bands': fourier_bands,
      'sweep_distances': (1.0, 2.5),
      'unet': {'context_dim': context_dim},
    },
  }


@functools.cache
def build(names, **changes):
  """A Conditioning's graph and random parameters: zeros would hide errors."""
  config = make_config(names, **changes)
  graph, shapes = nnx.split(
    nnx.eval_shape(lambda: conditioning.Conditioning(config, rngs=nnx.Rngs(0)))
  )
  generator = np.random.default_rng(1)
  return graph, jax.tree.map(
    lambda leaf: jnp.asarray(generator.normal(0, 0.3, leaf.shape), jnp.float32),
    shapes,
  )


def call(graph, parameters, condition, drop):
  return nnx.merge(graph, parameters)(condition, drop)


run = jax.jit(call, static_argnums=0)


def kept(batch):
  nothing = jnp.zeros(batch, bool)
  return conditioning.Drop(nothing, nothing)


def make_pose(yaw_deg, pitch_deg, translation):
  rotation = camera.view2frame_rotation(yaw_deg, pitch_deg)
  return camera.make_pose(rotation, np.array(translation))


def make_condition(batch=2, **changes):
  """Random, every example with another pose; only the first knows its scale."""
  generator = np.random.default_rng(2)

  def normal(*shape):
    return generator.normal(size=(batch, *shape))

  # Orthogonal matrices without a zero, turned to be rotations.
  rotation = np.linalg.qr(normal(3, 3))[0]
  rotation *= np.linalg.det(rotation)[:, None, None]
  arrays = dict(
    source=normal(SIZE, SIZE, 3),
    prepared=dict(
      image_embedding=normal(5),
      sweep=normal(SIZE, SIZE, 8),
      times=10 * np.abs(normal(2)),
    ),
    target2source=camera.make_pose(rotation, normal(3)),
    fov_deg=np.linspace(60, 90, batch),
    median_depth=np.array([0.7] + [0.0] * (batch - 1)),
  )
  return jax.tree.map(floats, arrays | changes)


def with_embedding(condition, embedding):
  prepared = condition['prepared'] | {'image_embedding': floats(embedding)}
  return condition | {'prepared': prepared}


def floats(values):
  return jnp.asarray(values, jnp.float32)


def below(value):
  return np.nextafter(np.float32(value), np.float32(0))


def test_draw_drop_has_the_thresholds_of_the_reference():
  """r < 0.10 drops the tokens; 0.05 <= r < 0.15 drops the channels."""
  rows = [
    (0.0, True, False),
    (below(0.05), True, False),
    (0.05, True, True),
    (below(0.1), True, True),
    (0.1, False, True),
    (below(0.15), False, True),
    (0.15, False, False),
    (below(1.0), False, False),
  ]
  uniform, tokens, channels = zip(*rows, strict=True)
  drop = conditioning.draw_drop(floats(uniform), 0.05)
  np.testing.assert_array_equal(drop.tokens, tokens)
  np.testing.assert_array_equal(drop.channels, channels)


def test_draw_drop_never_drops_at_rate_zero():
  drop = conditioning.draw_drop(floats([0.0, 0.5]), 0.0)
  assert not drop.tokens.any() and not drop.channels.any()


def test_zero123_pose_is_that_of_the_reference():
  source = [(1.5, 0, 0), (1, -2, 0.5), (0.3, 0.4, -1.2), (0, -1, 1)]
  target = [(0, 2, 0), (-0.7, 0.4, 1.9), (-2, -0.1, -0.6), (1, 0, 1)]
  expected = [
    (0, 1, 0, 0.5),
    (-0.949505866, -0.554700196, -0.832050323, -0.227311105),
    (-0.884891868, 0.769039273, -0.639201522, 0.790454507),
    (0, 1, 0, 0),
  ]
  vector = zero123_pose(floats(source), floats(target))
  np.testing.assert_allclose(vector, expected, atol=1e-6)


def position(azimuth_deg, elevation_deg, radius):
  azimuth, elevation = np.deg2rad([azimuth_deg, elevation_deg])
  return radius * np.array(
    [
      np.cos(azimuth) * np.cos(elevation),
      np.sin(azimuth) * np.cos(elevation),
      np.sin(elevation),
    ]
  )


ELEVATION = strategies.floats(-70, 70)
AZIMUTH = strategies.floats(-180, 180)
RADIUS = strategies.floats(0.5, 4)


@hypothesis.given(
  ELEVATION, ELEVATION, AZIMUTH, AZIMUTH, RADIUS, RADIUS, AZIMUTH
)
@hypothesis.settings(deadline=None, max_examples=50)
def test_zero123_pose_does_not_feel_a_turn_of_the_world_about_z(
  elevation1, elevation2, azimuth1, azimuth2, radius1, radius2, turn
):
  def vector(turn):
    return zero123_pose(
      floats(position(azimuth1 + turn, elevation1, radius1)),
      floats(position(azimuth2 + turn, elevation2, radius2)),
    )

  np.testing.assert_allclose(vector(turn), vector(0.0), atol=1e-5)


def look_at_origin(centre):
  """`camera2world` of an upright camera at `centre` in a world with z up."""
  forward = -centre / np.linalg.norm(centre)
  right = np.cross(forward, [0.0, 0.0, 1.0])
  right /= np.linalg.norm(right)
  down = np.cross(forward, right)
  return camera.make_pose(np.stack([right, down, forward], axis=-1), centre)


@hypothesis.given(AZIMUTH, AZIMUTH, ELEVATION, RADIUS, RADIUS)
@hypothesis.settings(deadline=None, max_examples=50)
def test_zero123_vector_of_an_orbit(start, azimuth, elevation, radius, scale):
  """An orbit from the horizon of an object changes what it says it does."""
  source2world = look_at_origin(position(start, 0, scale))
  target2world = look_at_origin(position(start + azimuth, elevation, radius))
  target2source = camera.relative(source2world, target2world)
  angle = np.deg2rad(azimuth)
  np.testing.assert_allclose(
    zero123_vector(floats(target2source), floats(scale)),
    [-np.deg2rad(elevation), np.sin(angle), np.cos(angle), radius - scale],
    atol=2e-5,
  )


def stable_zero123_reference(elevation, azimuth, elevation0, azimuth0):
  """`get_cond` of threestudio's stable_zero123_guidance.py, degrees."""
  turn = np.deg2rad(azimuth - azimuth0)
  return [
    np.deg2rad((90 - elevation) - (90 - elevation0)),
    np.sin(turn),
    np.cos(turn),
    np.deg2rad(90 - elevation0),
  ]


@hypothesis.given(ELEVATION, ELEVATION, AZIMUTH, AZIMUTH, RADIUS, RADIUS)
@hypothesis.settings(deadline=None, max_examples=50)
def test_stable_zero123_pose_is_that_of_the_reference(
  elevation0, elevation, azimuth0, azimuth, radius0, radius
):
  vector = stable_zero123_pose(
    floats(position(azimuth0, elevation0, radius0)),
    floats(position(azimuth, elevation, radius)),
  )
  expected = stable_zero123_reference(elevation, azimuth, elevation0, azimuth0)
  np.testing.assert_allclose(vector, expected, atol=2e-5)


def test_stable_zero123_vector_has_the_angle_of_the_source_last():
  """pi / 2 at the horizon; the rest, and an unknown scale, as Zero-1-to-3."""
  poses = floats(make_condition(4)['target2source'])
  scale = floats([0.7, 0, 3, 1])
  vector = stable_zero123_vector(poses, scale)
  np.testing.assert_allclose(vector[:, 3], np.full(4, 1.570796), atol=1e-6)
  np.testing.assert_array_equal(
    vector[:, :3], zero123_vector(poses, scale)[:, :3]
  )


def test_zero123_vector_puts_the_object_one_unit_away_if_scale_is_unknown():
  poses = floats(make_condition()['target2source'])
  np.testing.assert_array_equal(
    zero123_vector(poses, floats([0, 0])), zero123_vector(poses, floats([1, 1]))
  )


# (yaw, pitch), translation, field of view, scale, expected.
ZERONVS = [
  (
    (30.0, -20.0),
    (0.5, -0.25, 2.0),
    60.0,
    0.8,
    [0.8660254, 0.17101007, -0.46984631, 0.31209373]
    + [0.0, 0.93969262, 0.34202014, 0.15619916]
    + [0.5, -0.29619813, 0.81379768, -1.22459331]
    + [0.0, 0.0, 0.0, 1.0, 1.04719755, 0.8660254, 0.5],
  ),
  (
    (-100.0, 15.0),
    (-30.0, 4.0, -9.0),
    90.0,
    2.5,
    [-0.17364818, 0.254887, 0.95125124, -4.16827304]
    + [0.0, 0.96592583, -0.25881905, -0.79324252]
    + [-0.98480775, -0.04494346, -0.16773126, 1.72607017]
    + [0.0, 0.0, 0.0, 1.0, 1.57079633, 1.0, 0.0],
  ),
  (
    # A scale below 0.01 counts as 0.01.
    (5.0, 0.0),
    (0.001, 0.002, -0.003),
    45.0,
    0.001,
    [0.9961947, 0.0, -0.08715574, 0.04999833]
    + [0.0, 1.0, 0.0, -0.09998667]
    + [0.08715574, 0.0, 0.9961947, 0.14995502]
    + [0.0, 0.0, 0.0, 1.0, 0.78539816, 0.70710678, 0.70710678],
  ),
]


def test_zeronvs_vector_is_that_of_the_reference():
  angles, translations, fov_deg, scale, expected = zip(*ZERONVS, strict=True)
  poses = [
    make_pose(*pair, t) for pair, t in zip(angles, translations, strict=True)
  ]
  vector = zeronvs_vector(floats(poses), floats(fov_deg), floats(scale))
  np.testing.assert_allclose(vector, expected, atol=1e-6)


def test_zeronvs_vector_of_the_same_camera_and_of_unknown_scale():
  pose = camera.identity_pose()
  pose[:, 3] = 0, 0, 1
  vector = zeronvs_vector(floats(pose), floats(90), floats(0))
  expected = np.eye(4)
  expected[2, 3] = -5 * np.tanh(0.1)
  expected = [*expected.ravel(), np.pi / 2, 1, 0]
  np.testing.assert_allclose(vector, expected, atol=1e-6)


def test_the_token_of_zero123_starts_as_the_embedding():
  config = make_config('zero123', image_width=6, context_dim=6)
  model = conditioning.Conditioning(config, rngs=nnx.Rngs(0))
  parameters = nnx.to_pure_dict(nnx.state(model, nnx.Param))
  projection = parameters['parts']['zero123']['projection']
  np.testing.assert_array_equal(projection['kernel'][:6], np.eye(6))
  pose = np.abs(projection['kernel'][6:])
  assert pose.shape == (4, 6) and len(np.unique(pose)) == 24
  assert 0.5 / np.sqrt(10) < pose.max() < 1 / np.sqrt(10)
  np.testing.assert_array_equal(projection['bias'], np.zeros(6))


@pytest.mark.parametrize('name', ['zero123', 'zeronvs', 'stable-zero123'])
def test_projection_is_a_linear_layer_of_torch(name):
  graph, parameters = build(name)
  projection = parameters['parts'][name]['projection']
  kernel, bias = (
    np.asarray(projection[key][...]) for key in ('kernel', 'bias')
  )
  linear = torch.nn.Linear(*kernel.shape)
  linear.load_state_dict(
    {'weight': torch.tensor(kernel.T), 'bias': torch.tensor(bias)}
  )
  condition = make_condition()
  vector = {
    'zero123': lambda: zero123_vector(
      condition['target2source'], condition['median_depth']
    ),
    'stable-zero123': lambda: stable_zero123_vector(
      condition['target2source'], condition['median_depth']
    ),
    'zeronvs': lambda: zeronvs_vector(
      condition['target2source'],
      condition['fov_deg'],
      condition['median_depth'],
    ),
  }[name]()
  inputs = np.concatenate(
    [condition['prepared']['image_embedding'], vector], axis=-1
  )
  with torch.no_grad():
    expected = linear(torch.tensor(inputs)).numpy()
  _, context = run(graph, parameters, condition, kept(2))
  np.testing.assert_allclose(context[:, 0], expected, atol=1e-5)


def two_layers(inputs, first, second):
  hidden = inputs @ first['kernel'][...] + first['bias'][...]
  hidden = hidden / (1 + np.exp(-hidden))
  return hidden @ second['kernel'][...] + second['bias'][...]


def test_token_of_se3_is_two_layers_over_fifteen_numbers():
  graph, parameters = build('se3')
  condition = make_condition()
  expected = np.concatenate(
    [
      np.asarray(condition['target2source']).reshape(2, 12),
      [[np.pi / 3, np.log(0.7), 1.0], [np.pi / 2, 0.0, 0.0]],
    ],
    axis=-1,
  )
  layers = parameters['parts']['se3']
  expected = two_layers(expected, layers['pose1'], layers['pose2'])
  _, context = run(graph, parameters, condition, kept(2))
  np.testing.assert_allclose(context[:, 0], expected, atol=1e-5)


def test_rays_are_in_the_axes_of_the_target():
  """Tokens of the source's latents, each with the ray that it was seen by."""
  graph, parameters = build('rays', fourier_bands=0)
  condition = make_condition(batch=1)
  directions = camera.view_rays(60.0, SIZE).reshape(9, 3)
  directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
  source2target = camera.inverse(np.asarray(condition['target2source'][0]))
  turned = directions @ source2target[:, :3].T
  moments = np.cross(source2target[:, 3], turned)
  latents = np.asarray(condition['source'][0]).reshape(9, 3)
  inputs = np.concatenate([latents, turned, moments], axis=-1)
  layers = parameters['parts']['rays']
  expected = two_layers(inputs, layers['source1'], layers['source2'])
  channels, context = run(graph, parameters, condition, kept(1))
  np.testing.assert_allclose(context[0], expected, atol=1e-5)
  own = channels[0, ..., 3:].reshape(9, 6)
  np.testing.assert_allclose(own[:, :3], directions, atol=1e-6)
  assert not own[:, 3:].any()


def test_every_part_is_listed_here():
  assert SHAPES.keys() == conditioning.PARTS.keys()


@pytest.mark.parametrize('names', [*SHAPES, 'se3+rays+sweep', ALL])
def test_shapes(names):
  graph, parameters = build(names)
  widths, tokens = zip(
    *(SHAPES[name] for name in names.split('+')), strict=True
  )
  channels, context = jax.eval_shape(
    lambda condition: call(graph, parameters, condition, kept(2)),
    make_condition(),
  )
  assert channels.shape == (2, SIZE, SIZE, 3 + sum(widths))
  config = make_config(names)
  assert len(conditioning.channel_names(config)) == channels.shape[-1]
  # The network gets at least one token.
  assert context.shape == (2, max(1, sum(tokens)), 8)


def test_names_say_what_a_channel_means():
  config = make_config('se3+sweep+plucker+rays')
  names = conditioning.channel_names(config)
  assert len(set(names)) == len(names) == 3 + 8 + 60 + 30
  assert names[:3] == ('source.0', 'source.1', 'source.2')
  latents = [f'sweep.{r}.latent{i}' for r in (1.0, 2.5) for i in range(3)]
  visible = ['sweep.1.0.visible', 'sweep.2.5.visible']
  assert names[3:11] == (*latents, *visible)
  # Numbers, then sines, then cosines, each of the target and of the source.
  assert names[11] == 'plucker.target.direction_x'
  assert names[11 + 12 - 1] == 'plucker.source.moment_z'
  assert names[11 + 12 + 24 + 2 * 3 + 1] == 'plucker.target.moment_x.cos1'
  assert names[-1] == 'rays.target.moment_z.cos1'
  # Other options are other names.
  assert set(names) < set(
    conditioning.channel_names(
      make_config('rays+se3+sweep+plucker', fourier_bands=3)
    )
  )


def test_parts_stand_in_the_order_of_their_names():
  """And not in that of the alphabet, which a split and merge would give."""
  graph, parameters = build('sweep+plucker+se3+clip', image_width=8)
  embedding = np.random.default_rng(3).normal(size=(2, 8))
  condition = with_embedding(make_condition(), embedding)
  channels, context = run(graph, parameters, condition, kept(2))
  alone, _ = run(*build('plucker'), condition, kept(2))
  np.testing.assert_array_equal(channels[..., :3], condition['source'])
  np.testing.assert_array_equal(
    channels[..., 3:11], condition['prepared']['sweep']
  )
  np.testing.assert_allclose(channels[..., 11:], alone[..., 3:], atol=1e-6)
  np.testing.assert_array_equal(
    context[:, 1], condition['prepared']['image_embedding']
  )


def test_context_without_tokens_is_one_token_of_zeros():
  channels, context = run(*build('sweep'), make_condition(), kept(2))
  assert channels.any()
  np.testing.assert_array_equal(context, np.zeros((2, 1, 8)))


def test_what_dropping_changes():
  names = 'se3+clip+zero123+zeronvs+plucker+rays+sweep'
  graph, parameters = build(names)
  condition = jax.tree.map(
    lambda x: jnp.repeat(x[:1], 4, axis=0), make_condition()
  )
  drop = conditioning.Drop(
    tokens=jnp.array([False, True, False, True]),
    channels=jnp.array([False, False, True, True]),
  )
  channels, context = run(graph, parameters, condition, drop)
  assert channels[0].any()
  np.testing.assert_array_equal(channels[1], channels[0])
  np.testing.assert_array_equal(channels[2:], jnp.zeros_like(channels[2:]))
  assert context[0].any(axis=-1).all()
  np.testing.assert_array_equal(context[2], context[0])
  np.testing.assert_array_equal(context[3], context[1])
  others = np.array([0, 1, *range(4, 13)])
  assert not context[1, others].any()
  # The embedding is gone before the projection, and the pose is not.
  imageless = with_embedding(condition, np.zeros((4, 5)))
  _, expected = run(graph, parameters, imageless, kept(4))
  np.testing.assert_allclose(context[1, 2:4], expected[0, 2:4], atol=1e-6)
  assert np.abs(context[1, 2:4] - context[0, 2:4]).max() > 0.1


def test_times_are_told_apart_and_an_exchange_turns_what_passes():
  given = floats([[3.0, 5.0], [5.0, 3.0], [3.0, 3.0], [0.0, 0.0]])
  features = np.asarray(conditioning.time_features(given))
  sine, cosine = features.reshape(4, 2, 2, 9).swapaxes(0, 1)
  # Of the source's time, then of what passes: sines are odd, cosines even.
  np.testing.assert_allclose(sine[0, 1], -sine[1, 1], atol=1e-5)
  np.testing.assert_allclose(cosine[0, 1], cosine[1, 1], atol=1e-5)
  np.testing.assert_allclose(sine[0, 0], sine[2, 0], atol=1e-5)
  # Waves of 2, 4, ... 512 seconds.
  waves = np.sin(2 * np.pi * 3 / 2.0 ** np.arange(1, 10))
  np.testing.assert_allclose(sine[0, 0], waves, atol=1e-5)
  rows = itertools.combinations(features, 2)
  assert all(np.abs(a - b).max() > 0.1 for a, b in rows)
  # What is not known is one moment, the first: no time passes.
  frozen = object.__new__(encoders.Encoders)  # nothing is asked of it
  unknown = posed_pair.PosedPair(*[jnp.zeros((3, 1))] * 5)
  config = make_config('time')
  for pairs, expected in (
    (unknown, np.zeros((3, 2))),
    (unknown._replace(times_s=given[:3]), given[:3]),
  ):
    prepared = conditioning.prepare(frozen, config, pairs)
    np.testing.assert_array_equal(prepared['times'], expected)


def test_null_is_zeros_after_the_projection():
  channels, context = conditioning.null(
    jnp.ones((2, 3, 3, 5)), jnp.ones((2, 4, 8))
  )
  assert channels.shape == (2, 3, 3, 5) and context.shape == (2, 4, 8)
  assert not channels.any() and not context.any()


def test_gradients_reach_every_parameter():
  graph, parameters = build(ALL)

  @jax.jit
  def gradients(parameters):
    def loss(parameters):
      _, context = call(graph, parameters, make_condition(), kept(2))
      return jnp.square(context).sum()

    return jax.grad(loss)(parameters)

  leaves = jax.tree_util.tree_leaves_with_path(gradients(parameters))
  # Two layers of se3 and of rays, one of clip and of the three poses each.
  assert len(leaves) == 20
  for path, leaf in leaves:
    assert np.isfinite(leaf).all(), path
    assert leaf.dtype == jnp.float32
    # Three entries of the last row of a pose's 4x4 matrix are always zero.
    idle = [17, 18, 19] if 'zeronvs' in str(path) and leaf.ndim == 2 else []
    rows = np.atleast_2d(leaf).any(axis=-1)
    assert not rows[np.array(idle, int)].any(), path
    assert np.delete(rows, idle).all(), path


def plucker_rays(target2source, fov_deg=90.0):
  """Coordinates of the target's and of the source's rays at every pixel."""
  graph, parameters = build('plucker', fourier_bands=0)
  condition = make_condition(
    batch=1, target2source=target2source[None], fov_deg=np.array([fov_deg])
  )
  channels, _ = run(graph, parameters, condition, kept(1))
  return np.split(np.asarray(channels[0, ..., 3:]), 2, axis=-1)


def test_plucker_rays_of_the_same_camera_are_the_same():
  target, source = plucker_rays(camera.identity_pose())
  np.testing.assert_allclose(target, source, atol=1e-6)
  expected = camera.view_rays(90.0, SIZE)
  expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
  np.testing.assert_allclose(source[..., :3], expected, atol=1e-6)
  assert not source[..., 3:].any()


@hypothesis.given(strategies.floats(-3, 3))
@hypothesis.settings(deadline=None, max_examples=20)
def test_the_ray_that_both_cameras_see_has_the_same_coordinates(distance):
  """The target moves along the ray of its middle pixel, the others differ."""
  hypothesis.assume(abs(distance) > 0.1)
  pose = camera.identity_pose()
  pose[:, 3] = 0, 0, distance
  target, source = plucker_rays(pose)
  np.testing.assert_allclose(target[1, 1], source[1, 1], atol=1e-6)
  assert np.abs(target[0, 1] - source[0, 1]).max() > 0.05


def test_plucker_rays_are_in_the_axes_of_the_source():
  """A target to the right of the source that looks left, by hand."""
  pose = make_pose(-90.0, 0.0, (2.0, 0.0, 0.0))
  target, _ = plucker_rays(pose)
  # Direction -x through (2, 0, 0): no moment; through (2, 0, 1): (0, -1, 0).
  np.testing.assert_allclose(target[1, 1], [-1, 0, 0, 0, 0, 0], atol=1e-6)
  pose[2, 3] = 1.0
  target, _ = plucker_rays(pose)
  np.testing.assert_allclose(target[1, 1], [-1, 0, 0, 0, -1, 0], atol=1e-6)


@pytest.mark.parametrize('names', ['', 'token', 'se3+', 'se3 + clip'])
def test_unknown_parts_are_refused(names):
  with pytest.raises(ValueError, match='is none of se3, clip, zero123'):
    conditioning.parse(names)


def test_a_part_twice_is_refused():
  with pytest.raises(ValueError, match="'se3' comes twice; .* se3, clip"):
    conditioning.parse('se3+clip+se3')


@pytest.mark.parametrize(
  'name', ['clip', 'zero123', 'zeronvs', 'stable-zero123']
)
def test_parts_that_need_an_image_encoder_say_so(name):
  with pytest.raises(ValueError, match=f"'{name}' needs image_width > 0"):
    build(f'se3+{name}', image_width=0)


def test_a_sweep_of_several_sources_is_their_mean_and_how_they_agree():
  rng = np.random.default_rng(5)
  config = make_config('sweep')
  config['image_size_px'] = 4 * SIZE
  config['autoencoder'] = {'kind': 'pixels', 'patch_px': 4, 'gain': 1.0}
  config['model']['sources'] = 2
  frozen = encoders.fit(config, rng.integers(0, 256, (1, 4, 4, 3), np.uint8))
  images = rng.integers(0, 256, (2, 2, 4 * SIZE, 4 * SIZE, 3), np.uint8)
  poses = np.stack(
    [
      make_pose(10.0, 5.0, [0.1, 0.0, 0.2]),
      make_pose(-15.0, 0.0, [-0.2, 0.1, 0.0]),
    ]
  ).astype(np.float32)
  poses = np.stack([poses] * 2)
  fov_deg = np.full((2, 2), [80, 70], np.float32)
  # Of the second example the second source is not there.
  pairs = posed_pair.PosedPair(
    source=images[:, 0],
    target=None,
    target2source=poses[:, 0],
    fov_deg=fov_deg[:, 0],
    median_depth=np.ones(2, np.float32),
    more=posed_pair.MoreViews(
      image=images[:, 1:],
      target2view=poses[:, 1:],
      fov_deg=fov_deg[:, 1:],
      is_there=np.array([[True], [False]]),
    ),
  )
  found = jax.jit(
    lambda pairs: conditioning.prepare(frozen, config, pairs)['sweep']
  )(pairs)
  assert found.shape[-1] + 48 == len(conditioning.channel_names(config))
  swept, shown = zip(
    *(
      sweep.sweep(
        jnp.asarray(images[:, view] / 255.0),
        jnp.asarray(poses[:, view]),
        jnp.asarray(fov_deg[:, 0]),
        (1.0, 2.5),
        jnp.asarray(fov_deg[:, view]),
      )
      for view in range(2)
    )
  )
  seen = np.stack(shown) * np.array([[1, 1], [1, 0]])[..., None, None, None]
  for row, k, y, x in itertools.product(range(2), range(2), (3, 9), (2, 8)):
    there = seen[:, row, k, y, x] > 0
    colours = np.stack([np.asarray(view[row, k, y, x]) for view in swept])
    colour = colours[there].mean(0) if there.any() else colours[0]
    latent = found[row, y // 4, x // 4, 48 * k : 48 * (k + 1)]
    latent = latent.reshape(4, 4, 3)[y % 4, x % 4]
    np.testing.assert_allclose(latent / 2 + 0.5, colour, atol=1e-5)
  # Of one source there is nothing to compare.
  assert np.abs(found[0, ..., -2:]).max() > 0
  np.testing.assert_array_equal(found[1, ..., -2:], 0)
