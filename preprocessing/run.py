"""360-degree videos -> posed pairs of views, as records.

    python -m preprocessing.run --config=configs/preprocess.py \\
        --input=FILE_OR_FOLDER --output=DIR [--config.KEY=VALUE]

Writes into DIR: TFRecord shards per split with features.json and
dataset_info.json, manifest.json (config, versions, figures per video,
checksums), ledger.jsonl (what was dropped, where and why) and run.json
(seconds, memory). Each finished video is kept in parts/: a run that was
stopped goes on where it was.
"""

import pathlib
import resource
from typing import Any

from absl import flags
from tqdm import tqdm

from odin_jax.shared import binary
from preprocessing import matchers, parts, shards, workers

_TOOL = 'preprocessing.run'
_VIDEO_SUFFIXES = frozenset(
  '.360 .avi .flv .insv .m4v .mkv .mov .mp4 .mpeg .mpg .ogv .ts .webm .wmv'.split()
)

_CONFIG = binary.define_config('configs/preprocess.py')
_INPUT = flags.DEFINE_string(
  'input', None, 'A 360-degree video, or a folder of them.'
)
_OUTPUT = flags.DEFINE_string(
  'output', None, 'Folder to write; new, or made by this command.'
)
_NUM_WORKERS = flags.DEFINE_integer(
  'num_workers', 0, 'Videos at a time; 0: as many as there are cores.', 0
)
flags.mark_flags_as_required(['input', 'output'])


def find_videos(
  path: pathlib.Path,
) -> tuple[list[pathlib.Path], list[dict[str, Any]]]:
  """Videos of a file or folder, by name; ledger rows for everything else.

  Raises:
    binary.UserError: there is nothing, or no video in the folder.
  """
  if path.is_file():
    return [path], []
  binary.require_folder(path, 'a video or a folder of videos')
  videos: dict[str, pathlib.Path] = {}
  others = []
  for entry in sorted(path.iterdir()):
    if entry.name.startswith('.'):
      continue
    if not entry.is_file() or entry.suffix.lower() not in _VIDEO_SUFFIXES:
      others.append(_row(entry, 'not a video'))
    elif entry.stem in videos:
      others.append(_row(entry, f'same stem as {videos[entry.stem].name}'))
    else:
      videos[entry.stem] = entry
  if not videos:
    raise binary.UserError(
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


def process_all(
  jobs: list[workers.Job], *, num_workers: int, max_bad: int
) -> dict[str, workers.Outcome]:
  """Does all jobs under a progress bar.

  Raises:
    binary.UserError: more than `max_bad` videos cannot be used.
  """
  outcomes: dict[str, workers.Outcome] = {}
  shares: dict[str, float] = {}
  bad = 0
  with tqdm(
    total=len(jobs), unit='video', bar_format='{l_bar}{bar}| {elapsed}{postfix}'
  ) as bar:
    for event in workers.run(jobs, num_workers):
      if isinstance(event, workers.Outcome):
        outcomes[event.video_id] = event
        shares[event.video_id] = 1.0
        bad += bool(event.error)
      else:
        shares[event.video_id] = event.share
        bar.set_postfix_str(f'{event.video_id}: {event.stage}', refresh=False)
      bar.n = sum(shares.values())
      bar.refresh()
      if bad > max_bad:
        raise binary.UserError(_too_many(event.error, bad, max_bad))
  return outcomes


def _check(config: Any) -> None:
  """Refuses values that no video could be made records with."""
  for name in ('fps', 'substeps', 'window_s', 'view_size_px', 'views_per_pair'):
    if not config[name] > 0:
      raise binary.UserError(f'config.{name}={config[name]}: must be above 0')
  if not 0 < config.fov_deg < 180:
    raise binary.UserError(
      f'config.fov_deg={config.fov_deg}: must be between 0 and 180'
    )
  if config.matcher not in matchers.NAMES:
    raise binary.UserError(
      f'config.matcher={config.matcher!r}: give one of {matchers.NAMES}'
    )


def _too_many(error: str, bad: int, max_bad: int) -> str:
  if not max_bad:
    return error
  return f'{error}; {bad} videos are unusable, max_bad_videos={max_bad}'


def _nothing(
  source: pathlib.Path, usable: list[str], dropped: list[dict[str, Any]]
) -> str:
  if usable:
    return (
      f'{source}: no frames of it could be posed ({", ".join(usable)}); give a '
      'video with more texture, or one that moves'
    )
  reasons = '; '.join(row['reason'] for row in dropped)
  return f'{source}: no usable video in it ({reasons}); give 360-degree videos'


def main() -> None:
  """Runs the pipeline and merges its parts."""
  stopwatch = binary.Stopwatch()
  config = _CONFIG.value
  _check(config)
  source = pathlib.Path(_INPUT.value)
  videos, dropped = find_videos(source)
  output = binary.claim_output(_OUTPUT.value, _TOOL)
  jobs = [
    workers.Job(path=path, output=output, config=config.to_dict())
    for path in videos
  ]
  outcomes = process_all(
    jobs,
    num_workers=_NUM_WORKERS.value,
    max_bad=config.max_bad_videos if source.is_dir() else 0,
  )
  for path in videos:
    if outcomes[path.stem].error:
      dropped.append(_row(path, outcomes[path.stem].error))
  usable = [path.stem for path in videos if not outcomes[path.stem].error]
  if not any(parts.size(output, video_id) for video_id in usable):
    # Before the merge: records that are here already stay as they are.
    raise binary.UserError(_nothing(source, usable, dropped))
  shards.merge(
    output,
    video_ids=usable,
    config=config.to_dict(),
    tool=_TOOL,
    extra_dropped=dropped,
  )
  figures = stopwatch.figures()
  children_kb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
  figures['peak_rss_mb'] = max(
    figures['peak_rss_mb'], round(children_kb / 1024, 1)
  )
  figures['video_seconds'] = {
    video_id: outcomes[video_id].seconds for video_id in usable
  }
  binary.write_json(output / 'run.json', figures)


if __name__ == '__main__':
  binary.run(main)
