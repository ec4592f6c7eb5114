"""Latents of records: training with them is training without them."""

import functools
import itertools
import json

import jax
import numpy as np
import pytest

from configs import train
from odin_jax import batches, encoding, latents
from odin_jax.checkpoints import checkpoint
from odin_jax.models import encoders, odin
from odin_jax.shared import errors, posed_pair, schema, tfrecord
from odin_jax.sources import opening
from odin_jax.training import settings, step
from tests.helpers.posed_records import make_record

_COUNTS = (5, 4)


def small_config():
  config = train.get_config('odin,runlocal=True')
  config.dtype = 'float32'
  config.batch_size = 4
  config.model.unet.channel_mult = (1,)
  config.model.unet.attention_levels = ()
  config.model.unet.remat = 'none'
  config.autoencoder.num_res_blocks = 1
  config.image_encoder.num_layers = 1
  return checkpoint.plain(config.to_dict())


def start_state(config):
  """Made without compiling anything."""
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(functools.partial(step.init, config))
  state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
  params = jax.tree.map(
    lambda x: rng.normal(0, 0.1, x.shape).astype(x.dtype), shapes['params']
  )
  return state | {'params': params, 'ema': params}


def write_shards(folder, seed=0):
  rng = np.random.default_rng(seed)
  folder.mkdir(exist_ok=True)
  for index, count in enumerate(_COUNTS):
    tfrecord.write_file(
      folder / schema.shard_name('train', index, len(_COUNTS)),
      [schema.encode(make_record(rng, 'a', 'train')) for _ in range(count)],
    )
  return folder


@pytest.fixture(scope='module')
def records(tmp_path_factory):
  return write_shards(tmp_path_factory.mktemp('records'))


@pytest.fixture(scope='module')
def config():
  return small_config()


@pytest.fixture(scope='module')
def frozen(config):
  return encoders.random(config)


@pytest.fixture(scope='module')
def encode(frozen):
  jitted = jax.jit(encoders.encode_views)
  return lambda images: jitted(frozen, images)


def make(records, output, config, encode, mirror=True):
  output.mkdir(exist_ok=True)
  return encoding.encode_folder(
    batches.PairSource(records, 'train', image_size_px=32),
    output,
    encode,
    {'made_with': latents.of_config(config), 'encoders_sha256': 'e' * 64},
    shapes=encoders.encoded_shapes(config),
    batch_size=3,
    mirror=mirror,
  )


@pytest.fixture(scope='module')
def made(records, config, encode, tmp_path_factory):
  output = tmp_path_factory.mktemp('latents')
  assert make(records, output, config, encode) == 0
  return output


def open_source(records, made, config):
  return batches.PairSource(
    records,
    'train',
    image_size_px=32,
    encoded=lambda folder: latents.LatentFolder(made, folder, config),
  )


def test_training_is_the_same_with_latents(records, made, config, frozen):
  """Of two steps, with all that is drawn, mirrored and exchanged."""
  graphdef = odin.graph(config)
  ends = []
  for source in (
    batches.PairSource(records, 'train', image_size_px=32),
    open_source(records, made, config),
  ):
    stream = batches.batches(
      batches.examples(source, seed=0, mirror=True, swap=True),
      first_step=0,
      batch_size=4,
      num_workers=0,
    )
    train_step = jax.jit(
      functools.partial(step.train_step, config=config, graphdef=graphdef)
    )
    state, losses = start_state(config), []
    for batch in itertools.islice(stream, 2):
      assert (batch.source is None) == (batch.source_encoded is not None)
      state, values = train_step(state, batch, frozen)
      losses.append(float(values['loss']))
    ends.append((losses, state['params']))
  # Both are float32: what differs is in which order XLA adds up.
  np.testing.assert_allclose(ends[0][0], ends[1][0], rtol=1e-5)
  rate = config['optimizer']['learning_rate']
  for old, new in zip(*(jax.tree.leaves(end[1]) for end in ends), strict=True):
    # Of gradients near zero AdamW knows but the sign.
    np.testing.assert_allclose(old, new, atol=rate * 0.05, rtol=1e-4)


def test_a_step_with_latents_runs_no_encoder(records, made, config, frozen):
  source = open_source(records, made, config)
  batch = posed_pair.stack([source[0], source[1]])
  shapes = jax.eval_shape(functools.partial(step.init, config))

  def unused(state, batch, frozen):
    return step.train_step(
      state, batch, frozen, config=config, graphdef=odin.graph(config)
    )[1]

  jaxpr = jax.make_jaxpr(unused)(shapes, batch, frozen)
  first = len(jax.tree.leaves((shapes, batch)))
  read = set(map(id, itertools.chain(*(x.invars for x in jaxpr.eqns))))
  assert not [x for x in jaxpr.jaxpr.invars[first:] if id(x) in read]


def test_a_run_that_was_killed_goes_on(records, made, config, encode, tmp_path):
  calls = []

  def dying(images):
    calls.append(0)
    if len(calls) > 3:
      raise RuntimeError('killed')
    return encode(images)

  with pytest.raises(RuntimeError):
    make(records, tmp_path, config, dying)
  # As a kill leaves them: a shard half written, another not in the manifest.
  second = latents.shard_name(schema.shard_name('train', 1, 2))
  (tmp_path / second).write_bytes(b'half')
  with pytest.raises(errors.UserError, match='has no latents of .*00001'):
    open_source(records, tmp_path, config)
  assert make(records, tmp_path, config, encode) == 1
  for path in made.iterdir():
    assert (tmp_path / path.name).read_bytes() == path.read_bytes()
  with pytest.raises(errors.UserError, match='mirror of the latents here is'):
    make(records, tmp_path, config, encode, mirror=False)


def test_latents_of_something_else_are_refused(records, made, config, tmp_path):
  other = write_shards(tmp_path / 'other', seed=1)
  with pytest.raises(errors.UserError, match='are of other records'):
    open_source(other, made, config)
  with pytest.raises(errors.UserError, match='config.dtype=float32'):
    open_source(records, made, config | {'dtype': 'bfloat16'})
  source = open_source(records, made, config)
  source.latents.require_made_by('e' * 64)
  with pytest.raises(errors.UserError, match='other encoders'):
    source.latents.require_made_by('f' * 64)
  # Without those of mirrored views training must not mirror.
  plain = tmp_path / 'plain'
  plain.mkdir()
  for path in made.iterdir():
    (plain / path.name).write_bytes(path.read_bytes())
  manifest = json.loads((plain / latents.MANIFEST).read_text())
  (plain / latents.MANIFEST).write_text(
    json.dumps(manifest | {'mirror': False})
  )
  with pytest.raises(errors.UserError, match='augment.mirror=False'):
    open_source(records, plain, config)
  damaged = plain / latents.shard_name(schema.shard_name('train', 0, 2))
  content = bytearray(damaged.read_bytes())
  content[200] ^= 1
  damaged.write_bytes(content)
  still = config | {'augment': {'mirror': False, 'swap': True}}
  with pytest.raises(tfrecord.CorruptRecordError, match='checksum'):
    open_source(records, plain, still)[0]


def test_of_a_mixture_each_folder_has_its_latents(
  records, made, config, encode, tmp_path
):
  others = write_shards(tmp_path / 'others', seed=7)
  of_others = tmp_path / 'latents'
  assert make(others, of_others, config, encode) == 0

  def opened(**given):
    return opening.open_sources(
      [str(records), str(others)],
      config | {'mixture': {'weights': (1, 1)}},
      depth=False,
      num_sources=1,
      **given,
    )

  plain = opened()
  mixed = opened(latents_paths=[str(made), str(of_others)])
  assert plain.encoded == [] and len(mixed.encoded) == 2
  assert mixed.source.fingerprint() == plain.source.fingerprint()
  poses = set()
  for index in (0, sum(_COUNTS)):
    pair, expected = mixed.source[index], plain.source[index]
    np.testing.assert_array_equal(pair.target2source, expected.target2source)
    np.testing.assert_allclose(
      pair.target_encoded.moments,
      encode(expected.target[None]).moments[0],
      atol=1e-5,
    )
    poses.add(pair.target2source.tobytes())
  assert len(poses) == 2
  with pytest.raises(errors.UserError, match='1 for 2 folders of records'):
    opened(latents_paths=[str(made)])
  with pytest.raises(errors.UserError, match='of other records than those'):
    opened(latents_paths=[str(of_others), str(made)])


def test_what_latents_cannot_serve_is_refused(config):
  settings.check_latents(config)
  world = checkpoint.plain(train.get_config('world').to_dict())
  with pytest.raises(errors.UserError, match='autoencoder.kind=pca'):
    settings.check_latents(world)
  swept = config | {'model': config['model'] | {'conditioning': 'clip+sweep'}}
  with pytest.raises(errors.UserError, match='sweep looks at the images'):
    settings.check_latents(swept)


def test_bfloat16_keeps_every_bit(records, config, frozen, tmp_path):
  """Of networks that compute in it: half the bytes, and nothing lost."""
  config = config | {'dtype': 'bfloat16'}
  as_bfloat16 = frozen.replace(
    autoencoder=frozen.autoencoder.replace(dtype='bfloat16'),
    image=frozen.image.replace(dtype='bfloat16'),
  )
  images = batches.PairSource(records, 'train', image_size_px=32)
  kept = jax.jit(encoders.encode_views)(as_bfloat16, images[0].source[None])
  assert kept.moments.dtype == kept.embedding.dtype == 'bfloat16'
  constant = posed_pair.Encoded(*(np.asarray(x) for x in kept[:2]))

  def encode(images):
    return posed_pair.Encoded(
      *(np.repeat(x, len(images), axis=0) for x in constant[:2])
    )

  make(records, tmp_path, config, encode)
  pair = open_source(records, tmp_path, config)[3]
  assert pair.source_encoded.moments.tobytes() == constant.moments.tobytes()
  np.testing.assert_array_equal(
    encoders.embedding(as_bfloat16, None, kept),
    np.asarray(kept.embedding, np.float32),
  )
