"""How near two pictures are, for figures that need no jax."""

from jaxtyping import UInt8
import numpy as np

# Of equal pictures, whose PSNR is infinite, which JSON cannot hold.
_LEAST_ERROR = 1e-9


def psnr_db(
  first: UInt8[np.ndarray, 'h w 3'], second: UInt8[np.ndarray, 'h w 3']
) -> float:
  """Peak signal-to-noise ratio of 8-bit pictures; about 138 of equal ones."""
  error = float(np.mean(np.square(first.astype(float) - second)))
  return float(10 * np.log10(255**2 / max(error, _LEAST_ERROR)))
