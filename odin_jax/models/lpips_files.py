"""The files of LPIPS weights: which are published, and the format of ours."""

import hashlib
from typing import Mapping, NamedTuple

import numpy as np

FORMAT = 'odin-lpips'


class Published(NamedTuple):
  """A file that everybody's LPIPS scores are made with.

  Attributes:
    name: of the file.
    sha256: how its digest starts; torchvision puts 8 digits into the name.
    source: where it can be had.
  """

  name: str
  sha256: str
  source: str


_TORCHVISION = 'https://download.pytorch.org/models/'
_LPIPS = 'lpips/weights/v0.1/ of the wheel lpips==0.1.4, as '
PUBLISHED = {
  'alex': {
    'backbone': Published(
      'alexnet-owt-7be5be79.pth',
      '7be5be79',
      f'{_TORCHVISION}alexnet-owt-7be5be79.pth',
    ),
    'heads': Published('alex.pth', 'df73285e', f'{_LPIPS}alex.pth'),
  },
  'vgg': {
    'backbone': Published(
      'vgg16-397923af.pth', '397923af', f'{_TORCHVISION}vgg16-397923af.pth'
    ),
    'heads': Published('vgg.pth', 'a78928a0', f'{_LPIPS}vgg.pth'),
  },
}


def content_sha256(params: Mapping[str, np.ndarray]) -> str:
  """SHA-256 of all arrays, in the order of their names."""
  digest = hashlib.sha256()
  for name in sorted(params):
    digest.update(params[name].tobytes())
  return digest.hexdigest()
