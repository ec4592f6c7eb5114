"""One video's records and figures, kept apart until the run is merged.

Each video goes to a part of its own as soon as it is done, so that a run that
was stopped goes on where it was:

    parts/VIDEO_ID.part    records, framed as TFRecords
    parts/VIDEO_ID.json    figures, ledger rows, checksum; written last

What else a run keeps of a single video is in folders of its id:

    cameras/VIDEO_ID/      its camera path for other tools
    rejected/VIDEO_ID/     examples of what was dropped

Its panoramas, where a run keeps them, are a part of the folder below:

    panoramas/parts/...
"""

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
from typing import Any, Collection, Iterable, Iterator, Mapping, Sequence

from odin_jax.shared import files, panorama_schema, schema, tfrecord

# Where attempts on other machines write until they are whole.
SCRATCH = '.tmp-ray'
_FOLDERS_PER_VIDEO = ('cameras', 'rejected')


def paths(
  output: str | os.PathLike[str], video_id: str
) -> tuple[pathlib.Path, pathlib.Path]:
  folder = pathlib.Path(output) / 'parts'
  return folder / f'{video_id}.part', folder / f'{video_id}.json'


def sha256(path: pathlib.Path) -> str:
  """Checksum of a file."""
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def write(
  output: str | os.PathLike[str],
  video_id: str,
  *,
  records: Iterable[Mapping[str, Any]],
  summary: Mapping[str, Any],
  dropped: Sequence[Mapping[str, Any]],
  fingerprint: str,
  schema_of: schema.Schema = schema.PAIRS,
) -> None:
  """Writes all that is known of one video, in one piece.

  Args:
    output: the run's output folder.
    video_id: the video's stem.
    records: its records (`odin_jax.shared.schema`).
    summary: its figures, for the manifest.
    dropped: rows for the ledger, with at least `stage` and `reason`.
    fingerprint: digest of all that the records depend on.
    schema_of: the kind of the records.

  Raises:
    schema.SchemaError: a record that does not follow the schema, or that
      belongs to another video.
  """
  part, note = paths(output, video_id)
  part.parent.mkdir(parents=True, exist_ok=True)
  with files.atomic_path(part) as temporary:
    count = tfrecord.write_file(
      temporary, _encoded(records, video_id, schema_of)
    )
  # The note comes last: with it the part is done.
  files.write_json(
    note,
    {
      'fingerprint': fingerprint,
      'records': count,
      'sha256': sha256(part),
      'summary': dict(summary),
      'dropped': [_ledger_row(video_id, row) for row in dropped],
    },
  )


def _encoded(
  records: Iterable[Mapping[str, Any]], video_id: str, schema_of: schema.Schema
) -> Iterator[bytes]:
  for record in records:
    encoded = schema_of.encode(record)
    if record['video_id'] != video_id:
      raise schema.SchemaError(
        f'video_id: {record["video_id"]!r} in the part of {video_id!r}'
      )
    yield encoded


def _ledger_row(video_id: str, row: Mapping[str, Any]) -> dict[str, Any]:
  missing = {'stage', 'reason'} - row.keys()
  if missing:
    raise ValueError(f'ledger row {dict(row)} lacks {sorted(missing)}')
  return {'video_id': video_id, **row}


def is_done(
  output: str | os.PathLike[str], video_id: str, fingerprint: str
) -> bool:
  """Whether the part is there, whole, and of this fingerprint."""
  part, note = paths(output, video_id)
  if not (part.is_file() and note.is_file()):
    return False
  try:
    content = json.loads(note.read_text())
  except ValueError:
    return False
  if content['fingerprint'] != fingerprint:
    return False
  return content['sha256'] == sha256(part)


def size(output: str | os.PathLike[str], video_id: str) -> int:
  """Number of records in a part that is done."""
  _, note = paths(output, video_id)
  return json.loads(note.read_text())['records']


def fingerprint(output: str | os.PathLike[str], video_id: str) -> str:
  """Digest of all that a part that is done depends on."""
  _, note = paths(output, video_id)
  return json.loads(note.read_text())['fingerprint']


def read_note(output: pathlib.Path, video_id: str) -> dict[str, Any]:
  part, note = paths(output, video_id)
  files.require_file(part, 'the records of this video')
  files.require_file(note, 'the note on these records')
  try:
    content = json.loads(note.read_text())
  except ValueError as error:
    raise tfrecord.CorruptRecordError(
      f'{note}: damaged ({error}); delete it and run again'
    ) from error
  if content['sha256'] != sha256(part):
    raise tfrecord.CorruptRecordError(
      f'{part}: its checksum differs; delete it and run again'
    )
  return content


def remove(output: str | os.PathLike[str], video_ids: Collection[str]) -> None:
  """Removes all that is kept of single videos, where it is there.

  Args:
    output: the run's output folder.
    video_ids: any names; only what lies in the folders above is removed.
  """
  # Entries are looked up by their names. A path made of an id such as `..`
  # would lead out of the folder.
  output = pathlib.Path(output)
  for entry in _entries(output / 'parts'):
    path = pathlib.Path(_final(entry))
    if path.suffix in ('.part', '.json') and path.stem in video_ids:
      entry.unlink(missing_ok=True)
  for folder in _FOLDERS_PER_VIDEO:
    for entry in _entries(output / folder):
      if _final(entry) in video_ids:
        # A machine that was given up may still be at work here.
        with contextlib.suppress(FileNotFoundError):
          shutil.rmtree(entry)
  if (output / panorama_schema.FOLDER).is_dir():
    remove(output / panorama_schema.FOLDER, video_ids)


def remove_scratch(output: str | os.PathLike[str]) -> None:
  """Removes what attempts of a run that was killed had not finished."""
  shutil.rmtree(pathlib.Path(output) / SCRATCH, ignore_errors=True)


def _final(entry: pathlib.Path) -> str:
  """The name that a file gets when it is whole."""
  return entry.name.removeprefix('.tmp-')


def _entries(folder: pathlib.Path) -> list[pathlib.Path]:
  return sorted(folder.iterdir()) if folder.is_dir() else []
