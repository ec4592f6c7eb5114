"""Poses of panoramas: ours against COLMAP's two pipelines for panoramas.

    python -m tests.benchmarks.panorama_sfm --output=DIR [--data=DIR]

reads scenes in the layouts of TartanAir-V2 (`tests/helpers/tartanair.py`): the
real ones from --data, or else procedural ones that it writes into DIR/data: a
room, a corridor of repeated bays, an outdoor place and a corridor, 16 s each,
at 5 pictures per second (--worlds, --seconds, --seed). Of these every --every-th
frame is posed and scored: by default each one of a real scene, which is a
sequence of pictures, and one per second of a procedural scene.

  ours        keyframes, features and the joint solution; no views, no records.
              Points are followed through the pictures in between, as in a
              video.
  ours_alone  the same without the pictures in between.
  spherical   pycolmap.panorama, EQUIRECTANGULAR camera, as in COLMAP's
              python/examples/panorama_sfm.py: sequential matching, incremental
              mapping, on the CPU.
  rig         the same with a rig of twelve perspective cameras.
  records     the whole of `preprocessing.run`: poses, records, and exports
              for COLMAP and nerfstudio.

All but `ours` and `records` have the posed frames alone: COLMAP's pipelines
have no use for the rest but to pose them. Each runs in a process of its own.
Its CPU seconds are those of that process and of all that it starts, with
imports; ours reads the pictures from a lossless video, which was made before.
`panorama_sfm.json` and the table that is printed have for each scene and way
the figures of `tests/helpers/sfm_scores.py`, CPU and wall seconds. What is done
is not done again; --again names ways whose figures are to be taken anew.
"""

import json
import multiprocessing
import os
import pathlib
import resource
import shutil
import statistics
import subprocess
import sys
import time
from typing import Any, Callable

from absl import flags
import av
import cv2
import numpy as np

from odin_jax.shared import command, errors, files
from preprocessing.procedural import footage, scenes
from preprocessing.running import pool
from tests.helpers import sfm_scores, tartanair

_TOOL = 'tests.benchmarks.panorama_sfm'
_OUTPUT = flags.DEFINE_string('output', None, 'Folder to write.', required=True)
_DATA = flags.DEFINE_string('data', '', 'Folder with scenes of TartanAir-V2.')
_WORLDS = flags.DEFINE_integer('worlds', 4, 'Without --data: how many.', 1)
_SECONDS = flags.DEFINE_float('seconds', 16.0, 'Without --data: of each.', 2.0)
_SEED = flags.DEFINE_integer('seed', 4711, 'Without --data: of the worlds.', 0)
_EVERY = flags.DEFINE_integer(
  'every', 0, 'Every so many-th frame is posed; 0: see above.', 0
)
_WAYS = flags.DEFINE_list(
  'ways', ['ours', 'ours_alone', 'spherical', 'rig', 'records'], 'Which run.'
)
_AGAIN = flags.DEFINE_list('again', [], 'Ways that are measured anew.')
_LOSSLESS = {'qp': '0', 'preset': 'ultrafast'}
_WIDTH_PX = flags.DEFINE_integer('width', 768, 'Without --data: of pictures.')


def write_worlds(folder: pathlib.Path) -> None:
  """Procedural scenes in the packaged layout; those that are there stay."""
  height = _WIDTH_PX.value // 2
  for index in range(_WORLDS.value):
    name = scenes.KINDS[index % len(scenes.KINDS)]
    scene = folder / 'procedural' / f'{name}-{_SEED.value}-{index:03d}'
    if (scene / 'scene.json').is_file():
      continue
    world = footage.make_world(
      scenes.KINDS,
      index,
      seed=_SEED.value,
      seconds=_SECONDS.value,
      px_per_rad=height / np.pi,
    )
    times_s = footage.picture_times_s(_SECONDS.value)
    tartanair.write(
      scene,
      (
        footage.render_panorama(
          world, time_s, width=_WIDTH_PX.value, height=height
        )
        for time_s in times_s
      ),
      np.array([world.walk.frame2world(time_s) for time_s in times_s]),
    )


def write_video(
  path: pathlib.Path, images: list[pathlib.Path], rate: int
) -> None:
  """A video of the pictures, without loss."""
  with files.atomic_path(path) as temporary, av.open(temporary, 'w') as file:
    stream = None
    for image in images:
      picture = cv2.imread(str(image), cv2.IMREAD_COLOR)
      if picture is None:
        raise errors.UserError(f'{image}: no picture; get it again')
      if stream is None:
        # H.264, as most videos; decoding costs what reading the pictures does.
        stream = file.add_stream('libx264rgb', rate=rate, options=_LOSSLESS)
        stream.height, stream.width = picture.shape[:2]
        stream.pix_fmt = 'rgb24'
      frame = av.VideoFrame.from_ndarray(picture, format='bgr24')
      file.mux(stream.encode(frame.reformat(format='rgb24')))
    file.mux(stream.encode(None))


def _options(every: int) -> list[str]:
  """One posed frame per second of the video is the default already."""
  return [
    f'--config.substeps={every}',
    '--projection=equirectangular',
    '--trust_projection',
  ]


def pose_ours(video: pathlib.Path, folder: pathlib.Path, every: int) -> None:
  """In a process of its own: poses of a video, by number of the frame."""
  from configs import preprocess
  from preprocessing import settings
  from preprocessing import video as videos

  pool.prepare()
  config = preprocess.get_config()
  config.substeps = every
  config.projection, config.trust_projection = 'equirectangular', True
  checked = settings.checked(config)
  posed = videos.pose(video, checked, checked.matching.make())
  solution = posed.solution
  models = [{} for _ in range(solution.component.max(initial=-1) + 1)]
  for slot, component, pose in zip(
    posed.keyframes.slots, solution.component, solution.frame2scene
  ):
    if component >= 0:
      models[component][slot] = pose.tolist()
  files.write_json(folder / 'models.json', models)


def pose_colmap(
  images: pathlib.Path, folder: pathlib.Path, render_type: str
) -> None:
  """In a process of its own: COLMAP's panorama pipeline."""
  from pycolmap import panorama

  panorama.reconstruct(
    images,
    folder,
    panorama.PanoramaReconstructionOptions(
      render_type=panorama.PanoRenderType(render_type),
      use_gpu=False,
      show_progress=False,
    ),
  )


def colmap_models(folder: pathlib.Path) -> list[dict[int, Any]]:
  """Poses of COLMAP's models, by number of the frame."""
  import pycolmap

  models = []
  for path in sorted(folder.iterdir()) if folder.is_dir() else []:
    images = pycolmap.Reconstruction(str(path)).images.values()
    models.append(
      {
        int(pathlib.Path(image.name).stem): (
          image.cam_from_world().inverse().matrix().tolist()
        )
        for image in images
        if image.has_pose
      }
    )
  return models


def ours_models(folder: pathlib.Path) -> list[dict[int, Any]]:
  """Poses that `pose_ours` wrote."""
  models = json.loads((folder / 'models.json').read_text())
  return [{int(slot): pose for slot, pose in m.items()} for m in models]


def path_models(folder: pathlib.Path) -> list[dict[int, Any]]:
  """Poses that `preprocessing.run` wrote."""
  (path,) = folder.glob('records/cameras/*/path.json')
  models: dict[int, dict[int, Any]] = {}
  for frame in json.loads(path.read_text())['frames']:
    if frame['component'] is not None:
      model = models.setdefault(frame['component'], {})
      model[int(frame['time_s'] + 1e-3)] = frame['frame2scene']
  return list(models.values())


def _in_process(work: Callable[..., None], *arguments: Any) -> None:
  process = multiprocessing.get_context('spawn').Process(
    target=work, args=arguments
  )
  process.start()
  process.join()
  if process.exitcode:
    raise errors.UserError(
      f'{work.__name__} of {arguments[0]} ended with {process.exitcode}; '
      'see above'
    )


class Bench:
  """The ways to pose one scene.

  Args:
    scene: its pictures and the truth.
    folder: for what is made of it.
    every: every so many-th frame is posed.
  """

  def __init__(self, scene: tartanair.Scene, folder: pathlib.Path, every: int):
    self._every = every
    self._truth = scene.frame2world[::every]
    self._folder = folder
    self._images = folder / 'images'
    self._video, self._video_alone = folder / 'all.mkv', folder / 'alone.mkv'
    shutil.rmtree(self._images, ignore_errors=True)
    self._images.mkdir(parents=True)
    for number, image in enumerate(scene.images[::every]):
      link = self._images / f'{number:06d}{image.suffix}'
      link.symlink_to(image.resolve())
    posed = len(scene.images[::every])
    write_video(self._video, scene.images[: posed * every], every)
    write_video(self._video_alone, scene.images[::every], 1)

  def measure(self, way: str) -> dict[str, Any]:
    """Scores and seconds of a way."""
    folder = self._folder / way
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    start, cpu_s = time.perf_counter(), _children_cpu_s()
    models = getattr(self, f'_{way}')(folder)
    spent = {
      'cpu_s': round(_children_cpu_s() - cpu_s, 2),
      'wall_s': round(time.perf_counter() - start, 2),
    }
    as_arrays = [
      {number: np.array(pose)[:3] for number, pose in model.items()}
      for model in models()
    ]
    return {**sfm_scores.scores(as_arrays, self._truth), **spent}

  def _ours(self, folder, video=None, every=None):
    # One thread, as in a worker of preprocessing.run.
    before = dict(os.environ)
    os.environ.update(pool.SINGLE_THREADED)
    try:
      _in_process(pose_ours, video or self._video, folder, every or self._every)
    finally:
      os.environ.clear()
      os.environ.update(before)
    return lambda: ours_models(folder)

  def _ours_alone(self, folder):
    return self._ours(folder, self._video_alone, 1)

  def _spherical(self, folder):
    _in_process(pose_colmap, self._images, folder, 'spherical')
    return lambda: colmap_models(folder / 'sparse')

  def _rig(self, folder):
    kind = 'perspective_overlapping'
    _in_process(pose_colmap, self._images, folder, kind)
    return lambda: colmap_models(folder / 'sparse_equirectangular')

  def _records(self, folder):
    subprocess.run(
      [
        *(sys.executable, '-m', 'preprocessing.run', f'--input={self._video}'),
        f'--output={folder / "records"}',
        '--export=colmap,nerfstudio',
        *_options(self._every),
      ],
      check=True,
      cwd=command.REPOSITORY,
      stdout=subprocess.DEVNULL,
    )
    return lambda: path_models(folder)


def _children_cpu_s() -> float:
  usage = resource.getrusage(resource.RUSAGE_CHILDREN)
  return usage.ru_utime + usage.ru_stime


def table(results: dict[str, dict[str, Any]]) -> str:
  """The figures as Markdown."""
  areas = ' | '.join(f'AUC {t:g}°' for t in sfm_scores.THRESHOLDS_DEG)
  lines = [
    f'| scene | way | registered (models) | {areas} | rotation | direction '
    '| turned round | scale | CPU s | wall s |',
    '|' + '---|' * (9 + len(sfm_scores.THRESHOLDS_DEG)),
  ]
  for scene, ways in results.items():
    for way, row in ways.items():
      cells = [
        scene,
        way,
        f'{row["registered"]} of {row["frames"]} ({row["models"]})',
        *(f'{area:.1f}' for area in row['auc'].values()),
        _angle(row['rotation_deg']),
        _angle(row['direction_deg']),
        f'{row["turned_round"]} of {row["pairs"]}',
        '' if row['scale_error'] is None else f'{row["scale_error"]:.2%}',
        f'{row["cpu_s"]:.1f}',
        f'{row["wall_s"]:.0f}',
      ]
      lines.append(f'| {" | ".join(cells)} |')
  for way in dict.fromkeys(way for ways in results.values() for way in ways):
    rows = [ways[way] for ways in results.values() if way in ways]
    cpu_s = statistics.mean(row['cpu_s'] for row in rows)
    lines.append(f'\n{way}: {cpu_s:.1f} CPU s per scene')
  return '\n'.join(lines)


def _angle(value: float | None) -> str:
  return '' if value is None else f'{value:.3f}°'


def main() -> None:
  """Measures all ways on all scenes."""
  unknown = {*_WAYS.value, *_AGAIN.value} - set(_WAYS.default)
  if unknown:
    raise errors.UserError(
      f'no way {", ".join(sorted(unknown))}; give some of '
      f'{", ".join(_WAYS.default)}'
    )
  output = files.claim_output(_OUTPUT.value, _TOOL)
  data = pathlib.Path(_DATA.value) if _DATA.value else output / 'data'
  if not _DATA.value:
    write_worlds(data)
  every = _EVERY.value or (1 if _DATA.value else footage.RENDERED_FPS)
  report = output / 'panorama_sfm.json'
  results = json.loads(report.read_text()) if report.is_file() else {}
  again = set(_AGAIN.value)
  for scene in tartanair.read(data):
    done = results.setdefault(scene.name, {})
    missing = [w for w in _WAYS.value if w in again or w not in done]
    bench = Bench(scene, output / scene.name, every) if missing else None
    for way in missing:
      done[way] = bench.measure(way)
      print(json.dumps({'scene': scene.name, 'way': way, **done[way]}))
      files.write_json(report, results)
  print(table(results))


if __name__ == '__main__':
  command.run(main)
