"""The official DUSt3R package and checkpoints, from where the user has them.

The package (https://github.com/naver/dust3r, CC BY-NC-SA 4.0) is a checkout
with the `croco` submodule and no distribution, so nothing of it lives here:
`launch/setup_dust3r.sh` makes the checkout. Its modules take the top-level
names `dust3r`, `models` and `utils`, and it puts a folder on `sys.path`; both
are visible only while it is imported. Checkpoints are read as tensors and one
`argparse.Namespace`, and the network's description in them, a Python call that
the package would `eval`, is parsed.
"""

import argparse
import ast
import contextlib
import functools
import importlib
import math
import os
import pathlib
import pickle
import sys
import types
from typing import Any, Iterator

from odin_jax.shared import errors

_SETUP = 'make one with launch/setup_dust3r.sh'
_TOP_LEVEL = frozenset({'croco', 'dust3r', 'models', 'utils'})
_NETWORK = 'AsymmetricCroCo3DStereo'
# What a checkpoint may say about its network, and of which kind that is.
_ARGUMENTS = {
  'output_mode': str,
  'head_type': str,
  'depth_mode': tuple,
  'conf_mode': tuple,
  'freeze': str,
  'landscape_only': bool,
  'patch_embed_cls': str,
  'pos_embed': str,
  'img_size': tuple,
  'patch_size': int,
  'enc_embed_dim': int,
  'enc_depth': int,
  'enc_num_heads': int,
  'dec_embed_dim': int,
  'dec_depth': int,
  'dec_num_heads': int,
  'mlp_ratio': int,
}
# As in the package's own loader: views of one shape, none of them turned.
_UPRIGHT = {'landscape_only': False, 'patch_embed_cls': 'PatchEmbedDust3R'}


def find_home(home: str = '') -> pathlib.Path:
  """The checkout: `home`, or what DUST3R_HOME says where that is empty.

  Raises:
    errors.UserError: there is no checkout there.
  """
  named = home or os.environ.get('DUST3R_HOME', '')
  if not named:
    raise errors.UserError(
      f'DUST3R_HOME is not set: set it to a checkout of DUSt3R, or {_SETUP}'
    )
  path = pathlib.Path(named).resolve()
  for part in ('dust3r/model.py', 'croco/models/croco.py'):
    if not (path / part).is_file():
      raise errors.UserError(
        f'{path}: no checkout of DUSt3R, {part} is missing; give one with its '
        f'submodule, or {_SETUP}'
      )
  return path


@functools.lru_cache(maxsize=8)
def import_module(home: pathlib.Path, name: str) -> types.ModuleType:
  """A module of the package, for example `dust3r.model`.

  `sys.path`, `sys.modules` and torch's settings are afterwards as before.

  Raises:
    errors.UserError: it needs a package that is not installed.
  """
  with _importable(home):
    try:
      return importlib.import_module(name)
    except ImportError as error:
      raise errors.UserError(
        f'{home}: DUSt3R cannot be imported ({error}); install what its '
        'requirements.txt names'
      ) from error


def load_model(home: pathlib.Path, checkpoint: pathlib.Path) -> Any:
  """The network of a checkpoint, on the CPU.

  Args:
    home: the checkout.
    checkpoint: an official file, or another with the same contents.

  Raises:
    errors.UserError: the file is absent or no such checkpoint.
  """
  description, weights = _read(checkpoint)
  try:
    arguments = parse_network(description)
  except ValueError as error:
    raise errors.UserError(f'{checkpoint}: {error}') from error
  network = getattr(import_module(home, 'dust3r.model'), _NETWORK)
  try:
    model = network(**arguments | _UPRIGHT)
    # Early checkpoints hold some weights twice; none may be missing.
    missing = model.load_state_dict(weights, strict=False).missing_keys
  except (AssertionError, RuntimeError, TypeError, ValueError) as error:
    raise errors.UserError(
      f'{checkpoint}: its network cannot be built: {error}'
    ) from error
  if missing:
    raise errors.UserError(
      f'{checkpoint}: {len(missing)} weights are missing, {missing[0]} first; '
      'download the file again'
    )
  return model


def parse_network(description: str) -> dict[str, Any]:
  """Arguments of the network that a checkpoint describes.

  Args:
    description: `AsymmetricCroCo3DStereo(name=literal, ...)`.

  Raises:
    ValueError: it is anything else.
  """
  try:
    call = ast.parse(description.strip(), mode='eval').body
  except SyntaxError as error:
    raise ValueError(f'{description!r} is no description') from error
  if not (
    isinstance(call, ast.Call)
    and isinstance(call.func, ast.Name)
    and call.func.id == _NETWORK
    and not call.args
  ):
    raise ValueError(f'{description!r} does not describe an {_NETWORK}')
  return dict(_argument(keyword) for keyword in call.keywords)


def _argument(keyword: ast.keyword) -> tuple[str, Any]:
  kind = _ARGUMENTS.get(keyword.arg)
  if kind is None:
    raise ValueError(f'{keyword.arg!r} is no argument of an {_NETWORK}')
  value = _literal(keyword.value)
  if type(value) is not kind:
    raise ValueError(f'{keyword.arg}={value!r} is no {kind.__name__}')
  return keyword.arg, value


def _literal(node: ast.expr) -> Any:
  """`ast.literal_eval` that knows `inf`."""
  if isinstance(node, ast.Tuple):
    return tuple(_literal(element) for element in node.elts)
  if isinstance(node, ast.Name) and node.id == 'inf':
    return math.inf
  if ast.unparse(node) == '-inf':
    return -math.inf
  if isinstance(node, ast.Constant):
    return node.value
  raise ValueError(f'{ast.unparse(node)!r} is no literal')


def _read(checkpoint: pathlib.Path) -> tuple[str, dict[str, Any]]:
  """The network's description and its weights."""
  import torch

  if not checkpoint.is_file():
    raise errors.UserError(
      f'{checkpoint}: no such checkpoint; download it with '
      'launch/setup_dust3r.sh, or set config.dust3r.checkpoint'
    )
  try:
    with torch.serialization.safe_globals([argparse.Namespace]):
      contents = torch.load(checkpoint, map_location='cpu', weights_only=True)
    return str(contents['args'].model), dict(contents['model'])
  except (
    AttributeError,
    EOFError,
    KeyError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
  ) as error:
    reason = str(error).split('\n')[0][:200]
    raise errors.UserError(
      f'{checkpoint}: no DUSt3R checkpoint of tensors and arguments alone '
      f'({reason}); give an official one'
    ) from error


@contextlib.contextmanager
def _importable(home: pathlib.Path) -> Iterator[None]:
  """Makes the package importable, and takes back all that this changes."""
  import torch

  path = list(sys.path)
  tf32 = torch.backends.cuda.matmul.allow_tf32
  hidden = _take_modules()
  sys.path.insert(0, str(home))
  importlib.invalidate_caches()
  try:
    # croco announces on stdout that its optional CUDA kernel is not there.
    with contextlib.redirect_stdout(sys.stderr):
      yield
  finally:
    sys.path[:] = path
    torch.backends.cuda.matmul.allow_tf32 = tf32
    _take_modules()
    sys.modules.update(hidden)


def _take_modules() -> dict[str, types.ModuleType]:
  """Removes the modules whose names the package takes, and returns them."""
  names = [name for name in sys.modules if name.split('.')[0] in _TOP_LEVEL]
  return {name: sys.modules.pop(name) for name in names}
