"""360-degree videos -> posed pairs of views, as records.

    python -m preprocessing.run --config=configs/preprocess.py \\
        --input=FILE_OR_FOLDER --output=DIR [--config.KEY=VALUE]

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
from typing import Any, Iterable, Iterator

from absl import flags
from tqdm import tqdm

from odin_jax.shared import command, errors, files
from preprocessing import ids, settings
from preprocessing.exporting import exports
from preprocessing.reading import detection, frames, projections
from preprocessing.running import ray_engine, workers
from preprocessing.solving import masks
from preprocessing.writing import dropping, merging, parts

_TOOL = 'preprocessing.run'
_VIDEO_SUFFIXES = frozenset(
  '.360 .avi .flv .insv .m4v .mkv .mov .mp4 .mpeg .mpg .ogv .ts .webm '
  '.wmv'.split()
)
# What preprocessing.download leaves beside its videos.
_NO_VIDEOS = frozenset(['ledger.jsonl', 'download.json'])

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


def find_videos(
  path: pathlib.Path,
) -> tuple[list[pathlib.Path], list[dict[str, Any]]]:
  """Videos of a file or folder, by name; ledger rows for everything else.

  Raises:
    errors.UserError: there is nothing, or no video in the folder.
  """
  if path.is_file():
    return [path], []
  files.require_folder(path, 'a video or a folder of videos')
  videos: dict[str, pathlib.Path] = {}
  others = []
  for entry in sorted(path.iterdir()):
    if entry.name.startswith('.') or entry.name in _NO_VIDEOS:
      continue
    if not entry.is_file() or entry.suffix.lower() not in _VIDEO_SUFFIXES:
      others.append(_row(entry, 'not a video'))
    elif entry.stem in videos:
      others.append(_row(entry, f'same stem as {videos[entry.stem].name}'))
    else:
      videos[entry.stem] = entry
  if not videos:
    raise errors.UserError(
      f'{path}: no video in this folder; give 360-degree videos '
      f'({" ".join(sorted(_VIDEO_SUFFIXES))})'
    )
  return list(videos.values()), others


def _row(path: pathlib.Path, reason: str) -> dict[str, Any]:
  return {
    'video_id': path.stem,
    'stage': 'input',
    'reason': reason,
    'file': path.name,
  }


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
    layout = detection.decide(video, config.projection).layout
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
  videos: list[pathlib.Path], output: pathlib.Path
) -> tuple[list[pathlib.Path], list[dict[str, Any]]]:
  """Videos that may be used, and ledger rows of the others."""
  reasons = {
    **dict.fromkeys(ids.read_excluded(_EXCLUDE_IDS.value), 'excluded'),
    **dict.fromkeys(ids.read_dropped(output), dropping.REASON),
  }
  rows = [
    {
      'video_id': path.stem,
      'stage': dropping.STAGE,
      'reason': reasons[path.stem],
    }
    for path in videos
    if path.stem in reasons
  ]
  # What an earlier run made of them goes too.
  parts.remove(output, {row['video_id'] for row in rows})
  return [path for path in videos if path.stem not in reasons], rows


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


def process_all(
  events: Iterable[workers.Report | workers.Outcome],
  *,
  num_videos: int,
  max_bad: int,
) -> dict[str, workers.Outcome]:
  """Follows the engine under a progress bar.

  Raises:
    errors.UserError: more than `max_bad` videos cannot be used.
  """
  outcomes: dict[str, workers.Outcome] = {}
  shares: dict[str, float] = {}
  bad = 0
  with tqdm(
    total=num_videos,
    unit='video',
    bar_format='{l_bar}{bar}| {elapsed}{postfix}',
  ) as bar:
    for event in events:
      if isinstance(event, workers.Outcome):
        outcomes[event.video_id] = event
        share = 1.0
        bad += bool(event.error)
      else:
        share = event.share
        bar.set_postfix_str(f'{event.video_id}: {event.phase}', refresh=False)
      bar.update(share - shares.get(event.video_id, 0.0))
      shares[event.video_id] = share
      if bad > max_bad:
        raise errors.UserError(_too_many(event.error, bad, max_bad))
  return outcomes


def _too_many(error: str, bad: int, max_bad: int) -> str:
  if not max_bad:
    return error
  return f'{error}; {bad} videos are unusable, max_bad_videos={max_bad}'


def _nothing(
  source: pathlib.Path, usable: list[str], dropped: list[dict[str, Any]]
) -> str:
  reasons = '; '.join(dict.fromkeys(row['reason'] for row in dropped))
  if usable:
    return (
      f'{source}: no pair of views came of {", ".join(usable)}'
      f'{f" ({reasons})" if reasons else ""}; give a longer video, with more '
      'texture, or one that moves'
    )
  return f'{source}: no usable video in it ({reasons}); give 360-degree videos'


def main() -> None:
  """Runs the pipeline and merges its parts."""
  stopwatch = command.Stopwatch()
  source = pathlib.Path(_INPUT.value)
  videos, dropped = find_videos(source)
  try:
    job_settings = checked_settings()
  except masks.ShapeError as error:
    raise _with_size(error, videos[0]) from error
  output = files.claim_output(_OUTPUT.value, _TOOL)
  # A request to drop videos that was cut short must not be forgotten.
  dropping.finish_drop(output)
  videos, rows = without_excluded(videos, output)
  dropped += rows
  if not videos:
    raise errors.UserError(
      f'{source}: every video in it is excluded; what {output} holds stays '
      '(preprocessing.records --drop_ids takes videos out)'
    )
  jobs = [
    workers.Job(path=path, output=output, settings=job_settings)
    for path in videos
  ]
  with contextlib.closing(events(jobs)) as running:
    outcomes = process_all(
      running,
      num_videos=len(jobs),
      max_bad=job_settings.max_bad_videos if source.is_dir() else 0,
    )
  for path in videos:
    if outcomes[path.stem].error:
      dropped.append(_row(path, outcomes[path.stem].error))
  usable = [path.stem for path in videos if not outcomes[path.stem].error]
  if not any(parts.size(output, video_id) for video_id in usable):
    # Before the merge: records that are here already stay as they are.
    for video_id in usable:
      dropped += parts.read_note(output, video_id)['dropped']
    raise errors.UserError(_nothing(source, usable, dropped))
  merging.merge(
    output,
    video_ids=usable,
    config=job_settings.values,
    tool=_TOOL,
    extra_dropped=dropped,
  )
  _write_figures(output, stopwatch, [outcomes[name] for name in usable])


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
