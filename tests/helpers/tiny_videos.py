"""The smallest videos that records come of, and the run that makes them."""

import pathlib

import numpy as np

from configs import preprocess
from preprocessing import settings as run_settings
from preprocessing.procedural import footage
from preprocessing.running import workers
from preprocessing.writing import merging

_KINDS = ('unique_room', 'repeated_corridor')
_SIZE = {'width': 256, 'height': 128}
_SECONDS = 3.0
# Small pictures, so that runs cost little more than their start.
_FIELDS = {'view_size_px': 32, 'views_per_pair': 2}
ARGUMENTS = tuple(f'--config.{key}={value}' for key, value in _FIELDS.items())


def world(index):
  """The world that a video shows."""
  return footage.make_world(
    _KINDS,
    index,
    seed=12,
    seconds=_SECONDS,
    px_per_rad=_SIZE['height'] / np.pi,
  )


def write(folder, count):
  """Writes so many videos; returns their paths, in the order of their names."""
  paths = []
  for index in range(count):
    place = world(index)
    paths.append(folder / f'{index:03d}.mp4')
    footage.write_video(
      paths[-1],
      (
        footage.render_panorama(place, time_s, **_SIZE)
        for time_s in footage.picture_times_s(_SECONDS)
      ),
    )
  return paths


def settings(**fields):
  """The settings of the default config with small pictures."""
  config = preprocess.get_config()
  config.update({**_FIELDS, **fields})
  return run_settings.checked(config)


def jobs(paths, output, **fields):
  output.mkdir(exist_ok=True)
  return [
    workers.Job(path=path, output=output, settings=settings(**fields))
    for path in paths
  ]


def finish(paths, output, events):
  """Follows a run to its end and merges its parts; returns the outcomes."""
  outcomes = {
    event.video_id: event
    for event in events
    if isinstance(event, workers.Outcome)
  }
  merging.merge(
    output,
    video_ids=[path.stem for path in paths if not outcomes[path.stem].error],
    config=settings().values,
    tool='preprocessing.run',
  )
  return outcomes


def contents(output):
  """All files, hidden ones too, but for the one that tells the time."""
  return {
    str(path.relative_to(output)): path.read_bytes()
    for path in pathlib.Path(output).rglob('*')
    if path.is_file() and path.name != 'run.json'
  }
