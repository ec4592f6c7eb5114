"""What an evaluation says at its end."""

from typing import Any

from odin_jax.benchmarks import tables


def _step_of(protocol: dict[str, Any]) -> str:
  """Which checkpoint it was; '' for a baseline or a ported model."""
  if not protocol.get('training_steps'):
    return ''
  return (
    f' (step {protocol["checkpoint_step"]} of {protocol["training_steps"]})'
  )


def _figures(figures: dict[str, Any]) -> str:
  mean, bounds = figures['mean'], figures['interval_95']
  distance = 'none' if mean['lpips'] is None else f'{mean["lpips"]:.3f}'
  interval = ''
  if bounds['psnr'] is not None:
    interval = ' ({:.2f} to {:.2f})'.format(*bounds['psnr'])
  return (
    f'PSNR {mean["psnr"]:.2f} dB{interval}, SSIM {mean["ssim"]:.3f}, '
    f'LPIPS {distance}{_of_kinds(mean)}{_of_sets(figures)}'
  )


def _of_sets(figures: dict[str, Any]) -> str:
  """FID and KID; '' where they were not measured."""
  words = tables.distribution(figures)
  return f', {words}' if words else ''


def _of_kinds(mean: dict[str, float | None]) -> str:
  """The figures of what the source sees and does not; '' where not known."""
  if mean.get('seen_share') is None:
    return ''
  of_kinds = [
    f'{kind} {mean[f"psnr_{kind}"]:.2f} dB'
    for kind in ('seen', 'unseen')
    if mean[f'psnr_{kind}'] is not None
  ]
  return (
    f'; the source sees {100 * mean["seen_share"]:.0f} %: {", ".join(of_kinds)}'
  )


def _by_features(content: dict[str, Any]) -> str:
  words = tables.features(content)
  return f'; {words}' if words else ''


def of_one(content: dict[str, Any]) -> str:
  """What was scored, and the figures, of what `metrics.json` holds."""
  protocol = content['protocol']
  return (
    f'{protocol["predictor"]}{_step_of(protocol["model"])}'
    f'{" with shuffled poses" if protocol["shuffle_poses"] else ""}, '
    f'{len(content["pairs"])} pairs: '
    f'{_figures(content)}{_by_features(content)}'
  )


def of_several(content: dict[str, Any]) -> str:
  """How many pairs were scored, and the figures of each predictor."""
  rows = [
    f'{name}: {_figures(figures)}'
    for name, figures in content['predictors'].items()
  ]
  head = f'{len(content["pairs"])} pairs{_by_features(content)}'
  return '\n  '.join([head, *rows])
