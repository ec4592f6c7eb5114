"""Takes videos out of finished records, because someone asked for it.

    python -m preprocessing.records --records=DIR --drop_ids=FILE

DIR is a folder of preprocessing.run, or of preprocessing.worlds --pairs. All
that it holds of these videos goes: records, parts, camera paths, examples of
what was dropped. The shards become those of a run that never had the videos.
The ledger keeps one row for each, and dropped_ids.txt keeps them out of later
runs into the same folder. A run that was stopped is finished by the next one.
"""

import sys

# As a file it finds none of the packages below.
if __name__ == '__main__' and not __package__:
  sys.stderr.write('error: type: python -m preprocessing.records\n')
  sys.exit(2)

from absl import logging

from odin_jax.shared import command, errors, files
from preprocessing import ids
from preprocessing.writing import dropping, shards

_TOOLS = ('preprocessing.run', 'preprocessing.worlds')

_RECORDS = command.define_records('to take videos out of')
_DROP_IDS = command.define_path(
  'drop_ids',
  'List of ids: a parquet file with a column id, or a text file with one id '
  'per line. An id is the stem of the video file.',
)


def main() -> None:
  """Reads the flags and takes the videos out."""
  for name, flag in (('records', _RECORDS), ('drop_ids', _DROP_IDS)):
    if not flag.value:
      raise errors.UserError(f'--{name} is missing; see --help')
  drop_ids = ids.read_excluded(_DROP_IDS.value)
  if not drop_ids:
    raise errors.UserError(
      f'{_DROP_IDS.value}: no id in it; give the ids of the videos to drop'
    )
  folder = files.require_folder(_RECORDS.value, 'a folder of records')
  tool = shards.read_manifest(folder)['tool']
  if tool not in _TOOLS:
    raise errors.UserError(
      f'{folder}: records of {tool}; give a folder of {" or ".join(_TOOLS)}'
    )
  files.claim_output(folder, tool)
  manifest = dropping.drop(folder, drop_ids)
  if manifest['absent_on_request']:
    logging.warning(
      '%d of the ids that were to be dropped, now or before, have no video in '
      '%s',
      manifest['absent_on_request'],
      folder,
    )
  dropped, counts = manifest['dropped_on_request'], manifest['counts']
  given = {'records': folder, 'output': command.beside(folder, 'audit')}
  command.finish(
    _RECORDS.value,
    f'{len(dropped)} videos are dropped so far; '
    f'{counts["train"]} train and {counts["test"]} test records are left',
    then=('judge them', 'preprocessing.audit', given),
  )


if __name__ == '__main__':
  command.run(main)
