"""PSNR of pictures, against its definition."""

import numpy as np
import pytest

from odin_jax.shared import psnr


def test_an_error_of_one_level_is_48_db():
  first = np.full((4, 6, 3), 255, np.uint8)
  assert psnr.psnr_db(first, first - 1) == pytest.approx(48.1308, abs=1e-4)
  # Neither order nor unsigned arithmetic matters.
  assert psnr.psnr_db(first - 1, first) == psnr.psnr_db(first, first - 1)
  assert psnr.psnr_db(first, np.zeros_like(first)) == pytest.approx(0.0)


def test_equal_pictures_have_a_finite_one():
  first = np.zeros((4, 6, 3), np.uint8)
  assert 100 < psnr.psnr_db(first, first) < 200
