"""360-degree videos -> posed pairs of views, as records.

    python -m preprocessing.run --config=configs/preprocess.py \\
        --input=FILE_OR_FOLDER --output=DIR [--config.KEY=VALUE]

Subfolders are searched, too; the id of a video is the stem of its file. A video
that cannot be used costs the others nothing: it is a row of the ledger, and the
run ends with status 2 only where more than config.max_bad_share of them are,
after it has written what is good.

Writes into DIR: TFRecord shards per split with features.json and
dataset_info.json, manifest.json (config, versions, figures per video,
checksums), ledger.jsonl (what was dropped, where and why) and run.json
(seconds, memory); cameras/VIDEO_ID/ with the camera path as a COLMAP model of
panoramas (see `preprocessing.exporting.exports` for --export);
rejected/VIDEO_ID/ with pictures of rejected pairs. Each finished video is kept
in parts/: a run that was stopped goes on where it was, and a run with more
videos does only those.

On a cluster: --engine=ray, see launch/preprocess_ray.yaml. The bytes are the
same as on one machine.
"""

import sys

# As a file it finds none of the packages below.
if __name__ == '__main__' and not __package__:
  sys.stderr.write('error: type: python -m preprocessing.run\n')
  sys.exit(2)

import contextlib
import json
import pathlib
import resource
from typing import Any, Iterable, Iterator, Mapping

from absl import flags

from odin_jax.shared import (
  command,
  cores,
  errors,
  files,
  panorama_schema,
  progress,
  world_names,
)
from preprocessing import ids, settings
from preprocessing.exporting import exports
from preprocessing.reading import detection, frames, projections
from preprocessing.running import closing, inputs, ray_engine, workers
from preprocessing.solving import masks
from preprocessing.writing import dropping, merging, parts

_TOOL = 'preprocessing.run'
_NO_PAIRS = 'no pair of views came of it'
_NO_PAIRS_ADVICE = 'give a longer video, with more texture, or one that moves'

_CONFIG = command.define_config('configs/preprocess.py')
_INPUT = command.define_input()
_OUTPUT = command.define_output()
_PROJECTION = flags.DEFINE_enum(
  'projection',
  None,
  ['auto', *projections.NAMES],
  'Layout of the frames of all videos; auto: found out for each. Sets '
  'config.projection.',
)
_TRUST_PROJECTION = flags.DEFINE_bool(
  'trust_projection',
  False,
  'The layout that --projection names holds, even where pictures clearly show '
  'that it is wrong. Sets config.trust_projection.',
)
_MASK = command.define_path(
  'mask',
  'PNG, laid out as the panoramas, black (up to 25 of 255) or transparent '
  'where the operator is; added to the mask that is found.',
)
_EXPORT = flags.DEFINE_list(
  'export',
  [],
  'Layouts in which camera paths leave with their pictures and masks, too; of '
  f'{", ".join(exports.FORMATS)}. Sets config.export_formats.',
)
_EXCLUDE_IDS = command.define_exclude_ids()
_NUM_WORKERS = command.define_num_workers('Videos')
_MAX_ATTEMPTS = flags.DEFINE_integer(
  'max_attempts',
  workers.MAX_ATTEMPTS,
  'How often a video is begun whose process or machine dies.',
  1,
)
_ENGINE = flags.DEFINE_enum(
  'engine', 'local', ['local', 'ray'], 'Processes here, or a Ray cluster.'
)
_RAY_ADDRESS = flags.DEFINE_string(
  'ray_address',
  '',
  'With --engine=ray: a cluster that runs, auto or IP:PORT; else one is '
  'started on this machine.',
)
_MATCHER_ACTORS = flags.DEFINE_integer(
  'matcher_actors',
  0,
  'With --engine=ray: processes that match for all videos, such as a network '
  'on GPUs; 0: every video does so itself.',
  0,
)
_GPUS_PER_ACTOR = flags.DEFINE_float(
  'gpus_per_actor', 0.0, 'Share of a GPU that each of them holds.', 0.0
)
flags.mark_flags_as_required(['input', 'output'])


def checked_settings() -> settings.Settings:
  """The config with what flags set in it, checked.

  Raises:
    errors.UserError: a value that cannot be used.
  """
  config = _CONFIG.value
  if _PROJECTION.value:
    config.projection = _PROJECTION.value
  if _TRUST_PROJECTION.value:
    config.trust_projection = True
  if _EXPORT.value:
    config.export_formats = tuple(_EXPORT.value)
  if _MASK.value:
    config.mask = _MASK.value
  for flag in (_RAY_ADDRESS, _MATCHER_ACTORS, _GPUS_PER_ACTOR):
    if flag.value and _ENGINE.value != 'ray':
      raise errors.UserError(f'--{flag.name}: only with --engine=ray')
  if _GPUS_PER_ACTOR.value and not _MATCHER_ACTORS.value:
    raise errors.UserError('--gpus_per_actor: only with --matcher_actors')
  if _NUM_WORKERS.value and _RAY_ADDRESS.value:
    raise errors.UserError(
      '--num_workers: not with --ray_address; the cluster has its size'
    )
  return settings.checked(config)


def _with_size(
  error: masks.ShapeError, video: pathlib.Path
) -> errors.UserError:
  """The error, and the size that a mask of this video should have."""
  config = _CONFIG.value
  try:
    layout = detection.decide(
      video, config.projection, trusted=config.trust_projection
    ).layout
    first = next(
      frames.read_frames(
        video, config.fps, layout, max_width_px=config.max_panorama_width_px
      )
    )
  except (frames.VideoError, StopIteration):
    # What the video lacks is said when the mask is right.
    return error
  height, width = first.image.shape[:2]
  return errors.UserError(
    f'{error}: those of {video.name} are {width} x {height}'
  )


def without_excluded(
  found: inputs.Inputs, output: pathlib.Path
) -> tuple[inputs.Inputs, list[dict[str, Any]]]:
  """The inputs that may be used, and ledger rows of the other videos."""
  reasons = {
    **dict.fromkeys(ids.read_excluded(_EXCLUDE_IDS.value), 'excluded'),
    **dict.fromkeys(ids.read_dropped(output), dropping.REASON),
  }
  names = [path.stem for path in found.videos]
  names += [row['video_id'] for row in found.unusable]
  rows = [
    {'video_id': name, 'stage': dropping.STAGE, 'reason': reasons[name]}
    for name in names
    if name in reasons
  ]
  # What an earlier run made of them goes too.
  parts.remove(output, {row['video_id'] for row in rows})
  kept = inputs.Inputs(
    [path for path in found.videos if path.stem not in reasons],
    [row for row in found.unusable if row['video_id'] not in reasons],
    found.others,
  )
  return kept, rows


def events(
  jobs: list[workers.Job],
) -> Iterator[workers.Report | workers.Outcome]:
  """Does all jobs on the engine that was asked for."""
  if _ENGINE.value == 'local':
    return workers.run(jobs, _NUM_WORKERS.value, _MAX_ATTEMPTS.value)
  return ray_engine.run(
    jobs,
    ray_engine.Rules(
      address=_RAY_ADDRESS.value,
      num_workers=_NUM_WORKERS.value,
      max_attempts=_MAX_ATTEMPTS.value,
      matcher_actors=_MATCHER_ACTORS.value,
      gpus_per_actor=_GPUS_PER_ACTOR.value,
    ),
  )


def _devices_text(options: Mapping[str, Any]) -> str:
  """What videos are computed on, by options of the matcher."""
  device = options.get('device')
  if device == 'auto':
    device = 'cuda where there is a GPU'
  return f'{cores.text()}{f", the matcher: {device}" if device else ""}'


def process_all(
  events: Iterable[workers.Report | workers.Outcome], *, num_videos: int
) -> dict[str, workers.Outcome]:
  """Follows the engine to its end under a progress bar."""
  outcomes: dict[str, workers.Outcome] = {}
  shares: dict[str, float] = {}
  with progress.bar(
    num_videos, 'video', bar_format='{l_bar}{bar}| {elapsed}{postfix}'
  ) as bar:
    for event in events:
      if isinstance(event, workers.Outcome):
        outcomes[event.video_id] = event
        share = 1.0
      else:
        share = event.share
        bar.set_postfix_str(f'{event.video_id}: {event.phase}', refresh=False)
      bar.update(share - shares.get(event.video_id, 0.0))
      shares[event.video_id] = share
  return outcomes


def unusable_rows(
  outcomes: Iterable[tuple[pathlib.Path, workers.Outcome]],
  source: pathlib.Path,
  output: pathlib.Path,
) -> list[dict[str, Any]]:
  """Ledger rows of the videos that gave no records."""
  rows = []
  for path, outcome in outcomes:
    if outcome.error:
      reason = closing.short_reason(outcome.error, path)
      rows.append(inputs.row(path, source, reason, outcome.error))
    elif not parts.size(output, outcome.video_id):
      why = _reasons_within(output, outcome.video_id)
      message = f'{path}: {_NO_PAIRS}{why}; {_NO_PAIRS_ADVICE}'
      rows.append(inputs.row(path, source, _NO_PAIRS, message))
  return rows


def _reasons_within(output: pathlib.Path, video_id: str) -> str:
  """What was said of a video's frames and pairs, in brackets."""
  dropped = parts.read_note(output, video_id)['dropped']
  texts = dict.fromkeys(row['reason'] for row in dropped)
  return f' ({", ".join(texts)})' if texts else ''


def _nothing(
  source: pathlib.Path, rows: list[dict[str, Any]]
) -> errors.UserError:
  """What is said where no video gave records."""
  message = rows[0]['message']
  if source.is_dir():
    message = (
      f'{source}: no usable video in it: {closing.reasons(rows)}; the first is '
      f'{message}'
    )
  return errors.UserError(ids.printable(message))


def _too_many(
  output: pathlib.Path, rows: list[dict[str, Any]], total: int, most: float
) -> errors.UserError:
  return errors.UserError(
    ids.printable(
      f'{len(rows)} of {total} videos were dropped, more than '
      f'config.max_bad_share={most:g} allows: {closing.reasons(rows)}; what '
      f'came of the others is in {output}'
    )
  )


def main() -> None:
  """Runs the pipeline and merges its parts."""
  stopwatch = command.Stopwatch()
  source = pathlib.Path(_INPUT.value)
  found = inputs.find(source, pathlib.Path(_OUTPUT.value))
  try:
    job_settings = checked_settings()
  except masks.ShapeError as error:
    if not found.videos:
      raise
    raise _with_size(error, found.videos[0]) from error
  output = files.claim_output(_OUTPUT.value, _TOOL)
  panoramas = merging.claim_panoramas(
    output, are_kept=job_settings.panorama_records, tool=_TOOL
  )
  # A request to drop videos that was cut short must not be forgotten.
  dropping.finish_drop(output)
  found, excluded = without_excluded(found, output)
  total = len(found.videos) + len(found.unusable)
  if not total:
    raise errors.UserError(
      f'{source}: every video in it is excluded; what {output} holds stays '
      '(preprocessing.records --drop_ids takes videos out)'
    )
  jobs = [
    workers.Job(path=path, output=output, settings=job_settings)
    for path in found.videos
  ]
  if _ENGINE.value == 'local':
    command.say([_devices_text(job_settings.matching.options)])
  with contextlib.closing(events(jobs)) as running:
    outcomes = process_all(running, num_videos=len(jobs))
  done = [(path, outcomes[path.stem]) for path in found.videos]
  unusable = [*found.unusable, *unusable_rows(done, source, output)]
  if len(unusable) == total:
    # Before the merge: records that are here already stay as they are.
    raise _nothing(source, unusable)
  usable = [outcome for _, outcome in done if not outcome.error]
  of_run: dict[str, Any] = {
    'video_ids': [outcome.video_id for outcome in usable],
    'config': job_settings.values,
    'tool': _TOOL,
    'seeds': {
      path.stem: seed
      for path in found.videos
      if (seed := world_names.seed_of_video(path)) is not None
    },
  }
  manifest = merging.merge(
    output, extra_dropped=[*found.others, *excluded, *unusable], **of_run
  )
  kept = []
  if job_settings.panorama_records:
    merged = merging.merge(
      panoramas, schema_of=panorama_schema.PANORAMAS, **of_run
    )
    kept = closing.panoramas(panoramas, merged['counts'])
  _write_figures(output, stopwatch, usable)
  used = closing.used(
    _OUTPUT.value,
    num_videos=total,
    dropped=unusable,
    num_excluded=len(excluded),
  )
  command.say(
    [
      used,
      *closing.unconfirmed(manifest['videos']),
      *closing.copies(
        {
          outcome.video_id: parts.fingerprint(output, outcome.video_id)
          for outcome in usable
          if parts.size(output, outcome.video_id)
        }
      ),
      *kept,
      *closing.written(_OUTPUT.value, manifest['counts']),
    ]
  )
  if len(unusable) > job_settings.max_bad_share * total:
    raise _too_many(output, unusable, total, job_settings.max_bad_share)


def _write_figures(
  output: pathlib.Path,
  stopwatch: command.Stopwatch,
  outcomes: list[workers.Outcome],
) -> None:
  """Writes run.json; videos that were done before keep their seconds."""
  path = output / 'run.json'
  seconds: dict[str, float] = {}
  if path.is_file():
    seconds = json.loads(path.read_text()).get('video_seconds', {})
  figures = stopwatch.figures()
  children_kb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
  figures['peak_rss_mb'] = max(
    figures['peak_rss_mb'], round(children_kb / 1024, 1)
  )
  figures['video_seconds'] = {
    outcome.video_id: outcome.seconds or seconds.get(outcome.video_id, 0.0)
    for outcome in outcomes
  }
  files.write_json(path, figures)


if __name__ == '__main__':
  command.run(main)
