"""The parts of the benchmark of a GPU, as commands."""

import pathlib
from typing import Any

from tests.helpers import limited_parts

_BATCHES = {'full': (8, 32, 128, 256), 'tiny': (2,)}
# Wheels beside those of the project, and what they are for.
_WHEELS = ('torch', 'diffusers')


def parts(size: str, folder: pathlib.Path) -> list[limited_parts.Part]:
  """All parts, in the order of what is worth knowing first."""
  is_full = size == 'full'
  own = 'tests.benchmarks.gpu_parts'
  batches = _BATCHES[size]

  def measure(
    name: str, limit_s: float, *arguments: str, **rest: Any
  ) -> limited_parts.Part:
    line = (own, f'--part={name.split("_")[0]}', f'--scale={size}', *arguments)
    return limited_parts.Part(
      name=name, commands=(line,), limit_s=limit_s, **rest
    )

  return [
    measure('devices', 90),
    measure('attention', 120),
    *(
      limited_parts.Part(
        name=f'step_{count}',
        commands=(
          (
            'tests.benchmarks.unet',
            '--device=gpu',
            f'--size={size}',
            f'--batch={count}',
            f'--rounds={3 if is_full else 1}',
          ),
        ),
        limit_s=240,
        wheels=_WHEELS,
      )
      for count in batches[::-1]
    ),
    *(
      measure(f'train_latents_{count}', 180, f'--examples={count}')
      for count in batches[::-1]
    ),
    measure(
      f'train_images_{batches[-2:][0]}',
      240,
      f'--examples={batches[-2:][0]}',
      '--input=images',
    ),
    measure('sampling', 240, wheels=_WHEELS),
    limited_parts.Part(
      name='world', commands=_world(folder, is_full), limit_s=900
    ),
  ]


def _world(folder: pathlib.Path, is_full: bool) -> tuple[tuple[str, ...], ...]:
  """Commands of the recipe `world`, to its scores."""
  videos, records, workdir, scores = (
    f'{folder / name}' for name in ('videos', 'records', 'workdir', 'scores')
  )
  recipe = 'world' if is_full else 'world,runlocal=True'
  steps = () if is_full else ('--config.steps=20',)
  return (
    (
      'preprocessing.worlds',
      f'--output={videos}',
      f'--num_worlds={6 if is_full else 1}',
      f'--seconds={24 if is_full else 12}',
    ),
    (
      'preprocessing.run',
      f'--input={videos}',
      f'--output={records}',
      '--config.split_by=time',
    ),
    (
      'odin_jax.train',
      f'--config=configs/train.py:{recipe}',
      f'--records={records}',
      f'--workdir={workdir}',
      *steps,
    ),
    (
      'odin_jax.evaluate',
      f'--data={records}',
      f'--workdir={workdir}',
      f'--output={scores}',
      '--config.image_size_px=32',
    ),
    (
      'tests.benchmarks.gpu_parts',
      '--part=scores',
      f'--scores={scores}',
      f'--workdir={workdir}',
    ),
  )
