"""A workdir behind an address, such as gs://bucket/run, and its copy here.

Training and whatever reads a checkpoint work in a folder of this machine; a
mirror brings it here and takes back what changes. Behind the address lie the
same files under the same names, so that others read them there.

* What is there is the truth. Only where nobody has written there since this
  machine did, its own copy is gone on with, which may be ahead: by what was not
  taken there when the run was killed, or the store was away.
* A checkpoint counts once all of it is there: the file that says so,
  `_CHECKPOINT_METADATA`, is the last one to come and the first one to go.
* One run at a time: the lock of the folder (`locks`) is a file like others and
  tells processes of other machines.
* Of a run of several processes the first has the mirror. Each of the others is
  a follower with a folder of its own: it brings the checkpoint that all go on
  from, and gives the first what it writes of the next ones.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import re
import signal
import threading
from typing import Any, ContextManager, Iterable, Mapping

from absl import logging

from odin_jax.shared import checkpoint_steps, errors, files, locks, storage

_EVERY_S = 30.0
_WHOLE = '_CHECKPOINT_METADATA'
_STEP = re.compile(r'checkpoints/(\d+)/')
# Names of what is not finished, here or there.
_UNFINISHED = re.compile(r'orbax-checkpoint-tmp|(^|/)\.tmp')
# What tells one content of a file from another, by the kind of store.
_STAMPS = ('etag', 'ETag', 'md5Hash', 'generation', 'mtime', 'LastModified')
Stamps = Mapping[str, list]


class TakenError(errors.UserError):
  """Another process has begun to write behind an address."""


class _Store:
  """The files behind an address.

  Args:
    url: the address.

  Raises:
    errors.UserError: of every method, where the store can't be used.
  """

  def __init__(self, url: str):
    self.url = url.rstrip('/')
    self._system, self._inside = storage.file_system(self.url)

  def stamps(self) -> dict[str, list]:
    """Of every file by its name, what changes when it does."""
    with self._faults_named('cannot be read'):
      self._system.invalidate_cache()
      found = self._system.find(self._inside, detail=True)
    start = len(self._inside.rstrip('/')) + 1
    if any('..' in path[start:].split('/') for path in found):
      raise errors.UserError(f'{self.url}: holds names that lead out of it')
    return {
      path[start:]: [
        info['size'],
        *(str(info[key]) for key in (*_STAMPS, 'created') if info.get(key)),
      ]
      for path, info in found.items()
      if path[start:] and not path.endswith('/')
    }

  def get(self, name: str, path: pathlib.Path) -> None:
    """Brings a file here, in one piece."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with self._faults_named('cannot be read'), files.atomic_path(path) as new:
      self._system.get_file(f'{self._inside}/{name}', str(new))

  def put(self, path: pathlib.Path, name: str) -> None:
    with self._faults_named('cannot be written'):
      place = f'{self._inside}/{name}'
      self._system.makedirs(place.rpartition('/')[0], exist_ok=True)
      self._system.put_file(str(path), place)

  def remove(self, name: str) -> None:
    with (
      self._faults_named('cannot be written'),
      contextlib.suppress(FileNotFoundError),
    ):
      self._system.rm_file(f'{self._inside}/{name}')

  def tidy(self) -> None:
    """Removes empty folders, of which one would pass for a step.

    Only files of a machine, `file://`, lie in folders. To be called where no
    process puts anything there.
    """
    if getattr(self._system, 'local_file', False):
      for folder, _, _ in os.walk(self._inside, topdown=False):
        with contextlib.suppress(OSError):
          os.rmdir(folder)

  def _faults_named(self, what: str) -> ContextManager[None]:
    return storage.faults_named(
      self.url, what, 'mend it, then run the same command again'
    )


def _cache(url: str, name: str) -> pathlib.Path:
  """Where a copy is kept."""
  digest = hashlib.sha256(url.encode()).hexdigest()[:16]
  folder = f'{url.rpartition("/")[2]}-{digest}'
  return files.cache_folder() / 'workdirs' / folder / name


def _whole_steps(names: Mapping[str, Any]) -> list[int]:
  """Steps of the checkpoints of which all files are there, in order."""
  return sorted(
    int(found[1])
    for name in names
    if (found := _STEP.match(name)) and name == f'{found[0]}{_WHOLE}'
  )


def _of_whole(names: Stamps) -> dict[str, list]:
  """Without what is unfinished: parts of checkpoints, and locks."""
  steps = {str(step) for step in _whole_steps(names)}
  return {
    name: stamp
    for name, stamp in names.items()
    if name != locks.NAME
    and not _UNFINISHED.search(name)
    and ((found := _STEP.match(name)) is None or found[1] in steps)
  }


def _noted(note: pathlib.Path) -> tuple[dict[str, list], dict[str, list]]:
  """What was there, and what of here, when a copy was last the same."""
  with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
    content = json.loads(note.read_text())
    return dict(content['there']), dict(content['here'])
  return {}, {}


def _bring(store: _Store, folder: pathlib.Path, wanted: Stamps) -> None:
  """Makes the files of a folder those that are wanted, but for its lock."""
  note = _note_of(folder)
  known, _ = _noted(note)
  note.unlink(missing_ok=True)
  for path in sorted(folder.rglob('*'), reverse=True):
    name = path.relative_to(folder).as_posix()
    if path.is_dir():
      with contextlib.suppress(OSError):
        path.rmdir()
    elif name != locks.NAME and not (
      name in wanted
      and known.get(name) == wanted[name]
      and path.stat().st_size == wanted[name][0]
    ):
      path.unlink()
  for name, stamp in wanted.items():
    path = folder / name
    if not path.is_file():
      store.get(name, path)
    if path.stat().st_size != stamp[0]:
      raise errors.UserError(
        f'{store.url}/{name}: changed while it was read; run again'
      )
  here = {name: _stamp(folder / name) for name in wanted}
  files.write_json(note, {'there': dict(wanted), 'here': here})


def _note_of(folder: pathlib.Path) -> pathlib.Path:
  return folder.with_name(f'{folder.name}.json')


def _stamp(path: pathlib.Path) -> list[int]:
  """Of a file of this machine, what changes when it does."""
  status = path.stat()
  return [status.st_size, status.st_mtime_ns]


def copied(url: str, step: int | None) -> pathlib.Path:
  """A copy of a workdir that is only read.

  Args:
    url: its address.
    step: of the checkpoint that is asked for; None: the newest. Of others
      nothing is copied.

  Raises:
    errors.UserError: no such checkpoint there, or it can't be read.
  """
  store = _Store(url)
  names = _of_whole(store.stamps())
  step = checkpoint_steps.choose(url, _whole_steps(names), step)
  folder = _cache(store.url, f'step_{step}')
  folder.mkdir(parents=True, exist_ok=True)
  # Another command of this machine may bring the same.
  with open(folder.with_name(f'{folder.name}.lock'), 'w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    _bring(store, folder, _of_step(names, step))
  return folder


def _of_step(names: Stamps, step: int) -> Stamps:
  """Those of one checkpoint, and of no folder."""
  folders = ('encoders/', f'checkpoints/{step}/')
  return {
    name: stamp
    for name, stamp in names.items()
    if name.startswith(folders) or '/' not in name
  }


class Mirror:
  """A workdir that is written: a context, in which changes are taken there.

  Args:
    url: its address.
    tool: the command that writes it.

  Attributes:
    folder: of this machine, to work in; it belongs to this process.

  Raises:
    errors.UserError: it is of others, in use, or can't be read or written.
  """

  def __init__(self, url: str, tool: str):
    self._store = _Store(url)
    self.folder = _cache(self._store.url, 'run')
    self._noted_lock = self.folder.with_name('lock.json')
    self._there: set[str] = set()
    self._is_noted = False
    self._end = threading.Event()
    self._thread = threading.Thread(target=self._go_on, daemon=True)
    names = self._store.stamps()
    if names.keys() - {locks.NAME} and files.MARKER not in names:
      raise errors.UserError(
        f'{self._store.url}: holds something that {tool} did not make; give '
        'another folder'
      )
    self.folder.mkdir(parents=True, exist_ok=True)
    for name in (files.MARKER, locks.NAME):
      kept = name == files.MARKER and (self.folder / name).is_file()
      if name in names and not kept:
        self._store.get(name, self.folder / name)
    # That of the last run of this machine, if nobody has begun since.
    was_mine = (
      locks.NAME in names
      and self._noted_lock.is_file()
      and self._noted_lock.read_text() == (self.folder / locks.NAME).read_text()
    )
    try:
      files.claim_output(self.folder, tool)
    except errors.UserError as error:
      text = str(error).replace(str(self.folder), self._store.url)
      raise errors.UserError(text) from error
    # From here on others see that it is in use.
    self._lock = (self.folder / locks.NAME).read_text()
    self._noted_lock.write_text(self._lock)
    self._store.put(self.folder / locks.NAME, locks.NAME)
    try:
      self._store.tidy()
      self._begin(names, was_mine)
    except BaseException:
      self._store.remove(locks.NAME)
      raise
    if files.MARKER not in names:
      files.write_json(self.folder / files.MARKER, {'tool': tool})

  def _begin(self, names: Stamps, was_mine: bool) -> None:
    """Makes the copy what is there, unless it is ahead of that."""
    wanted = _of_whole(names)
    if not was_mine and wanted != _noted(_note_of(self.folder))[0]:
      _bring(self._store, self.folder, wanted)
    for name in wanted:
      # Somebody has tidied up here; it must not be taken for what a run removed.
      if not (self.folder / name).is_file():
        self._store.get(name, self.folder / name)
    self._taken = _noted(_note_of(self.folder))[1]
    self._there = {*names}

  def __enter__(self) -> 'Mirror':
    logging.info('%s: worked on in %s', self._store.url, self.folder)
    self._thread.start()
    return self

  def __exit__(self, kind: type | None, error: Any, trace: Any) -> None:
    self._end.set()
    self._thread.join()
    try:
      self.push()
      self._store.tidy()
      self._store.remove(locks.NAME)
    except (errors.UserError, OSError) as fault:
      text = f'{fault}; what was done is in {self.folder}'
      if kind is None or issubclass(kind, errors.Unfinished):
        raise errors.UserError(text) from fault
      logging.error('%s', text)

  def _go_on(self) -> None:
    while not self._end.wait(_EVERY_S):
      try:
        self.push()
      except TakenError:
        # What is done from here on would be lost. The end says why.
        os.kill(os.getpid(), signal.SIGTERM)
        return
      except (errors.UserError, OSError) as fault:
        # The next time may do; the last one tells.
        logging.warning('%s', fault)

  def push(self) -> None:
    """Takes there what has changed here since the last time.

    Raises:
      TakenError: the address is another run's now.
      errors.UserError: the store can't be written.
    """
    self._require_lock()
    names = (
      path.relative_to(self.folder).as_posix()
      for path in self.folder.rglob('*')
      if path.is_file()
    )
    here = {x for x in names if x != locks.NAME and not _UNFINISHED.search(x)}
    gone = self._there - here - {locks.NAME}
    if gone:
      self._is_noted = False
    for name in sorted(gone, key=lambda name: not name.endswith(_WHOLE)):
      self._store.remove(name)
      self._there.discard(name)
    for name in sorted(here, key=lambda name: (name.endswith(_WHOLE), name)):
      # What was removed meanwhile goes the next time.
      with contextlib.suppress(FileNotFoundError):
        stamp = _stamp(self.folder / name)
        if self._taken.get(name) != stamp:
          self._there.add(name)
          self._store.put(self.folder / name, name)
          self._taken[name] = stamp
          self._is_noted = False
    if self._is_noted:
      return
    files.write_json(
      _note_of(self.folder),
      {'there': _of_whole(self._store.stamps()), 'here': self._taken},
    )
    self._is_noted = True

  def collect(self) -> None:
    """Brings what followers have given of the checkpoint that is written.

    Raises:
      errors.UserError: the store can't be read or written.
    """
    for name in _given(self._store.stamps()):
      self._store.get(name, self.folder / name)
      self._store.remove(name)

  def _require_lock(self) -> None:
    """Raises TakenError: another process has taken the address."""
    seen = self.folder.with_name('lock_there.json')
    self._store.get(locks.NAME, seen)
    if seen.read_text() != self._lock:
      raise TakenError(
        f'{self._store.url}: another process has begun to write there; it is '
        'left to it'
      )


class Follower:
  """What a process of a run has that is not its first one.

  Args:
    url: address of the workdir, of which the first process has the `Mirror`.
    process: number of this one.

  Attributes:
    folder: of this process alone, with the newest checkpoint.

  Raises:
    errors.UserError: it can't be read.
  """

  def __init__(self, url: str, process: int):
    self._store = _Store(url)
    self.folder = _cache(self._store.url, f'run_{process}')
    self.folder.mkdir(parents=True, exist_ok=True)
    names = _of_whole(self._store.stamps())
    newest = max(_whole_steps(names), default=None)
    wanted = {} if newest is None else _of_step(names, newest)
    _bring(self._store, self.folder, wanted)

  def give(self) -> None:
    """Moves what it has written of a checkpoint to where the first finds it.

    Raises:
      errors.UserError: the store can't be written.
    """
    paths = (path for path in self.folder.rglob('*') if path.is_file())
    for name in _given(
      path.relative_to(self.folder).as_posix() for path in paths
    ):
      self._store.put(self.folder / name, name)
      (self.folder / name).unlink()


def _given(names: Iterable[str]) -> list[str]:
  """Of names those of a checkpoint that is being written."""
  return [
    name
    for name in names
    if name.startswith('checkpoints/') and _UNFINISHED.search(name)
  ]
