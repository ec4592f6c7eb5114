"""Records per CPU second of the input of training, against decoding alone.

    python -m tests.benchmarks.input [--sizes=256,128,32] [--workers=0,1,2]

`bare` reads a record, checks its checksum, parses the tf.train.Example and
decodes both JPEGs, one record after the other, and keeps nothing. `input` is
all that training does (`odin_jax.batches`): it also draws the order, checks the
record against its schema, mirrors and exchanges views, and puts the examples
into batches. Records are made up, of the detail of real views, and
stored at the size that is asked for; they lie in the page cache.

All ways take turns. Of each the round with the most records per CPU second
counts: what others do on the machine only takes from it. `share` is that of
each way and of `bare` in the same round, the median of all rounds; `wall` are
records per second, all workers together, which tell of a quiet machine alone.
One JSON line per size.
"""

import itertools
import json
import os
import pathlib
import tempfile
import time
from typing import Callable

from absl import flags
import cv2
import numpy as np

from odin_jax import batches
from odin_jax.shared import command, posed_pair, schema, tfrecord
from tests.helpers import posed_records

_SIZES = flags.DEFINE_list('sizes', '256,128,32', 'Sides of the images.')
_WORKERS = flags.DEFINE_list('workers', '0,1,2', 'Numbers of threads.')
_ROUNDS = flags.DEFINE_integer('rounds', 9, 'Measurements of each.', 1)
_BATCHES = flags.DEFINE_integer('batches', 8, 'Batches of a measurement.', 1)
_BATCH = flags.DEFINE_integer('batch', 32, 'Examples of a batch.', 1)

# Records of a shard, and shards. The order is drawn fast where it is of many.
_RECORDS, _SHARDS = 64, 256


def _picture(rng: np.random.Generator, size_px: int) -> np.ndarray:
  """A picture with detail of every size, as much of each as in real views."""
  picture = np.full((size_px, size_px, 3), 128.0, np.float32)
  for side in 2 ** np.arange(2, int(np.log2(size_px))):
    noise = rng.normal(0, 60 / side**0.3, (side, side, 3)).astype(np.float32)
    picture += cv2.resize(
      noise, (size_px, size_px), interpolation=cv2.INTER_CUBIC
    )
  return picture.clip(0, 255).astype(np.uint8)


def write_records(folder: pathlib.Path, size_px: int) -> list[pathlib.Path]:
  """A folder of records whose shards are one file; returns the shards."""
  rng = np.random.default_rng(0)
  folder.mkdir()
  records = []
  for _ in range(_RECORDS):
    record = posed_records.make_record(rng, 'a', 'train', size_px)
    for side in ('source', 'target'):
      record[f'{side}/image'] = posed_records.jpeg(_picture(rng, size_px))
    records.append(schema.encode(record))
  shards = [
    folder / schema.shard_name('train', index, _SHARDS)
    for index in range(_SHARDS)
  ]
  tfrecord.write_file(shards[0], records)
  for shard in shards[1:]:
    os.link(shards[0], shard)
  return shards


def _bare(shards: list[pathlib.Path]) -> Callable[[], int]:
  """Reads, parses and decodes; returns how many records."""
  files = [tfrecord.RecordFile(shard) for shard in shards[:4]]
  places = itertools.cycle(itertools.product(files, range(_RECORDS)))

  def run() -> int:
    count = _BATCHES.value * _BATCH.value
    for file, index in itertools.islice(places, count):
      values = tfrecord.decode_example(file[index])
      for side in ('source', 'target'):
        jpeg = np.frombuffer(values[f'{side}/image'][0], np.uint8)
        cv2.imdecode(jpeg, cv2.IMREAD_COLOR_RGB)
    return count

  return run


class _Counted:
  """Examples, and how many of them were made."""

  def __init__(self, dataset: batches.Examples):
    self._dataset = dataset
    self.count = 0

  def __getitem__(self, index: int) -> posed_pair.PosedPair:
    self.count += 1
    return self._dataset[index]


def _input(
  folder: pathlib.Path, size_px: int, workers: int
) -> Callable[[], int]:
  """Makes batches as training does; returns how many records went in."""
  source = batches.PairSource(folder, 'train', image_size_px=size_px)
  dataset = batches.examples(source, seed=0, mirror=True, swap=True)
  first_steps = itertools.count(0, _BATCHES.value)

  def run() -> int:
    counted = _Counted(dataset)
    stream = batches.batches(
      counted,
      first_step=next(first_steps),
      batch_size=_BATCH.value,
      num_workers=workers,
    )
    for _ in itertools.islice(stream, _BATCHES.value):
      pass
    # What was made ahead counts, so it has to be done.
    stream.close()
    return counted.count

  return run


def measure(folder: pathlib.Path, size_px: int) -> dict[str, object]:
  """The figures of one size."""
  shards = write_records(folder, size_px)
  workers = [int(text) for text in _WORKERS.value]
  ways = {'bare': _bare(shards)} | {
    f'input_{count}': _input(folder, size_px, count) for count in workers
  }
  cpu = {name: [] for name in ways}
  wall = {name: [] for name in ways}
  for run in ways.values():
    run()
  for _ in range(_ROUNDS.value):
    for name, run in ways.items():
      start = time.process_time(), time.perf_counter()
      count = run()
      cpu[name].append(count / (time.process_time() - start[0]))
      wall[name].append(count / (time.perf_counter() - start[1]))
  return {
    'size_px': size_px,
    'record_bytes': shards[0].stat().st_size // _RECORDS,
    'per_cpu_s': {name: round(max(values)) for name, values in cpu.items()},
    'share': {
      name: round(float(np.median(np.divide(values, cpu['bare']))), 3)
      for name, values in cpu.items()
    },
    'wall': {name: round(max(values)) for name, values in wall.items()},
  }


def main() -> None:
  """Measures every size."""
  # Decoding is on one thread; resizing must not be on more.
  cv2.setNumThreads(1)
  with tempfile.TemporaryDirectory() as folder:
    for text in _SIZES.value:
      figures = measure(pathlib.Path(folder) / text, int(text))
      print(json.dumps(figures), flush=True)


if __name__ == '__main__':
  command.run(main)
