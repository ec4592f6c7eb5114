"""What chips can do at best, as their makers publish it."""

# Dense bfloat16 multiplications and additions per second, by how the name of
# the device begins that jax gives; longer names first.
_BFLOAT16_PER_S = {
  # https://cloud.google.com/tpu/docs/v4, .../v5e, .../v5p, .../v6e
  'TPU v4': 275e12,
  'TPU v5 lite': 197e12,
  'TPU v5e': 197e12,
  'TPU v5p': 459e12,
  'TPU v5': 459e12,
  'TPU v6 lite': 918e12,
  'TPU v6e': 918e12,
  # Data sheets of NVIDIA, without sparsity.
  'NVIDIA A100': 312e12,
  'NVIDIA H100 PCIe': 756e12,
  'NVIDIA H100': 989e12,
  'NVIDIA H200': 989e12,
}


def peak_flops_per_s(device_kind: str) -> float | None:
  """Of one device; None where nothing is known, as of CPUs."""
  for name, rate in _BFLOAT16_PER_S.items():
    if device_kind.startswith(name):
      return rate
  return None
