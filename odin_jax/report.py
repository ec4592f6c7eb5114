"""The folders of a run -> summary.json and one self-contained page.

  python -m odin_jax.report --run=runs/demo --videos=runs/demo/worlds

Reads what the stages left in the run's folder (`records`, `audit`, `train`,
`evaluate/*`, `generate`, `reconstruct`, `stages.jsonl`) and writes
`summary.json` and `index.html` beside them. The page opens from disk: images,
the video and the 3D data are inside it.
"""

import sys

# As a file it finds none of the packages below.
if __name__ == '__main__' and not __package__:
  sys.stderr.write('error: type: python -m odin_jax.report\n')
  sys.exit(2)

import json
import pathlib
from typing import Any

from absl import flags
import av
import cv2
import numpy as np
import trimesh

from odin_jax.shared import (
  command,
  errors,
  files,
  locks,
  page,
  record_folder,
  schema,
)

_RUN = command.define_path(
  'run', 'Folder that holds the folders of the stages.', required=True
)
_VIDEOS = command.define_path(
  'videos', 'The video, or the folder of videos, of this run.'
)
_TITLE = flags.DEFINE_string('title', 'ODIN', 'Heading of the page.')

_TOOL = 'odin_jax.report'
# Folders under `evaluate` as launch/demo.sh names them: the model, what it has
# to beat, and the model with poses shuffled.
_MODEL, _BASELINES, _SHUFFLED = 'model', ('copy', 'mean'), 'shuffled'
_EVALUATIONS = (_MODEL, *_BASELINES, _SHUFFLED)
_TEMPLATE = pathlib.Path(__file__).with_name('report.html')
_GRID_PAIRS = 16
_MAX_POINTS = 30_000
_PANORAMA_WIDTH_PX = 1024


def _read_json(path: pathlib.Path) -> Any:
  files.require_file(path, 'a finished stage of the run')
  return json.loads(path.read_text())


def _read_rows(path: pathlib.Path) -> list[dict[str, Any]]:
  files.require_file(path, 'a finished stage of the run')
  return [json.loads(line) for line in path.read_text().splitlines()]


def _evaluations(run: pathlib.Path) -> dict[str, dict[str, float]]:
  """Mean metrics by evaluation: `model`, `copy`, `mean`, `shuffled`, ..."""
  folders = sorted((run / 'evaluate').glob('*/metrics.json'))
  return {
    path.parent.name: {
      **json.loads(path.read_text())['mean'],
      'pairs': len(json.loads(path.read_text())['pairs']),
    }
    for path in folders
  }


def _gains(
  evaluations: dict[str, dict[str, float]], suffix: str = ''
) -> dict[str, Any]:
  """What the model wins over the trivial predictors, and what poses are worth.

  Args:
    evaluations: mean metrics by name.
    suffix: of the names, such as `_unseen`.
  """
  rows = {
    name: evaluations[name + suffix]
    for name in _EVALUATIONS
    if name + suffix in evaluations
  }
  if len(rows) < len(_EVALUATIONS):
    return {}
  psnr = {name: row['psnr'] for name, row in rows.items()}
  ssim = {name: row['ssim'] for name, row in rows.items()}
  return {
    'pairs': rows[_MODEL]['pairs'],
    'psnr': psnr,
    'ssim': ssim,
    'gain_db': psnr[_MODEL] - max(psnr[name] for name in _BASELINES),
    'ssim_gain': ssim[_MODEL] - max(ssim[name] for name in _BASELINES),
    'shuffle_drop_db': psnr[_MODEL] - psnr[_SHUFFLED],
  }


def _checkpoint(run: pathlib.Path, trained_steps: int) -> dict[str, Any]:
  """Which checkpoint was evaluated.

  Args:
    run: the folder of the run.
    trained_steps: the last step that training noted.

  Returns:
    `step`, and `steps` of a training that is finished; both None where the
    evaluation is of no training.
  """
  path = run / 'evaluate' / _MODEL / 'metrics.json'
  model = _read_json(path)['protocol'].get('model', {})
  step, steps = model.get('checkpoint_step'), model.get('training_steps')
  if not step or not steps:
    return {'step': None, 'steps': None}
  return {'step': step, 'steps': max(steps, trained_steps)}


def _step_text(checkpoint: dict[str, Any]) -> str:
  """`step N of M`, and a warning where these are not the same."""
  if checkpoint['step'] is None:
    return 'step unknown'
  text = f'step {checkpoint["step"]} of {checkpoint["steps"]}'
  if checkpoint['step'] < checkpoint['steps']:
    text += ', not the last: finish the training, then evaluate again'
  return text


def summarise(run: pathlib.Path) -> dict[str, Any]:
  """The figures of a run, from the JSON files of its stages."""
  audit = _read_json(run / 'audit' / 'audit.json')
  rows = _read_rows(run / 'train' / 'metrics.jsonl')
  evaluations = _evaluations(run)
  tenth = max(1, len(rows) // 10)
  loss = np.array([row['loss'] for row in rows])
  stages = _read_rows(run / 'stages.jsonl')
  return {
    **audit,
    'train': {
      'steps': rows[-1]['step'],
      'checkpoint': _checkpoint(run, rows[-1]['step']),
      'loss_first': float(loss[:tenth].mean()),
      'loss_last': float(loss[-tenth:].mean()),
      'mask_mean': rows[-1]['mask_mean'],
      **_gains(evaluations),
      'unseen': _gains(evaluations, '_unseen'),
    },
    'reconstruct': _read_json(run / 'reconstruct' / 'reconstruction.json'),
    'seconds': {row['stage']: row['seconds'] for row in stages},
    'peak_rss_mb': {row['stage']: row['peak_rss_mb'] for row in stages},
  }


def _panoramas(videos: pathlib.Path) -> list[dict[str, str]]:
  """The first frame of every video, as a data URI."""
  paths = sorted(videos.glob('*.mp4')) if videos.is_dir() else [videos]
  panoramas = []
  for path in paths:
    with av.open(str(path)) as container:
      image = next(container.decode(video=0)).to_ndarray(format='bgr24')
    height = _PANORAMA_WIDTH_PX * image.shape[0] // image.shape[1]
    image = cv2.resize(
      image, (_PANORAMA_WIDTH_PX, height), interpolation=cv2.INTER_AREA
    )
    jpeg = cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, 80])[1]
    panoramas.append(
      {'name': path.stem, 'uri': page.data_uri(jpeg.tobytes(), 'image/jpeg')}
    )
  return panoramas


def _camera_paths(records: pathlib.Path) -> list[dict[str, Any]]:
  """The distinct panorama poses of every video, in the order of time."""
  poses: dict[str, dict[float, list[float]]] = {}
  for split in schema.SPLITS:
    if not any(records.glob(f'{schema.DATASET_NAME}-{split}.*')):
      continue
    for record in record_folder.RecordFolder(records, split):
      of_video = poses.setdefault(record['video_id'], {})
      for side in ('source', 'target'):
        frame2scene = record[f'{side}/frame2scene']
        of_video[record[f'{side}/time_s']] = np.round(
          frame2scene.astype(float), 4
        ).tolist()
  return [
    {'name': video, 'poses': [of_video[time] for time in sorted(of_video)]}
    for video, of_video in sorted(poses.items())
  ]


def _grid(evaluation: pathlib.Path) -> list[dict[str, Any]]:
  """Source, truth and sample of pairs spread over an evaluation."""
  pairs = json.loads((evaluation / 'metrics.json').read_text())['pairs']
  chosen = np.linspace(0, len(pairs) - 1, min(_GRID_PAIRS, len(pairs)))
  cells = []
  for index in np.unique(chosen.astype(int)):
    cell: dict[str, Any] = {'psnr': pairs[index]['psnr']}
    for kind, name in pairs[index]['files'].items():
      cell[kind] = page.data_uri((evaluation / name).read_bytes(), 'image/png')
    cells.append(cell)
  return cells


def _point_cloud(path: pathlib.Path) -> dict[str, Any]:
  """Positions and colours of a PLY file, thinned to what a page bears."""
  cloud = trimesh.load(path, process=False)
  # An empty file is loaded as a scene, which has no vertices.
  vertices = np.asarray(getattr(cloud, 'vertices', []), np.float64)
  vertices = vertices.reshape(-1, 3)
  colours = np.asarray(getattr(cloud, 'colors', np.zeros((0, 4))))
  if len(colours) != len(vertices):
    colours = np.full((len(vertices), 4), 128)
  keep = np.linspace(0, len(vertices) - 1, min(_MAX_POINTS, len(vertices)))
  keep = keep.astype(int)
  return {
    'count': len(vertices),
    'xyz': np.round(vertices[keep], 4).ravel().tolist(),
    'rgb': colours[keep, :3].astype(int).ravel().tolist(),
  }


def page_data(
  run: pathlib.Path, videos: pathlib.Path | None, summary: dict[str, Any]
) -> dict[str, Any]:
  """Everything that the page shows, as JSON."""
  drawings = sorted((run / 'audit' / 'pairs').glob('*.jpg'))
  generated = run / 'generate'
  poses = _read_json(generated / 'poses.json')
  return {
    'title': _TITLE.value,
    'summary': summary,
    'checkpoint': _step_text(summary['train']['checkpoint']),
    'stages': _read_rows(run / 'stages.jsonl'),
    'panoramas': _panoramas(videos) if videos else [],
    'matches': [page.data_uri(p.read_bytes(), 'image/jpeg') for p in drawings],
    'paths': _camera_paths(run / 'records'),
    'curves': _read_rows(run / 'train' / 'metrics.jsonl'),
    'grid': _grid(run / 'evaluate' / _MODEL),
    'video': page.data_uri((generated / 'video.mp4').read_bytes(), 'video/mp4'),
    'trajectory': [frame['camera2scene'] for frame in poses['frames']],
    'points': _point_cloud(run / 'reconstruct' / 'points.ply'),
  }


def _table(summary: dict[str, Any]) -> str:
  """The results as lines of text."""
  lines = [f'{"":44}{"PSNR dB":>9}{"SSIM":>8}']
  train = summary['train']
  lines.append(f'model: {_step_text(train["checkpoint"])}')
  for label, rows in (('held out', train), ('unseen worlds', train['unseen'])):
    for name in rows.get('psnr', {}):
      psnr, ssim = rows['psnr'][name], rows['ssim'][name]
      lines.append(f'{label + ": " + name:44}{psnr:9.2f}{ssim:8.3f}')
  for kind, figures in (summary.get('pose') or {}).items():
    for name, value in figures.items():
      if isinstance(value, (int, float)):
        lines.append(f'{f"pose.{kind}.{name}":44}{value:9.3g}')
  for stage, seconds in summary['seconds'].items():
    peak = summary['peak_rss_mb'][stage]
    lines.append(f'{stage:44}{seconds:9.1f} s{peak:8.0f} MB')
  return '\n'.join(lines)


def main() -> None:
  run = files.require_folder(_RUN.value, 'the folder of a run')
  videos = pathlib.Path(_VIDEOS.value) if _VIDEOS.value else None
  if videos and not videos.exists():
    raise errors.UserError(f'{videos}: no such file or folder; see --videos')
  target = run / 'index.html'
  if target.exists() and not (run / 'summary.json').exists():
    raise errors.UserError(f'{target}: not made by {_TOOL}; move it away')
  locks.acquire(run)
  summary = summarise(run)
  files.write_json(run / 'summary.json', summary)
  html = page.render(_TEMPLATE, page_data(run, videos, summary))
  with files.atomic_path(target) as temporary:
    temporary.write_text(html)
  print(_table(summary))  # noqa: T201 - the result of the command.
  print(f'page: {target}')  # noqa: T201


if __name__ == '__main__':
  command.run(main)
