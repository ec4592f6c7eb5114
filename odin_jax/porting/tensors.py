"""One row per parameter: its path here, its name elsewhere, its layout.

torch keeps a linear layer as [out in] and a convolution as [out in h w]; Flax
as [in out] and [h w in out].
"""

from typing import Callable, NamedTuple

from jaxtyping import Shaped
import numpy as np

Tensor = Shaped[np.ndarray, '...']


class Entry(NamedTuple):
  """A parameter of ours and where a foreign checkpoint holds it.

  Attributes:
    path: ours, slash-separated, as `odin_jax.sharding.path_name`
      writes it: `down/0/1/residual/conv1/kernel`.
    name: of the tensor in the checkpoint.
    layout: a key of `LAYOUTS`.
    part: (index, count) where the tensor holds `count` of our parameters
      stacked along its first axis, as a fused query, key and value.
  """

  path: str
  name: str
  layout: str = 'same'
  part: tuple[int, int] = (0, 1)


class Layout(NamedTuple):
  """How torch keeps an array, and how Flax does: inverse functions."""

  to_flax: Callable[[Tensor], Tensor]
  to_torch: Callable[[Tensor], Tensor]


LAYOUTS = {
  'same': Layout(lambda x: x, lambda x: x),
  'linear': Layout(lambda x: x.T, lambda x: x.T),
  'conv': Layout(
    lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1)
  ),
  # A 1x1 convolution there is a linear layer here.
  'pointwise': Layout(
    lambda x: x[:, :, 0, 0].T, lambda x: x.T[:, :, None, None]
  ),
}


def layer(path: str, name: str, layout: str) -> list[Entry]:
  """The rows of a linear or convolutional layer with a bias."""
  return [
    Entry(f'{path}/kernel', f'{name}.weight', layout),
    Entry(f'{path}/bias', f'{name}.bias'),
  ]


def norm(path: str, name: str) -> list[Entry]:
  """The rows of a normalisation."""
  return [
    Entry(f'{path}/scale', f'{name}.weight'),
    Entry(f'{path}/bias', f'{name}.bias'),
  ]


def to_flax(entry: Entry, tensor: Tensor) -> Tensor:
  """Our parameter, cut out of the checkpoint's tensor."""
  index, count = entry.part
  size = len(tensor) // count if count > 1 else None
  if size is not None:
    tensor = tensor[index * size : (index + 1) * size]
  return LAYOUTS[entry.layout].to_flax(tensor)


def to_torch(entries: list[Entry], params: list[Tensor]) -> Tensor:
  """The checkpoint's tensor that the parameters of `entries` make up.

  Args:
    entries: all that share one name.
    params: one per entry.
  """
  order = np.argsort([entry.part[0] for entry in entries])
  parts = [LAYOUTS[entries[i].layout].to_torch(params[i]) for i in order]
  return parts[0] if len(parts) == 1 else np.concatenate(parts)
