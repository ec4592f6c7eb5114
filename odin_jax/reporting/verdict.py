"""What the figures of a run say, in sentences."""

from typing import Any

from odin_jax.shared import page, quantities

# Of two means over a hundred pairs, a smaller difference says nothing.
_EQUAL_DB = 0.1
# A model that loses less than this with other poses hardly looks at them.
_USES_POSE_DB = 0.5
_BASELINE_WORDS = {
  'copy': 'the source image itself',
  'mean': "the source's mean colour",
}


def _best_baseline(gains: dict[str, Any]) -> str:
  return max(_BASELINE_WORDS, key=lambda name: gains['psnr'][name])


def _compared(gain_db: float, other: str) -> str:
  if abs(gain_db) < _EQUAL_DB:
    return f'equals {other} ({gain_db:+.2f} dB)'
  verb = 'beats' if gain_db > 0 else 'loses to'
  return f'{verb} {other} by {abs(gain_db):.1f} dB'


def _against_baselines(train: dict[str, Any]) -> page.Finding | None:
  places = [
    (gains, words)
    for gains, words in (
      (train, 'on frames that were held out'),
      (train.get('unseen'), 'on worlds that it never saw'),
    )
    if gains and 'gain_db' in gains
  ]
  if not places:
    return None
  parts, said = [], None
  for gains, words in places:
    best = _best_baseline(gains)
    other = 'it' if best == said else _BASELINE_WORDS[best]
    parts.append(f'{_compared(gains["gain_db"], other)} {words}')
    said = best
  worst = min(gains['gain_db'] for gains, _ in places)
  best_db = max(gains['gain_db'] for gains, _ in places)
  good = True if worst >= _EQUAL_DB else False if best_db < _EQUAL_DB else None
  return page.Finding(f'The model {", and ".join(parts)}.', good)


def _on_poses(train: dict[str, Any]) -> page.Finding | None:
  drop_db = train.get('shuffle_drop_db')
  if drop_db is None:
    return None
  if drop_db >= _USES_POSE_DB:
    words, good = 'It uses the pose', True
  elif drop_db >= _EQUAL_DB:
    words, good = 'It hardly uses the pose', None
  else:
    words, good = 'It does not use the pose', False
  change = 'loses' if drop_db >= 0 else 'gains'
  return page.Finding(
    f'{words}: with the poses of other pairs it {change} {abs(drop_db):.1f} dB.',
    good,
  )


def _on_path(path: dict[str, Any]) -> page.Finding | None:
  own, unmoved = path.get('mean_psnr'), path.get('mean_psnr_of_first')
  if own is None or unmoved is None:
    return None
  views = sum(value is not None for value in path['psnr'])
  return page.Finding(
    f'Along the generated path, {views} imagined views come to {own:.1f} dB of '
    f'the true ones; the first image in their place to {unmoved:.1f} dB.',
    None if abs(own - unmoved) < _EQUAL_DB else own > unmoved,
  )


def _on_consistency(
  consistency: dict[str, dict[str, Any]],
) -> page.Finding | None:
  own = consistency.get('generate', {})
  if own.get('tsed') is None:
    return None
  truth = consistency.get('truth', {}).get('tsed')
  others = '' if truth is None else f'; of the true ones {100 * truth:.0f} %'
  return page.Finding(
    f'Of {own["pairs"]} pairs of neighbouring imagined views '
    f'{100 * own["tsed"]:.0f} % are consistent by epipolar lines '
    f'(TSED){others}.'
  )


def _on_points(reconstruct: dict[str, Any]) -> page.Finding:
  if not reconstruct['points']:
    return page.Finding(
      'No points were reconstructed: the imagined views do not agree in depth.',
      False,
    )
  coverage = reconstruct.get('coverage')
  share = (
    f', from the {100 * coverage:.0f} % of the pixels of the imagined views '
    'whose depth agrees'
    if coverage is not None
    else ''
  )
  shown = quantities.number('points', reconstruct['points'])
  return page.Finding(f'{shown} points were reconstructed{share}.')


def _on_steps(checkpoint: dict[str, Any]) -> page.Finding | None:
  step, steps = checkpoint['step'], checkpoint['steps']
  if step is None or step >= steps:
    return None
  return page.Finding(
    f'The model is not finished: step {step} of {steps} was evaluated. Finish '
    'the training, then evaluate again.',
    False,
  )


def findings(summary: dict[str, Any]) -> list[page.Finding]:
  """What the figures say, the most important first.

  Args:
    summary: figures as `odin_jax.reporting.summary` has them.
  """
  train = summary['train']
  found = [
    _on_steps(train['checkpoint']),
    _against_baselines(train),
    _on_poses(train),
    _on_path(summary['path']),
    _on_consistency(summary['consistency']),
    _on_points(summary['reconstruct']),
  ]
  return [finding for finding in found if finding]


def next_step(summary: dict[str, Any]) -> str:
  """What to do with this run, as a sentence."""
  train = summary['train']
  if _on_steps(train['checkpoint']):
    return 'finish the training with the command it was started with.'
  unseen = train.get('unseen') or {}
  if unseen.get('gain_db', 0.0) < _EQUAL_DB:
    return (
      'new places take many videos: python -m preprocessing.run '
      '--input=FOLDER_OF_VIDEOS, then python -m odin_jax.train (README.md).'
    )
  return (
    'try an image of your own: python -m odin_jax.generate --image=FILE '
    '(README.md).'
  )
