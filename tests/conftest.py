"""Fixtures that several tests share."""

import os
import pathlib

import pytest

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
