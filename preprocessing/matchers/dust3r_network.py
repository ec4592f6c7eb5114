"""A DUSt3R network that encodes every view once and decodes pairs in batches.

The package's forward pass encodes both views of every pair anew; its three
parts `_encode_image`, `_decoder` and `_downstream_head` are called here
instead, with the same results. S. Wang et al., "DUSt3R: Geometric 3D Vision
Made Easy", CVPR 2024, https://arxiv.org/abs/2312.14132.
"""

import contextlib
import dataclasses
import types
from typing import Any, Callable, ContextManager, Iterator, Sequence

from jaxtyping import Float32, UInt8
import numpy as np

from odin_jax.shared import errors

PRECISIONS = ('fp32', 'bf16')
ATTENTIONS = ('stock', 'sdpa')
DEVICES = ('auto', 'cpu', 'cuda')


@dataclasses.dataclass(frozen=True)
class Tokens:
  """A view as the encoder sees it, on the network's device.

  Attributes:
    features: tensor [tokens, channels].
    positions: tensor [tokens, 2], row and column of each patch.
    height_px: of the view.
    width_px: of the view.
  """

  features: Any
  positions: Any
  height_px: int
  width_px: int


@dataclasses.dataclass(frozen=True)
class PairMaps:
  """The answer for a pair of views, all of it in the axes of view one.

  Attributes:
    points_one: the scene point of every pixel of view one, up to scale.
    confidence_one: of each, at least 1.
    points_two: the scene point of every pixel of view two.
    confidence_two: of each.
  """

  points_one: Float32[np.ndarray, 'h w 3']
  confidence_one: Float32[np.ndarray, 'h w']
  points_two: Float32[np.ndarray, 'h w 3']
  confidence_two: Float32[np.ndarray, 'h w']


class Network:
  """See the module docstring.

  Args:
    model: anything with the three methods above; is moved to the device.
    device: one of DEVICES; 'auto': CUDA where there is a GPU.
    precision: one of PRECISIONS; 'bf16' is autocast, the heads stay in fp32.
    attention: one of ATTENTIONS; 'sdpa' replaces the softmax that croco writes
      out by torch's fused kernel in this model alone; equal up to rounding.
    batch_size: views, or pairs, at a time; halved for good when the GPU's
      memory is full.

  Raises:
    errors.UserError: an option has no such value, or there is no GPU.
  """

  def __init__(
    self,
    model: Any,
    *,
    device: str,
    precision: str,
    attention: str,
    batch_size: int,
  ):
    check_names(device=device, precision=precision, attention=attention)
    self._device = _find_device(device)
    self._precision = precision
    self._model = model.to(self._device).eval()
    if attention == 'sdpa':
      _use_fused_attention(self._model)
    self._encoder_batches = Batches(batch_size)
    self._decoder_batches = Batches(batch_size)

  def encode(self, views: UInt8[np.ndarray, 'n h w 3']) -> list[Tokens]:
    """Tokens of views whose sides are multiples of the patch size."""
    return list(self._encoder_batches.run(self._encode, views))

  def decode(
    self, pairs: Sequence[tuple[Tokens, Tokens]]
  ) -> Iterator[PairMaps]:
    """Pointmaps of pairs of views of one size, in their order."""
    return self._decoder_batches.run(self._decode, pairs)

  def _encode(self, views: UInt8[np.ndarray, 'n h w 3']) -> list[Tokens]:
    import torch

    count, height, width = views.shape[:3]
    with torch.inference_mode(), self._autocast():
      pixels = self._to_device(
        np.ascontiguousarray(views.transpose(0, 3, 1, 2))
      )
      # As the package's transform does it: to [0, 1], then to [-1, 1].
      images = (pixels.float() / 255 - 0.5) / 0.5
      shape = torch.tensor([[height, width]]).repeat(count, 1)
      features, positions, _ = self._model._encode_image(images, shape)
    return [Tokens(*row, height, width) for row in zip(features, positions)]

  def _decode(self, pairs: Sequence[tuple[Tokens, Tokens]]) -> list[PairMaps]:
    import torch

    views_one, views_two = zip(*pairs)
    with torch.inference_mode():
      with self._autocast():
        decoded = self._model._decoder(*_stack(views_one), *_stack(views_two))
      # The heads are kept in fp32, as in the package.
      with torch.autocast(self._device.type, enabled=False):
        predictions = [
          self._model._downstream_head(
            number, [tokens.float() for tokens in layers], _shapes(views)
          )
          for number, layers, views in zip(
            (1, 2), decoded, (views_one, views_two)
          )
        ]
      maps = [
        self._to_host(side[name])
        for side in predictions
        for name in ('pts3d', 'conf')
      ]
      if self._device.type == 'cuda':
        torch.cuda.synchronize(self._device)
    return [PairMaps(*row) for row in zip(*(item.numpy() for item in maps))]

  def _autocast(self) -> ContextManager[Any]:
    import torch

    if self._precision == 'fp32':
      return contextlib.nullcontext()
    return torch.autocast(self._device.type, dtype=torch.bfloat16)

  def _to_device(self, array: np.ndarray) -> Any:
    import torch

    tensor = torch.from_numpy(array)
    if self._device.type == 'cuda':
      tensor = tensor.pin_memory()
    return tensor.to(self._device, non_blocking=True)

  def _to_host(self, tensor: Any) -> Any:
    import torch

    if self._device.type != 'cuda':
      return tensor
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return pinned.copy_(tensor, non_blocking=True)


class Batches:
  """Runs a function over items, as many at a time as memory allows.

  Attributes:
    size: items at a time; halved for good when the GPU's memory is full.
  """

  def __init__(self, size: int):
    self.size = size

  def run(
    self,
    function: Callable[[Any], list[Any]],
    items: Sequence[Any] | np.ndarray,
  ) -> Iterator[Any]:
    """The results of `function`, which maps a slice of items to a list.

    Raises:
      torch.cuda.OutOfMemoryError: not even one item fits.
    """
    start = 0
    while start < len(items):
      batch = items[start : start + self.size]
      results = self._try(function, batch)
      if results is not None:
        start += len(batch)
        yield from results

  def _try(
    self,
    function: Callable[[Any], list[Any]],
    batch: Sequence[Any] | np.ndarray,
  ) -> list[Any] | None:
    """The results, or None after making the batches smaller."""
    import torch

    try:
      return function(batch)
    except torch.cuda.OutOfMemoryError:
      if len(batch) == 1:
        raise
      self.size = len(batch) // 2
    torch.cuda.empty_cache()
    return None


def check_names(*, device: str, precision: str, attention: str) -> None:
  """Checks options that are one of some names.

  Raises:
    errors.UserError: one is none of them.
  """
  _require('precision', precision, PRECISIONS)
  _require('attention', attention, ATTENTIONS)
  _require('device', device, DEVICES)


def _require(name: str, value: str, allowed: tuple[str, ...]) -> None:
  if value not in allowed:
    raise errors.UserError(
      f'config.dust3r.{name}={value!r}: give one of {allowed}'
    )


def _find_device(name: str) -> Any:
  import torch

  if name == 'auto':
    name = 'cuda' if torch.cuda.is_available() else 'cpu'
  if name == 'cuda' and not torch.cuda.is_available():
    raise errors.UserError(
      'config.dust3r.device=cuda: torch finds no GPU; give cpu or auto'
    )
  return torch.device(name)


def _stack(views: Sequence[Tokens]) -> tuple[Any, Any]:
  import torch

  return (
    torch.stack([view.features for view in views]),
    torch.stack([view.positions for view in views]),
  )


def _shapes(views: Sequence[Tokens]) -> Any:
  import torch

  return torch.tensor([[view.height_px, view.width_px] for view in views])


def _use_fused_attention(model: Any) -> None:
  """Replaces `forward` of croco's attention modules, on these objects only."""
  for module in model.modules():
    forward = _FUSED.get(type(module).__name__)
    if forward is not None:
      module.forward = types.MethodType(forward, module)


def _self_attention(module: Any, x: Any, positions: Any) -> Any:
  heads = module.qkv(x).unflatten(-1, (3, module.num_heads, -1))
  query, key, value = heads.permute(2, 0, 3, 1, 4)
  return _attend(module, query, key, value, positions, positions)


def _cross_attention(
  module: Any,
  query: Any,
  key: Any,
  value: Any,
  query_positions: Any,
  key_positions: Any,
) -> Any:
  query, key, value = (
    project(tokens).unflatten(-1, (module.num_heads, -1)).transpose(1, 2)
    for project, tokens in (
      (module.projq, query),
      (module.projk, key),
      (module.projv, value),
    )
  )
  return _attend(module, query, key, value, query_positions, key_positions)


def _attend(
  module: Any,
  query: Any,
  key: Any,
  value: Any,
  query_positions: Any,
  key_positions: Any,
) -> Any:
  """Attention over tensors [batch, heads, tokens, channels]."""
  from torch.nn import functional

  if module.rope is not None:
    # In bf16 the angles of far patches would be off by degrees.
    query = module.rope(query.float(), query_positions).to(value.dtype)
    key = module.rope(key.float(), key_positions).to(value.dtype)
  mixed = functional.scaled_dot_product_attention(query, key, value)
  return module.proj_drop(module.proj(mixed.transpose(1, 2).flatten(2)))


_FUSED = {'Attention': _self_attention, 'CrossAttention': _cross_attention}
