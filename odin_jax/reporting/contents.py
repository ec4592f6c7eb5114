"""What the page of a run shows: pictures, paths and points of its folders."""

import pathlib
from typing import Any

import av
import cv2
import numpy as np
import trimesh

from odin_jax.reporting import summary, verdict
from odin_jax.shared import (
  errors,
  page,
  provenance,
  quantities,
  record_folder,
  schema,
)

TEMPLATE = pathlib.Path(__file__).with_name('run_page.html')
_GRID_PAIRS = 16
_MAX_POINTS = 30_000
_PANORAMA_WIDTH_PX = 1024
# More videos than these have no column of their own; the audit's page has all.
_MAX_COLUMNS = 4
_PREDICTORS = {
  'model': 'model, one sample',
  'copy': 'copy of the source',
  'mean': "source's mean colour",
  'shuffled': 'model, poses shuffled',
  'model_mean': 'model, one step: about its conditional mean',
  'pretrained': 'the model that training started from, one step',
  'without_pretraining': 'the same training from nothing, one step',
  'sweep': 'source seen at eight distances, averaged',
  'warp': 'source warped by the true depth: the ceiling of pure geometry',
}
# What the table of poses leaves out: no figures, or shown elsewhere.
_NOT_IN_TABLE = (
  'video_id',
  'kind',
  'order',
  'pose',
  'pose_of_long_pairs',
  'sampson_px_per_video',
)


def _panoramas(videos: pathlib.Path) -> list[dict[str, str]]:
  """The first frame of every video, as a data URI."""
  paths = sorted(videos.glob('*.mp4')) if videos.is_dir() else [videos]
  pictures = []
  for path in paths:
    with av.open(str(path)) as container:
      image = next(container.decode(video=0)).to_ndarray(format='bgr24')
    height = _PANORAMA_WIDTH_PX * image.shape[0] // image.shape[1]
    image = cv2.resize(
      image, (_PANORAMA_WIDTH_PX, height), interpolation=cv2.INTER_AREA
    )
    jpeg = cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, 80])[1]
    pictures.append(
      {'name': path.stem, 'uri': page.data_uri(jpeg.tobytes(), 'image/jpeg')}
    )
  return pictures


def _matches(drawings: pathlib.Path) -> list[str]:
  """The drawings of an audit, as data URIs."""
  return [
    page.data_uri(path.read_bytes(), 'image/jpeg')
    for path in sorted(drawings.glob('*.jpg'))
  ]


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


def _grids(run: pathlib.Path) -> list[dict[str, Any]]:
  """Samples of the model on held-out frames, and on unseen worlds if it was."""
  named = {
    'held-out frames': run / 'evaluate' / summary.MODEL,
    'unseen worlds': run / f'evaluate{summary.UNSEEN}' / summary.MODEL,
  }
  return [
    {'name': name, 'cells': _grid(folder)}
    for name, folder in named.items()
    if (folder / 'metrics.json').is_file()
  ]


def _grid(evaluation: pathlib.Path) -> list[dict[str, Any]]:
  """Source, truth and sample of pairs spread over an evaluation."""
  pairs = summary.read_json(evaluation / 'metrics.json', 'pairs')['pairs']
  chosen = np.linspace(0, len(pairs) - 1, min(_GRID_PAIRS, len(pairs)))
  cells = []
  for index in np.unique(chosen.astype(int)):
    cell: dict[str, Any] = {'psnr': pairs[index]['psnr']}
    for kind, name in pairs[index]['files'].items():
      cell[kind] = _png(evaluation / name)
    cells.append(cell)
  return cells


def _png(path: pathlib.Path) -> str:
  return page.data_uri(path.read_bytes(), 'image/png')


def _views(run: pathlib.Path, path: dict[str, Any]) -> list[dict[str, Any]]:
  """The views of the generated path, and the true ones where there are any.

  Args:
    run: the folder of the run.
    path: figures of `odin_jax.reporting.true_path`.

  Returns:
    per view `camera2scene`, `image`, `truth` or None, `psnr` or None.
  """
  generated = run / 'generate'
  frames = summary.read_json(generated / 'poses.json', 'frames')['frames']
  truths: list[str | None] = [None] * len(frames)
  psnr: list[float | None] = [None] * len(frames)
  if path:
    notes = summary.read_json(run / 'truth' / 'truth.json')['frames']
    truths = [
      _png(run / 'truth' / note['file']) if note['file'] else None
      for note in notes
    ]
    psnr = [None, *path['psnr']]
  return [
    {
      'camera2scene': frame['camera2scene'],
      'image': _png(generated / frame['file']),
      'truth': truth,
      'psnr': value,
    }
    for frame, truth, value in zip(frames, truths, psnr)
  ]


def _points_path(run: pathlib.Path) -> list[list[float]]:
  """Cameras of the views that the points are of; runs of before had one path."""
  views = run / 'orbit' if (run / 'orbit').is_dir() else run / 'generate'
  frames = summary.read_json(views / 'poses.json', 'frames')['frames']
  return [frame['camera2scene'] for frame in frames]


def _point_cloud(path: pathlib.Path) -> dict[str, Any]:
  """Positions and colours of a PLY file, thinned to what a page bears."""
  try:
    cloud = trimesh.load(path, process=False)
  # trimesh raises whatever a damaged file makes it trip over.
  except Exception as error:  # noqa: BLE001
    raise errors.UserError(
      f'{path}: no points in PLY ({error}); run odin_jax.reconstruct again'
    ) from error
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


def _scores(train: dict[str, Any]) -> list[list[str]]:
  """Rows of text: every predictor on every set of pairs."""
  known = [key for key in summary.MASKED if key in train]
  keys = (*quantities.SCORES, *known, 'pairs')
  rows = [['', *(quantities.heading(key) for key in keys)]]
  for words, figures in (
    ('held-out frames', train),
    ('unseen worlds', train['unseen']),
  ):
    for name in figures.get('psnr', {}):
      masked = {key: figures.get(key, {}).get(name) for key in known}
      rows.append(
        [
          f'{words}: {_PREDICTORS[name]}',
          *summary.score_texts(figures, name),
          *(quantities.number(key, x) for key, x in masked.items()),
          quantities.number('pairs', figures['pairs']),
        ]
      )
  return rows


def pose_tables(figures: dict[str, Any]) -> list[list[list[str]]]:
  """Tables as text: poses against the truth, and what fresh matches say.

  Args:
    figures: as `odin_jax.reporting.summary` has them.

  Raises:
    KeyError: a figure has no words in `odin_jax.shared.quantities`.
  """
  columns = {
    f'{kind} texture': values
    for kind, values in figures.get('pose', {}).items()
  }
  real = figures.get('real', [])
  for video in [real] if isinstance(real, dict) else real[:_MAX_COLUMNS]:
    columns[video['video_id']] = video
  tables = [columns, {'fresh matches': figures.get('epipolar', {})}]
  return [
    quantities.table({name: _shown(values) for name, values in table.items()})
    for table in tables
    if any(table.values())
  ]


def _shown(figures: dict[str, Any]) -> dict[str, Any]:
  return {
    key: value for key, value in figures.items() if key not in _NOT_IN_TABLE
  }


def _stages(rows: list[dict[str, Any]]) -> list[list[str]]:
  """Rows of text: time and memory of every stage, and of all together."""
  keys = ('seconds', 'peak_rss_mb')
  total = {
    'stage': 'all',
    'seconds': sum(row['seconds'] for row in rows),
    'peak_rss_mb': max((row['peak_rss_mb'] for row in rows), default=None),
  }
  return [['stage', *map(quantities.heading, keys)]] + [
    [row['stage'], *(quantities.number(key, row[key]) for key in keys)]
    for row in [*rows, total]
  ]


def _made(figures: dict[str, Any]) -> str:
  """By which code, on what, with what model the figures came about."""
  train, software = figures['train'], figures['software']
  facts = [provenance.line()]
  if 'jax' in software:
    facts.append(f'jax {software["jax"]} on {software.get("device", "?")}')
  if train['parameters']:
    facts.append(f'model of {train["parameters"] / 1e6:.1f} M parameters')
  if train['image_size_px']:
    facts.append(f'views of {train["image_size_px"]} px')
  if train['started_from']:
    facts.append(f'training started from {train["started_from"]}')
  facts.append(summary.step_text(train['checkpoint']))
  return ' · '.join(facts)


def gather(
  run: pathlib.Path,
  videos: pathlib.Path | None,
  figures: dict[str, Any],
  title: str,
) -> dict[str, Any]:
  """Everything that the page of a run shows, as JSON.

  Args:
    run: its folder.
    videos: the video or the folder of videos that it is of, if they are known.
    figures: as `odin_jax.reporting.summary` has them.
    title: heading of the page.

  Raises:
    errors.UserError: a stage has left no files.
  """
  rows = summary.read_rows(run / 'stages.jsonl')
  return {
    'title': title,
    'made': _made(figures),
    'verdict': figures['verdict'],
    'next': verdict.next_step(figures),
    'summary': figures,
    'checkpoint': summary.step_text(figures['train']['checkpoint']),
    'scores': _scores(figures['train']),
    'poses': pose_tables(figures),
    'stages': _stages(rows),
    'commands': [row['command'] for row in rows],
    'panoramas': _panoramas(videos) if videos else [],
    'matches': _matches(run / 'audit' / 'pairs'),
    'paths': _camera_paths(run / 'records'),
    'curves': summary.read_rows(run / 'train' / 'metrics.jsonl'),
    'grids': _grids(run),
    'views': _views(run, figures['path']),
    'points': _point_cloud(run / 'reconstruct' / 'points.ply'),
    'points_path': _points_path(run),
  }
