"""Parts of videos to shards, with all that describes them.

The parts are merged in the order of the videos, so that the shards depend on
nothing but the records.
"""

import importlib.metadata
import os
import pathlib
import shutil
import types
from typing import Any, Mapping, Sequence

from odin_jax.shared import files, panorama_schema, record_folder, schema
from preprocessing import ids
from preprocessing.writing import (
  dropping,
  panorama_index,
  parts,
  shards,
  tfds_metadata,
)

_VERSIONS_OF = ('numpy', 'opencv-python-headless', 'av', 'pycolmap', 'torch')


def merge(
  output: str | os.PathLike[str],
  *,
  video_ids: Sequence[str],
  config: Mapping[str, Any],
  tool: str,
  extra_dropped: Sequence[Mapping[str, Any]] = (),
  seeds: Mapping[str, int] = types.MappingProxyType({}),
  num_shards: int | None = None,
  schema_of: schema.Schema = schema.PAIRS,
) -> dict[str, Any]:
  """Merges parts into shards and writes everything that describes them.

  Args:
    output: the run's output folder.
    video_ids: whose parts to merge, in this order; those that were taken out
      of this folder stay out.
    config: goes into the manifest.
    tool: the command that made the records.
    extra_dropped: ledger rows of what has no part, with `video_id`.
    seeds: of the procedural worlds among them, for the manifest.
    num_shards: per split; by default so many that none is large.
    schema_of: the kind of the records.

  Returns:
    the manifest.

  Raises:
    errors.UserError: a part is missing or damaged.
  """
  output = pathlib.Path(output)
  dropping.finish_drop(output)
  dropped_ids = ids.read_dropped(output)
  notes = {
    video_id: parts.read_note(output, video_id)
    for video_id in video_ids
    if video_id not in dropped_ids
  }
  # A file without records has no frame to index.
  records_of = shards.by_split(
    parts.paths(output, video_id)[0]
    for video_id, note in notes.items()
    if note['records']
  )
  entries = shards.write(output, records_of, num_shards, schema_of)
  shards.remove(output, keep=entries)
  parts.remove(output, dropped_ids)
  optional = shards.optional_features(records_of, schema_of)
  tfds_metadata.write(output, entries, optional, schema_of)
  if schema_of is panorama_schema.PANORAMAS:
    panorama_index.write(output, records_of)
  rows = [row for note in notes.values() for row in note['dropped']]
  rows, removed = dropping.ledger_without(
    (*rows, *extra_dropped), dropped_ids, present=video_ids
  )
  shards.write_ledger(output, rows)
  manifest = {
    'tool': tool,
    'schema_version': schema.SCHEMA_VERSION,
    'versions': _versions(),
    'config': dict(config),
    'counts': {
      'videos': len(notes),
      'dropped': len(rows),
      **{split: len(records_of[split]) for split in schema.SPLITS},
    },
    'videos': [
      {
        'video_id': video_id,
        **note['summary'],
        **({record_folder.SEED: seeds[video_id]} if video_id in seeds else {}),
        'records': note['records'],
      }
      for video_id, note in notes.items()
    ],
    'shards': entries,
    'dropped_on_request': removed,
    'absent_on_request': len(dropped_ids) - len(removed),
  }
  files.write_json(output / shards.MANIFEST, manifest)
  return manifest


def claim_panoramas(
  output: pathlib.Path, *, are_kept: bool, tool: str
) -> pathlib.Path:
  """The folder of panoramas below a run's output, made or removed.

  Those of an earlier run that kept them would not be of the pairs beside them.

  Args:
    output: the run's output folder.
    are_kept: by this run.
    tool: the command that makes the records.
  """
  folder = output / panorama_schema.FOLDER
  if are_kept:
    return files.claim_output(folder, tool)
  shutil.rmtree(folder, ignore_errors=True)
  return folder


def _versions() -> dict[str, str]:
  versions = {}
  for package in _VERSIONS_OF:
    try:
      versions[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      versions[package] = 'absent'
  return versions
