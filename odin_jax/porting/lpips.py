"""The weights of LPIPS: from torchvision and lpips to a file of ours.

A backbone comes as the state dict of torchvision's classifier, of which only
the convolutions are used; the heads come as the state dict in
`lpips/weights/v0.1` of the package lpips. Ours is `odin_jax.models.lpips`,
which reads what `write` writes.
"""

import hashlib
import os
from typing import Iterable, Mapping

import numpy as np
import safetensors.numpy

from odin_jax.models import lpips_files
from odin_jax.porting import tensors
from odin_jax.shared import errors, files

# Number of every convolution in `features` of torchvision's network.
_CONVS = {
  'alex': (0, 3, 6, 8, 10),
  'vgg': (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
}
_HEADS = 5


def _parameters(layers: Iterable[int]) -> tuple[str, ...]:
  return tuple(
    f'classifier.{layer}.{kind}'
    for layer in layers
    for kind in ('weight', 'bias')
  )


# The layers after the last convolution: they name what is in a picture.
IGNORED = {'alex': _parameters((1, 4, 6)), 'vgg': _parameters((0, 3, 6))}


def require_published(
  path: str | os.PathLike[str], net: str, part: str = 'backbone'
) -> str:
  """The SHA-256 of a file, which must be the published one.

  A score with other weights, random ones above all, is no LPIPS.

  Args:
    path: the file as it was downloaded.
    net: 'alex' or 'vgg'.
    part: 'backbone' or 'heads'.

  Raises:
    errors.UserError: there is no such file, or it is another.
  """
  published = lpips_files.PUBLISHED[net][part]
  what = f'the {part} of LPIPS with {net} ({published.source})'
  path = files.require_file(path, what)
  with open(path, 'rb') as file:
    digest = hashlib.file_digest(file, 'sha256').hexdigest()
  if not digest.startswith(published.sha256):
    raise errors.UserError(
      f'{path}: SHA-256 starts with {digest[:8]}, not {published.sha256}: this '
      f'is not {published.name}; get {published.source}'
    )
  return digest


def entries(net: str) -> list[tensors.Entry]:
  """One row per parameter of `odin_jax.models.lpips.Lpips`."""
  rows = []
  for index, layer in enumerate(_CONVS[net]):
    rows += [
      tensors.Entry(
        f'convs/{index}/kernel', f'features.{layer}.weight', 'conv'
      ),
      tensors.Entry(f'convs/{index}/bias', f'features.{layer}.bias'),
    ]
  return rows + [
    tensors.Entry(
      f'heads/{stage}/kernel', f'lin{stage}.model.1.weight', 'pointwise'
    )
    for stage in range(_HEADS)
  ]


def _require_keys(
  what: str, present: Iterable[str], needed: Iterable[str], ignored: set[str]
) -> None:
  left_over = sorted(set(present) - set(needed) - ignored)
  missing = sorted(set(needed) - set(present))
  if left_over or missing:
    raise ValueError(f'{what}: left over {left_over}, missing {missing}')


def convert(
  net: str,
  backbone: Mapping[str, np.ndarray],
  heads: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
  """Parameters of `odin_jax.models.lpips.Lpips`, by path.

  Args:
    net: 'alex' or 'vgg'.
    backbone: torchvision's state dict.
    heads: the state dict in `lpips/weights/v0.1`.

  Raises:
    ValueError: a tensor is missing, or is neither used nor in `IGNORED`.
  """
  rows = entries(net)
  in_heads = {row.name for row in rows if row.path.startswith('heads/')}
  in_backbone = {row.name for row in rows} - in_heads
  _require_keys(f'backbone {net}', backbone, in_backbone, set(IGNORED[net]))
  _require_keys(f'heads of {net}', heads, in_heads, set())
  state = {**backbone, **heads}
  return {
    # safetensors writes the memory as it lies.
    row.path: np.ascontiguousarray(tensors.to_flax(row, state[row.name]))
    for row in rows
  }


def write(
  path: str | os.PathLike[str],
  net: str,
  params: Mapping[str, np.ndarray],
  digests: Mapping[str, str],
) -> None:
  """Writes one `.safetensors` file for `odin_jax.models.lpips.load`.

  Args:
    path: of the file.
    net: 'alex' or 'vgg'.
    params: what `convert` gives.
    digests: SHA-256 of the published files that they came from, by
      `backbone_sha256` and `heads_sha256` or by `package_sha256`.

  Raises:
    ValueError: a digest is not that of the published file.
  """
  unpublished = lpips_files.unpublished(net, digests)
  if unpublished is not None:
    raise ValueError(
      f'{unpublished} is not that of the published {net} weights'
    )
  metadata = {
    'format': lpips_files.FORMAT,
    'net': net,
    **digests,
    'content_sha256': lpips_files.content_sha256(params),
  }
  with files.atomic_path(path) as temporary:
    safetensors.numpy.save_file(dict(params), temporary, metadata)
