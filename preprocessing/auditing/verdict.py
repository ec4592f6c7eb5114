"""What the figures of an audit say, in sentences."""

from typing import Any, Mapping

from odin_jax.shared import command, page, quantities

# Errors that a model of views at 256 px could not see: half a pixel of turn.
_GOOD_ROTATION_DEG = 0.2
_GOOD_DIRECTION_DEG = 2.0
# Fresh matches between things that look alike lower the share of sound
# records, too, so less than all is no bad news.
_GOOD_SHARE, _BAD_SHARE = 0.8, 0.5
# Of 95 % intervals; pairs of a video err together, so a few videos scatter.
_GOOD_COVERAGE, _BAD_COVERAGE = (0.9, 0.98), 0.8
_STATED = {'rotation': 'rotation', 'direction': 'the direction moved'}


def _on_pairs(videos: list[Mapping[str, Any]], records: int) -> page.Finding:
  candidates = sum(video['frame_pair_candidates'] for video in videos)
  kept = sum(
    round(video['kept_share'] * video['frame_pair_candidates'])
    for video in videos
  )
  in_videos = f'{len(videos)} video{"s" if len(videos) != 1 else ""}'
  share = quantities.text(
    'kept_share', kept / candidates if candidates else None
  )
  return page.Finding(
    f'{kept} of {candidates} pairs of frames were kept ({share}) in '
    f'{in_videos}, and '
    f'{quantities.number("records", records)} records cut from them.',
    None if records else False,
  )


def _on_truth(pose: Mapping[str, Mapping[str, Any]]) -> page.Finding | None:
  kinds = [figures for figures in pose.values() if 'rotation_deg' in figures]
  if not kinds:
    return None
  rotation = max(figures['rotation_deg'] for figures in kinds)
  direction = max(figures['direction_deg'] for figures in kinds)
  flips = sum(figures['flips'] for figures in kinds)
  pairs = sum(figures['frame_pairs'] for figures in kinds)
  wrong_way = (
    f'; {flips} of {pairs} pairs of frames move the wrong way' if flips else ''
  )
  return page.Finding(
    'Against the truth, poses are wrong by '
    f'{quantities.text("rotation_deg", rotation)} in rotation and '
    f'{quantities.text("direction_deg", direction)} in the direction moved '
    f'(medians of the worst kind of world){wrong_way}.',
    rotation <= _GOOD_ROTATION_DEG
    and direction <= _GOOD_DIRECTION_DEG
    and not flips,
  )


def _on_sample(sample: Mapping[str, Any]) -> page.Finding:
  share, chance = sample['share'], sample['chance_share']
  if share is None:
    return page.Finding(
      'No record could be judged by fresh matches: too few are found between '
      'the two pictures.',
      False,
    )
  by_chance = (
    ''
    if chance is None
    else f'; with wrong poses {quantities.text("consistent_share", chance)} would'
  )
  low, high = (
    quantities.number('consistent_share', value)
    for value in sample['interval_95']
  )
  return page.Finding(
    f'{quantities.text("consistent_share", share)} of {sample["decided"]} '
    f'records drawn at random obey their pose in fresh matches (95 %: {low} to '
    f'{high} %){by_chance}.',
    True if share >= _GOOD_SHARE else None if share >= _BAD_SHARE else False,
  )


def on_stated(calibration: Mapping[str, float]) -> page.Finding | None:
  """What records say that their poses are off by, and whether it is true."""
  if not any(calibration.get(f'{name}_sigma_deg') for name in _STATED):
    return None

  def both(key: str) -> str:
    return ' and '.join(
      f'{quantities.text(f"{name}_{key}", calibration.get(f"{name}_{key}"))} in '
      f'{words}'
      for name, words in _STATED.items()
    )

  rest = ''
  if share := calibration.get('unstated_share'):
    rest = (
      f' {quantities.text("unstated_share", share)} of the pairs of frames state '
      'nothing, and are not counted.'
    )
  coverages = [
    calibration[f'{name}_coverage']
    for name in _STATED
    if f'{name}_coverage' in calibration
  ]
  if not coverages:
    return page.Finding(
      f'Records state that poses are off by {both("sigma_deg")} (one sigma per '
      f'axis, medians).{rest}'
    )
  low, high = _GOOD_COVERAGE
  return page.Finding(
    'Of the 95 % intervals that records state, so many hold the truth: '
    f'{both("coverage")}.{rest}',
    False
    if min(coverages) < _BAD_COVERAGE
    else True
    if low <= min(coverages) and max(coverages) <= high
    else None,
  )


def on_held_out(
  held_out: Mapping[str, Mapping[str, Any]],
) -> page.Finding | None:
  """Whether the pairs that scores are from are as true as the trained ones."""
  judged = {
    name: row
    for name, row in held_out.items()
    if row['interval_95'] is not None
  }
  if not judged:
    return None
  differ = {
    name: row
    for name, row in judged.items()
    if not row['interval_95'][0] <= 0 <= row['interval_95'][1]
  }
  if not differ:
    measures = ', '.join(quantities.QUANTITIES[name].words for name in judged)
    return page.Finding(
      'Held-out pairs are as true as the trained ones: no measure differs by '
      f'more than chance ({measures}).',
      True,
    )
  told = '; '.join(
    f'{quantities.QUANTITIES[name].words}: '
    f'{quantities.text(name, row["test"]["value"])} held out, '
    f'{quantities.text(name, row["train"]["value"])} trained'
    for name, row in differ.items()
  )
  return page.Finding(
    f'Held-out pairs differ from the trained ones by more than chance: {told}.'
  )


def _on_pieces(videos: list[Mapping[str, Any]]) -> page.Finding | None:
  broken = [video for video in videos if video['components'] > 1]
  if not broken:
    return None
  most = max(video['components'] for video in broken)
  return page.Finding(
    f'{len(broken)} of {len(videos)} videos fell into pieces without a common '
    f'scale, up to {most}.',
    None,
  )


def _on_rejections(rejected: list[Mapping[str, Any]]) -> page.Finding | None:
  if not rejected:
    return None
  first = rejected[0]
  return page.Finding(
    f'What was rejected most: {first["reason"]} ({first["count"]} times).'
  )


def findings(report: Mapping[str, Any]) -> list[page.Finding]:
  """What the figures say, the most important first.

  Args:
    report: the contents of audit.json.
  """
  found = [
    _on_truth(report.get('pose', {})),
    _on_sample(report['sample']),
    _on_pairs(report['videos'], report['records']),
    on_stated(report.get('calibration', {})),
    on_held_out(report.get('held_out', {})),
    _on_pieces(report['videos']),
    _on_rejections(report['rejected']),
  ]
  return [finding for finding in found if finding]


def next_step(report: Mapping[str, Any], records: str) -> str:
  """What to do with these records, as a sentence.

  Args:
    report: the contents of audit.json.
    records: the folder that was judged.
  """
  if any(finding.good is False for finding in findings(report)):
    return 'look at the pairs with a coloured frame; ' + command.next_step(
      'to take videos out again',
      'preprocessing.records',
      {'records': records, 'drop_ids': 'FILE'},
    )
  given = {
    'config': 'configs/train.py:world',
    'records': records,
    'workdir': 'FOLDER',
  }
  return command.next_step('train on them', 'odin_jax.train', given)
