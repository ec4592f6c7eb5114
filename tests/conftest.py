"""Fixtures that several tests share."""

import gc
import os
import pathlib

import pytest

# Compiling is most of the time of tests: tiny networks need no fast code.
# Without the emitters of fusions, and in one module of LLVM, it takes two
# thirds.
os.environ.setdefault(
  'XLA_FLAGS',
  '--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false '
  '--xla_cpu_parallel_codegen_split_count=1',
)
# Tracing makes many objects, few of which are garbage.
gc.set_threshold(100_000, 50, 50)

_REPOSITORY = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope='session')
def repository() -> pathlib.Path:
  """The root of the checkout."""
  return _REPOSITORY


@pytest.fixture(scope='session')
def shared_data() -> pathlib.Path:
  """The folder of real data; the test is skipped where it is absent."""
  folder = pathlib.Path(
    os.environ.get('ODIN_SHARED_DATA', _REPOSITORY.parent / 'shared' / 'data')
  )
  if not folder.is_dir():
    pytest.skip(f'no real data at {folder}; set ODIN_SHARED_DATA')
  return folder
