"""Stand-ins for gs://, whose driver is not installed."""

import importlib

from fsspec.implementations import memory


class Bucket(memory.MemoryFileSystem):
  """A store in memory."""

  protocol = ('gs',)
  store: dict = {}
  pseudo_dirs = ['']

  @classmethod
  def _strip_protocol(cls, path):
    return super()._strip_protocol(path.replace('gs://', 'memory://'))


def install(monkeypatch, kind, **attributes):
  """Makes a class of buckets what comes for gs://, empty, until a test's end."""
  registry = importlib.import_module('fsspec.registry')
  monkeypatch.setitem(registry._registry, 'gs', kind)
  fresh = {'store': {}, 'pseudo_dirs': [''], **attributes}
  for name, value in fresh.items():
    monkeypatch.setattr(kind, name, value)
