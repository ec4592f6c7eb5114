"""Cores that a process may use."""

import os

from odin_jax.shared import cores


def test_cores_are_those_that_the_process_is_kept_to(monkeypatch):
  monkeypatch.setattr(
    os, 'sched_getaffinity', lambda process: {3, 5}, raising=False
  )
  assert cores.text() == 'devices: 2 CPU cores'


def test_where_a_system_keeps_none_they_are_those_of_the_machine(monkeypatch):
  monkeypatch.delattr(os, 'sched_getaffinity', raising=False)
  monkeypatch.setattr(os, 'cpu_count', lambda: 7)
  assert cores.count() == 7
