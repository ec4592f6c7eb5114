"""What vendors publish of accelerators."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
  """The published rates of one chip, decimal units.

  Attributes:
    flops_per_s: of bfloat16 matrix products, without sparsity.
    memory_bytes: of its main memory (HBM).
    memory_bytes_per_s: to and from it.
    sent_bytes_per_s: to other chips over all of its links together; as much is
      received at the same time.
  """

  flops_per_s: float
  memory_bytes: float
  memory_bytes_per_s: float
  sent_bytes_per_s: float


_GIB = 2.0**30
# By the first word of a topology, as libtpu names it.
CHIPS = {
  # https://cloud.google.com/tpu/docs/v4: 275 TFLOPs, 32 GiB and 1200 GBps,
  # 2400 Gbps between chips.
  'v4': Chip(275e12, 32 * _GIB, 1200e9, 300e9),
  # https://cloud.google.com/tpu/docs/v5e: 197 TFLOPs, 16 GB and 819 GBps,
  # 400 GBps between chips, both directions together.
  'v5e': Chip(197e12, 16 * _GIB, 819e9, 200e9),
  # https://cloud.google.com/tpu/docs/v5p: 459 TFLOPs, 95 GiB and 2765 GBps,
  # 1200 GBps between chips, both directions together.
  'v5p': Chip(459e12, 95 * _GIB, 2765e9, 600e9),
  # https://cloud.google.com/tpu/docs/v6e: 918 TFLOPs, 32 GB and 1638 GBps,
  # 800 GBps between chips, both directions together.
  'v6e': Chip(918e12, 32 * _GIB, 1638e9, 400e9),
  # https://www.nvidia.com/en-us/data-center/h100/ (SXM): 989 TFLOPs, which is
  # half of what is told with sparsity, 80 GB and 3.35 TB/s, NVLink of 900 GB/s,
  # both directions together.
  'h100': Chip(989e12, 80e9, 3350e9, 450e9),
  # Data sheets of NVIDIA: the same with other memory; PCIe's is slower.
  'h200': Chip(989e12, 141e9, 4800e9, 450e9),
  'h100_pcie': Chip(756e12, 80e9, 2000e9, 300e9),
  'a100': Chip(312e12, 80e9, 2039e9, 300e9),
}
# How the name of a device begins that jax gives; longer names first.
_OF_DEVICES = {
  'TPU v4': 'v4',
  'TPU v5 lite': 'v5e',
  'TPU v5e': 'v5e',
  'TPU v5p': 'v5p',
  'TPU v5': 'v5p',
  'TPU v6 lite': 'v6e',
  'TPU v6e': 'v6e',
  'NVIDIA A100': 'a100',
  'NVIDIA H100 PCIe': 'h100_pcie',
  'NVIDIA H100': 'h100',
  'NVIDIA H200': 'h200',
}


def peak_flops_per_s(device_kind: str) -> float | None:
  """Of one device; None where nothing is known, as of CPUs."""
  for name, chip in _OF_DEVICES.items():
    if device_kind.startswith(name):
      return CHIPS[chip].flops_per_s
  return None
