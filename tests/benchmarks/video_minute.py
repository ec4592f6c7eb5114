"""What a minute of video costs, by phase.

    python -m tests.benchmarks.video_minute VIDEO [WIDTH]

prints one JSON line: CPU seconds per minute of video for decoding alone and for
each phase of the pipeline, with the default config and one thread; peak memory
of the process that does the video; records per minute and bytes per record.
WIDTH scales the video first, in another process.
"""

import json
import multiprocessing
import pathlib
import resource
import sys
import tempfile
import time

import av

from configs import preprocess
from preprocessing import settings, video
from preprocessing.running import pool
from preprocessing.writing import parts


class Clock:
  """CPU seconds between the pipeline's reports, by the phase they end."""

  def __init__(self):
    self.seconds = {}
    self._last = time.process_time()
    self._phase = 'frames'

  def __call__(self, phase, share=0.0):
    now = time.process_time()
    spent = now - self._last
    self.seconds[self._phase] = self.seconds.get(self._phase, 0.0) + spent
    self._phase, self._last = phase, now


def decode(path):
  """Decodes every frame; returns the length of the video in seconds."""
  with av.open(str(path)) as file:
    stream = file.streams.video[0]
    stream.codec_context.thread_count = 1
    for frame in file.decode(stream):
      frame.to_ndarray(format='rgb24')
    return float(frame.time)


def scale(source, target, width):
  """Encodes a video again, `width` pixels wide and half as high."""
  with av.open(str(source)) as old, av.open(str(target), 'w') as new:
    rate = old.streams.video[0].average_rate
    stream = new.add_stream('libx264', rate)
    stream.width, stream.height, stream.pix_fmt = width, width // 2, 'yuv420p'
    stream.options = {'preset': 'veryfast'}
    for index, frame in enumerate(old.decode(video=0)):
      frame = frame.reformat(width, width // 2, 'yuv420p')
      frame.pts, frame.time_base = index, 1 / rate
      new.mux(stream.encode(frame))
    new.mux(stream.encode(None))


def measure(path, folder):
  """The figures of one video."""
  start = time.process_time()
  minutes = decode(path) / 60
  decoding = time.process_time() - start
  clock = Clock()
  checked = settings.checked(preprocess.get_config())
  result = video.process(path, checked, clock)
  parts.write(
    folder,
    path.stem,
    records=result.records,
    summary=result.summary,
    dropped=result.dropped,
    fingerprint='',
  )
  clock('end')
  phases = {'decoding alone': decoding, **clock.seconds}
  phases['total'] = sum(clock.seconds.values())
  count = parts.size(folder, path.stem)
  peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return {
    'video_s': round(60 * minutes, 1),
    'cpu_s_per_minute': {
      name: round(seconds / minutes, 2) for name, seconds in phases.items()
    },
    'peak_rss_mb': round(peak_kb / 1024),
    'records_per_minute': round(count / minutes),
    'bytes_per_record': round(
      parts.paths(folder, path.stem)[0].stat().st_size / max(1, count)
    ),
    'bytes_per_minute_of_input': round(path.stat().st_size / minutes),
  }


def main():
  source = pathlib.Path(sys.argv[1])
  width = int(sys.argv[2]) if sys.argv[2:] else None
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    path = source
    if width:
      path = folder / f'{width}.mp4'
      encoder = multiprocessing.get_context('spawn').Process(
        target=scale, args=(source, path, width)
      )
      encoder.start()
      encoder.join()
      assert encoder.exitcode == 0
    pool.prepare()
    figures = measure(path, folder)
  print(json.dumps({'video': source.name, 'scaled_to_px': width, **figures}))


if __name__ == '__main__':
  main()
