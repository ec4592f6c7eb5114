"""The step on eight fake devices: same numbers, other places.

Devices are made when JAX starts, so the checks run in a process of their own
that writes its findings as JSON.
"""

import functools
import json
import os
import re
import subprocess
import sys
from unittest import mock

from flax import nnx
import jax
import numpy as np
import pytest

from configs import train as recipes
from odin_jax import sharding
from odin_jax.checkpoints import checkpoint
from odin_jax.models import conditioning, encoders, layers, lpips, odin
from odin_jax.shared import errors
from odin_jax.training import program, step
from tests.helpers import commands

SCRIPT = """
import collections, functools, json, pathlib, sys
from unittest import mock
import jax
import numpy as np
from orbax.checkpoint._src.serialization import replica_slices
from configs import train
from odin_jax import predictors, sharding
from odin_jax.checkpoints import checkpoint
from odin_jax.generating import given, imagining
from odin_jax.geometry import trajectory
from odin_jax.models import conditioning, encoders, odin
from odin_jax.shared import posed_pair
from odin_jax.training import program, step
from tests.helpers import default_sampling
from tests.odin_jax.test_new_part import Ones

conditioning.PARTS['ones'] = Ones
config = checkpoint.plain(
  train.get_config(
    'world,runlocal=True,conditioning=se3+rays+sweep+ones'
  ).to_dict()
)
config['steps'] = 3
generator = np.random.default_rng(0)
pixels = generator.integers(0, 256, (2, 8, 32, 32, 3), np.uint8)
poses = np.tile(np.eye(3, 4, dtype=np.float32), (8, 1, 1))
poses[:, :, 3] = generator.normal(0, 0.2, (8, 3))
batch = posed_pair.PosedPair(
  source=pixels[0], target=pixels[1], target2source=poses,
  fov_deg=np.full(8, 90, np.float32), median_depth=np.ones(8, np.float32),
)
frozen = encoders.fit(config, pixels[0])
graph = odin.graph(config)
init = functools.partial(step.init, config)
abstract = jax.eval_shape(init)
workdir = pathlib.Path(sys.argv[1])


def place(axes, parts=1):
  mesh = sharding.make_mesh(axes)
  of_parts = config | {'accumulate_steps': parts}
  where = program.placement(of_parts, mesh, abstract)
  # The state is used again.
  with mock.patch.object(jax, 'jit', functools.partial(keeping, jax.jit)):
    train_step = program.jitted(of_parts, mesh, where)
  return where.state, train_step


def keeping(jit, *args, donate_argnums, **kwargs):
  return jit(*args, **kwargs)


def most_bytes(state):
  held = collections.Counter()
  for leaf in jax.tree.leaves(state):
    for shard in leaf.addressable_shards:
      held[shard.device] += shard.data.nbytes
  return max(held.values())


fetched = []


def fetching(transfer, *args, **kwargs):
  arrays = transfer(*args, **kwargs)
  fetched.extend(array.nbytes for array in arrays)
  return arrays


def relative(a, b):
  pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  return max(
    float(np.abs(np.asarray(x) - np.asarray(y)).max()) for x, y in pairs
  )


single_step = jax.jit(
  functools.partial(step.train_step, config=config, graphdef=graph)
)
expected = jax.jit(init)()
for _ in range(2):
  expected, expected_metrics = single_step(expected, batch, frozen)
assert expected_metrics['loss_counts'].sum() == 8
np.testing.assert_allclose(
  expected_metrics['loss_sums'].sum() / 8, expected_metrics['loss'], rtol=1e-5
)

# The same batch, in two parts.
shardings, train_step = place(dict(data=2, fsdp=2, tensor=2), parts=2)
make = jax.jit(init, out_shardings=shardings).lower().compile()
memory = make.memory_analysis()
state = make()
held = [
  memory.output_size_in_bytes + memory.temp_size_in_bytes, most_bytes(state)
]
for _ in range(2):
  state, metrics = train_step(state, batch, frozen, None)
kernel = state['params']['unet']['middle'][0]['residual']['conv1']['kernel']
split = kernel.addressable_shards[0].data.shape
new_kernel = state['params']['conditioning']['parts']['ones']['token']['kernel']

checkpoints = checkpoint.Checkpoints(workdir)
with mock.patch.object(
  replica_slices, 'transfer_arrays_to_host',
  functools.partial(fetching, replica_slices.transfer_arrays_to_host),
):
  checkpoints.save(2, state, frozen, config)
# Of arrays that are split, NumPy keeps with each the copy that it made.
put_together = [
  leaf.nbytes
  for leaf in jax.tree.leaves(state)
  if not leaf.is_fully_replicated and leaf._npy_value is not None
]
checkpoints.close()
checkpoints = checkpoint.Checkpoints(workdir)
other_shardings, other_step = place(dict(data=8, fsdp=1, tensor=1))
restored, restored_frozen = checkpoints.restore(
  2, abstract, other_shardings, config
)
same = checkpoint.params_sha256(restored) == checkpoint.params_sha256(state)
over_eight = sharding.shardings(
  abstract,
  sharding.make_mesh(dict(data=1, fsdp=8, tensor=1)),
  odin.sharding_rules(),
)
again, _ = checkpoints.restore(2, abstract, over_eight, config)
held.append(most_bytes(again))
after, _ = other_step(restored, batch, restored_frozen, None)
expected_after, _ = single_step(expected, batch, frozen)


def samples(count):
  # Of 21 pairs: two whole batches of 8 and one of 5, which is padded.
  devices = np.reshape(jax.devices()[:count], (count, 1, 1))
  mesh = jax.sharding.Mesh(devices, sharding.AXES)
  everywhere = sharding.replicated(mesh)
  params, encoders = jax.device_put(
    jax.device_get((expected['params'], frozen)), everywhere
  )
  sizes = []
  model = predictors.Model(
    params, encoders, config, mesh=mesh, batch_size=8, protocol={},
    sampling=default_sampling.sampling(num_steps=2, spacing='trailing'),
  )
  inner = model._sample

  def noted(params, encoders, pairs, seeds):
    images = inner(params, encoders, pairs, seeds)
    sizes.append([len(seeds), images.addressable_shards[0].data.shape[0]])
    return images

  model._sample = noted
  rows = np.arange(21) % 8
  pairs = posed_pair.select(batch, rows)
  images = [
    model.predict(posed_pair.select(pairs, slice(i, i + 8)), np.arange(21)[i:i + 8])
    for i in (0, 8, 16)
  ]
  return np.concatenate(images), sizes[:3], model, sizes


# Of a mesh on which four devices hold the same rows.
where = sharding.batch_sharding(
  sharding.make_mesh(dict(data=2, fsdp=1, tensor=4)), 8
)
rows = sharding.own_rows(where, 8)
of_rows = sharding.of_rows(where, 8, rows, pixels[0][rows])

on_one, *_ = samples(1)
on_eight, sizes, model, all_sizes = samples(8)

# Two images, each along a path of its own: in one batch, and each alone.
walks = [
  imagining.Walk(
    start=given.Given(image, 90.0, 'flag', False),
    camera2scene=trajectory.camera_path(name, 4, 0.1),
    sources={1: [0], 2: [0], 3: [0]},
    seeds=np.arange(4) + seed,
  )
  for image, name, seed in zip(pixels[0], ('forward', 'left'), (0, 7))
]
together = imagining.imagine(model, walks, 1)
walk_sizes = all_sizes[3:]
alone = [imagining.imagine(model, [walk], 1)[0] for walk in walks]
print(json.dumps(dict(
  devices=jax.device_count(),
  kernel=kernel.shape,
  split=split,
  held=held,
  fetched=sum(fetched),
  put_together=sum(put_together),
  state_bytes=sum(leaf.nbytes for leaf in jax.tree.leaves(state)),
  new_spec=list(new_kernel.sharding.spec),
  new_split=new_kernel.addressable_shards[0].data.shape,
  loss=[float(metrics['loss']), float(expected_metrics['loss'])],
  difference=relative(state['params'], expected['params']),
  restored_is_saved=same,
  difference_after=relative(after['params'], expected_after['params']),
  own_rows=rows.tolist(),
  of_rows_is_batch=bool((np.asarray(of_rows) == pixels[0]).all()),
  of_rows_shard=of_rows.addressable_shards[0].data.shape,
  samples=on_eight.shape,
  sample_sizes=sizes,
  walk_sizes=walk_sizes,
  walk_difference=float(np.abs(np.subtract(together, alone, dtype=float)).max()),
  walks_are_unlike=float(np.abs(np.subtract(*together, dtype=float)).mean()),
  sample_range=[float(on_one.min()), float(on_one.max())],
  sample_difference=float(np.abs(on_eight - on_one).max()),
)))
"""


@pytest.fixture(scope='module')
def findings(tmp_path_factory, repository):
  done = subprocess.run(
    [sys.executable, '-c', SCRIPT, tmp_path_factory.mktemp('checkpoints')],
    cwd=repository,
    env=os.environ | {'XLA_FLAGS': commands.with_devices(8)},
    capture_output=True,
    text=True,
    timeout=500,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  return json.loads(done.stdout.splitlines()[-1])


def test_parameters_are_split_over_the_mesh(findings):
  assert findings['devices'] == 8
  height, width, inputs, outputs = findings['kernel']
  assert findings['split'] == [height, width, inputs // 2, outputs // 2]


def test_no_device_holds_the_whole_state(findings):
  making, made, restored = (
    num_bytes / findings['state_bytes'] for num_bytes in findings['held']
  )
  # Split over two and two, then over eight; biases are not, nor norms, which
  # are a third of so narrow a network.
  assert made < 0.45
  assert making < 0.6
  assert restored < 0.35


def test_a_save_brings_each_part_of_the_state_to_the_host_once(findings):
  # What several devices hold alike is not fetched from each.
  assert findings['fetched'] == findings['state_bytes']
  # Nor does its checksum need a copy of a whole array.
  assert findings['put_together'] == 0


@pytest.mark.parametrize('kind', ['adamw', 'adafactor', 'muon'])
def test_nothing_large_of_the_full_model_is_on_every_device(full_size, kind):
  config, params = full_size
  config = config | {'optimizer': config['optimizer'] | {'kind': kind}}
  state = jax.eval_shape(functools.partial(step.state_of, config), params)
  # As many as a default mesh splits over.
  mesh = jax.sharding.AbstractMesh((1, 16, 1), sharding.AXES)
  where = sharding.shardings(state, mesh, odin.sharding_rules())
  shapes, places = sharding.by_path(state), sharding.by_path(where)
  whole, own = 0, 0
  for name, leaf in shapes.items():
    num_bytes = leaf.size * leaf.dtype.itemsize
    is_split = any(places[name].spec)
    assert is_split or num_bytes <= sharding.LARGE_BYTES, name
    whole += num_bytes
    own += num_bytes / (places[name].num_devices if is_split else 1)
  assert own < 1.03 * whole / 16


# Array over 1 MiB -> why each device has all of it.
_WHOLE = {
  'autoencoder': 'frozen; gathering it in every step costs more than it saves',
  'image': 'the same',
}


@pytest.mark.parametrize('split,reasons', [(False, _WHOLE), (True, {})])
def test_encoders_are_whole_for_a_reason_or_split(full_size, split, reasons):
  config, _ = full_size
  config = config | {'encoders_split': split}
  mesh = jax.sharding.AbstractMesh((1, 16, 1), sharding.AXES)
  shapes = sharding.by_path(encoders.abstract(config))
  places = sharding.by_path(encoders.shardings(config, mesh))
  large = {
    name: leaf
    for name, leaf in shapes.items()
    if leaf.size * leaf.dtype.itemsize > sharding.LARGE_BYTES
  }
  # bfloat16: half of what float32 takes.
  held = sum(leaf.size * leaf.dtype.itemsize for leaf in shapes.values())
  assert len(large) > 100 and held < 0.73 * 2**30
  is_whole = {name for name in large if not any(places[name].spec)}
  assert {name.partition('/')[0] for name in is_whole} == set(reasons)


# The same of the arguments of its step, by the end of their names.
_WHOLE_OF_MULTISPHERE = {
  r'unet/conv_(in|out)/kernel': 'channels of latents, which are few elsewhere',
  r'lpips/params/convs/[1-4]/kernel': 'frozen; gathering them in every step '
  'costs more than it saves, 9.4 MiB in all',
}


def test_what_multisphere_holds_is_whole_for_a_reason_or_split():
  config = checkpoint.plain(recipes.get_config('multisphere').to_dict())
  mesh = sharding.make_mesh(dict(data=1, fsdp=16, tensor=1), in_slices(16))
  state = jax.eval_shape(functools.partial(step.init, config))
  where = program.placement(config, mesh, state)
  params = {
    name: jax.ShapeDtypeStruct(shape, 'float32')
    for name, shape in lpips.shapes('alex').items()
  }
  arguments = {
    'state': state,
    'batch': program.abstract_batch(config),
    'frozen': encoders.abstract(config),
    'lpips': lpips.Lpips(params, 'alex'),
  }
  places = {
    name: jax.tree.broadcast(place, argument)
    for (name, argument), place in zip(arguments.items(), where, strict=True)
  }
  shapes, places = sharding.by_path(arguments), sharding.by_path(places)
  is_whole = {
    name
    for name, leaf in shapes.items()
    if leaf.size * leaf.dtype.itemsize > sharding.LARGE_BYTES
    and not any(places[name].spec)
  }
  named = {
    pattern: {name for name in is_whole if re.search(f'{pattern}$', name)}
    for pattern in _WHOLE_OF_MULTISPHERE
  }
  assert is_whole == set.union(*named.values())
  # Parameters, their averages and Muon's momentum; AlexNet.
  assert [len(names) for names in named.values()] == [6, 4]


@pytest.fixture(scope='module')
def full_size():
  config = checkpoint.plain(recipes.get_config('odin').to_dict())
  return config, jax.eval_shape(lambda: odin.init_params(config))


@pytest.mark.parametrize(
  'count,axes,expected',
  [
    (1, {}, (1, 1, 1)),
    (8, {}, (1, 8, 1)),
    (12, {}, (3, 4, 1)),
    (64, {}, (4, 16, 1)),
    (64, {'tensor': 4}, (1, 16, 4)),
    (64, {'fsdp': 32}, (2, 32, 1)),
    (64, {'data': 1}, (1, 64, 1)),
  ],
)
def test_an_open_mesh_splits_parameters_over_sixteen(
  monkeypatch, count, axes, expected
):
  monkeypatch.setattr(
    jax,
    'make_mesh',
    lambda sizes, *_, **__: mock.Mock(jax.sharding.Mesh, s=sizes),
  )
  open_mesh = {'data': -1, 'fsdp': -1, 'tensor': 1} | axes
  found = sharding.make_mesh(open_mesh, jax.devices() * count)
  assert tuple(found.s) == expected


def in_slices(*counts):
  """Chips 2 wide and as high as it takes; neighbours are of other slices."""
  places = [
    (chip, index) for index, count in enumerate(counts) for chip in range(count)
  ]
  return [
    mock.Mock(
      spec=jax.Device,
      platform='tpu',
      device_kind='TPU v5 lite',
      slice_index=index,
      core_on_chip=0,
      coords=(chip % 2, chip // 2, 0),
    )
    for chip, index in sorted(places)
  ]


@pytest.mark.parametrize(
  'counts,axes,expected',
  [
    ((16, 16), {}, (2, 16, 1)),
    ((32, 32), {}, (4, 16, 1)),
    ((12, 12), {}, (6, 4, 1)),
    ((8, 8, 8), {'tensor': 4}, (3, 2, 4)),
    ((4, 4), {'fsdp': 2}, (4, 2, 1)),
    ((4, 4), {'data': 2}, (2, 4, 1)),
    ((4, 4), {'fsdp': 1}, (8, 1, 1)),
  ],
)
def test_parameters_are_split_within_a_slice(counts, axes, expected):
  open_mesh = {'data': -1, 'fsdp': -1, 'tensor': 1} | axes
  devices = in_slices(*counts)
  found = sharding.make_mesh(open_mesh, devices)
  assert found.devices.shape == expected
  assert set(found.devices.flat) == set(devices)
  assert found.axis_types == (jax.sharding.AxisType.Auto,) * 3
  # Slices follow each other, and each is as it would be alone.
  slices = np.split(found.devices, len(counts))
  for index, of_slice in enumerate(slices):
    alone = sharding.make_mesh(
      dict(zip(sharding.AXES, of_slice.shape)),
      [device for device in devices if device.slice_index == index],
    )
    assert (of_slice == alone.devices).all()


@pytest.mark.parametrize(
  'counts,axes,message',
  [
    ((4, 4), {'fsdp': 8}, 'slices of 4 devices, .*; give data=-1'),
    ((4, 4), {'data': 1}, 'slices of 4 devices'),
    ((4, 4), {'tensor': 8}, 'slices of 4 devices'),
    ((6, 6), {'fsdp': 4}, 'slices of 6 devices'),
    ((4, 4), {'fsdp': 3}, 'does not fit 8 devices'),
    ((4, 8), {}, 'of 4 and 8 devices; take'),
  ],
)
def test_parameters_are_not_split_over_slices(counts, axes, message):
  open_mesh = {'data': -1, 'fsdp': -1, 'tensor': 1} | axes
  with pytest.raises(errors.UserError, match=message):
    sharding.make_mesh(open_mesh, in_slices(*counts))


def test_a_new_part_is_split_as_it_says(findings):
  assert findings['new_spec'] == [None, 'tensor']
  assert findings['new_split'] == [1, 8]


def test_eight_devices_compute_what_one_does(findings):
  sharded, single = findings['loss']
  assert sharded == pytest.approx(single, rel=1e-4)
  # Adam's first steps have the size of the learning rate, 2e-4 here, whatever
  # the gradient's: the order of summation can turn the smallest around.
  assert findings['difference'] < 1e-3


def test_a_batch_is_put_together_of_the_rows_of_each_process(findings):
  assert findings['own_rows'] == list(range(8))
  assert findings['of_rows_is_batch']
  assert findings['of_rows_shard'][0] == 4


def test_processes_hold_the_rows_of_their_devices():
  where = mock.Mock(spec=jax.sharding.NamedSharding)
  where.addressable_devices_indices_map.return_value = {
    # Two devices of this process have the same ones.
    'a': (slice(6, 8),),
    'b': (slice(2, 4),),
    'c': (slice(6, 8),),
  }
  assert sharding.own_rows(where, 8).tolist() == [2, 3, 6, 7]


def test_checkpoint_restores_onto_another_mesh(findings):
  assert findings['restored_is_saved']
  assert findings['difference_after'] < 2e-3


def test_eight_devices_predict_what_one_does(findings):
  assert findings['samples'] == [21, 32, 32, 3]
  # Every call is of a batch that all devices share, the last one padded.
  assert findings['sample_sizes'] == [[8, 1]] * 3
  low, high = findings['sample_range']
  assert high - low > 0.2
  # Half of what rounding to 8 bits would see.
  assert findings['sample_difference'] < 1e-3


def test_paths_from_several_images_share_a_batch_and_not_their_views(findings):
  assert findings['walk_sizes'] == [[8, 1]]
  # A level: what rounding may turn.
  assert findings['walk_difference'] <= 1
  assert findings['walks_are_unlike'] > 10


@pytest.fixture(scope='module')
def mesh():
  return sharding.make_mesh(dict(data=-1, fsdp=1, tensor=1))


@pytest.mark.parametrize('recipe', ['world', 'multisphere', 'odin'])
def test_every_parameter_of_every_recipe_and_part_has_a_rule(recipe, mesh):
  names = [
    name
    for name, part in conditioning.PARTS.items()
    if recipe == 'odin' or not part.needs_image
  ]
  config = recipes.get_config(
    f'{recipe},runlocal=True,conditioning={"+".join(names)}'
  )
  if recipe == 'odin':
    # Not as wide as the context, so that `clip` has a projection.
    config.image_encoder.projection = 8
  if recipe == 'multisphere':
    # Two levels, so that there is a way down and up.
    config.model.spheres.network.channel_mult = (1, 1)
  config = checkpoint.plain(config.to_dict())
  state = jax.eval_shape(functools.partial(step.init, config))
  placed = sharding.shardings(state, mesh, odin.sharding_rules())
  leaves = jax.tree_util.tree_leaves_with_path(placed['params'])
  paths = [sharding.path_name(path) for path, _ in leaves]
  of_spheres = recipe == 'multisphere'
  if recipe != 'world':
    # And there is no rule for nothing.
    for pattern in odin.sharding_rules():
      if pattern.startswith(('spheres/', 'refiner/')) == of_spheres:
        assert any(re.fullmatch(pattern, path) for path in paths), pattern


def test_a_parameter_without_a_rule_is_an_error(mesh, monkeypatch):
  class Forgetful(conditioning.Part):
    sharding = {'layer/kernel': ('fsdp', 'tensor')}

    def __init__(self, config, *, rngs):
      self.layer = layers.Linear(2, 2, rngs=rngs)

  monkeypatch.setitem(conditioning.PARTS, 'forgetful', Forgetful)
  part = nnx.eval_shape(lambda: Forgetful({}, rngs=nnx.Rngs(0)))
  params = nnx.to_pure_dict(nnx.state(part, nnx.Param))
  state = {'ema': {'conditioning': {'parts': {'forgetful': params}}}}
  name = 'ema/conditioning/parts/forgetful/layer/bias'
  with pytest.raises(ValueError, match=f'{name} of shape .2,. is'):
    sharding.shardings(state, mesh, odin.sharding_rules())
  monkeypatch.setitem(Forgetful.sharding, 'layer/bias', ())
  placed = sharding.shardings(state, mesh, odin.sharding_rules())
  layer = placed['ema']['conditioning']['parts']['forgetful']['layer']
  assert layer['kernel'].spec == jax.P('fsdp', 'tensor')
  assert layer['bias'].spec == jax.P()


def test_mesh_must_use_every_device():
  with pytest.raises(errors.UserError, match='devices'):
    sharding.make_mesh(dict(data=jax.device_count() + 1, fsdp=1, tensor=1))
  with pytest.raises(errors.UserError, match='devices'):
    sharding.make_mesh(dict(data=-1, fsdp=0, tensor=1))


def test_rest_of_the_devices_goes_to_the_open_axis(mesh):
  assert mesh.shape['data'] == jax.device_count()
