"""The page of an audit: its figures, its sample with pictures, its paths."""

import pathlib
from typing import Any, Sequence

import numpy as np

from odin_jax.shared import page, provenance, quantities
from preprocessing.auditing import (
  epipolar,
  figures,
  held_out,
  quality,
  sample,
  verdict,
)
from preprocessing.writing import jpeg

_TEMPLATE = pathlib.Path(__file__).with_name('audit_page.html')
_JPEG_QUALITY = 80
# A page has to open in a browser: so many paths and videos, spread evenly.
_MAX_PATHS = 24
_MAX_VIDEOS = 200
# More videos than these have no column in the table of poses.
_MAX_COLUMNS = 4
_OF_VIDEO = (
  'frames',
  'components',
  'frame_pairs',
  'long_frame_pairs',
  'records',
  'kept_share',
  'min_unmasked_share',
)


def render(
  report: dict[str, Any],
  components: Sequence[quality.Component],
  assessments: Sequence[sample.Assessment],
  records: pathlib.Path,
) -> str:
  """The page as HTML.

  Args:
    report: the contents of audit.json.
    components: poses of the frames.
    assessments: of the records that were matched one by one.
    records: the folder that was audited, where pictures of examples are.
  """
  return page.render(
    _TEMPLATE,
    {
      'title': f'Audit of {records.name}',
      'made': provenance.line(),
      'verdict': report['verdict'],
      'next': verdict.next_step(report, str(records)),
      'figures': _figures(report),
      'held_out': _held_out(report['held_out']),
      'videos': _videos(report),
      'report': {
        **report,
        'videos': figures.spread(report['videos'], _MAX_VIDEOS),
      },
      'sample': [_sampled(assessment) for assessment in assessments],
      'paths': [
        _path(component) for component in figures.spread(components, _MAX_PATHS)
      ],
      'pictures': _pictures(report['rejected'], records),
    },
  )


def _figures(report: dict[str, Any]) -> list[list[list[str]]]:
  """Tables as text: poses by kind of world, fresh matches, the self-check."""
  columns = {
    f'{kind} texture': values for kind, values in report.get('pose', {}).items()
  }
  if not columns:
    columns = {
      video['video_id']: {
        key: value
        for key, value in video.items()
        if key in ('frames', 'median_depth')
        or key.startswith('kept_share')
        or '_sigma_' in key
      }
      for video in report['videos'][:_MAX_COLUMNS]
    }
  fresh = {
    key: value
    for key, value in report['epipolar'].items()
    if key != 'sampson_px_per_video'
  }
  tables = [
    columns,
    {'fresh matches': fresh},
    {'self-check': report['consistency']},
  ]
  return [quantities.table(table) for table in tables if table]


def _held_out(compared: dict[str, Any]) -> list[list[str]]:
  """Rows of text, one per measure; none where only one split is there."""
  if not compared:
    return []
  head = ['', 'trained', 'held out', 'difference', 'its 95 % interval']
  rows = [head]
  for name, row in compared.items():
    low, high = row['interval_95'] or (None, None)
    rows.append(
      [
        quantities.heading(name),
        *(
          f'{quantities.number(name, row[split]["value"])} '
          f'({row[split]["count"]} in {row[split]["scenes"]} scenes)'
          for split in (held_out.TRAINED, held_out.HELD_OUT)
        ),
        quantities.number(name, row['difference']),
        f'{quantities.number(name, low)} to {quantities.number(name, high)}',
      ]
    )
  return rows


def _videos(report: dict[str, Any]) -> list[list[str]]:
  """Rows of text, one per video."""
  distances = report['epipolar']['sampson_px_per_video']
  head = [quantities.heading(key) for key in (*_OF_VIDEO, 'sampson_px')]
  return [['video', *head]] + [
    [
      video['video_id'],
      *(quantities.number(key, video[key]) for key in _OF_VIDEO),
      quantities.number('sampson_px', distances.get(video['video_id'])),
    ]
    for video in figures.spread(report['videos'], _MAX_VIDEOS)
  ]


def _sampled(assessment: sample.Assessment) -> dict[str, Any]:
  record = assessment.record
  picture = jpeg.encode(epipolar.draw(record), quality=_JPEG_QUALITY)
  return {
    'video_id': record['video_id'],
    'gap_s': figures.gap_s(record),
    'overlap': record['overlap'],
    'hops': record['hops'],
    'matches': assessment.matches,
    'error_px': assessment.error_px,
    'consistent': assessment.consistent,
    'picture': page.data_uri(picture, 'image/jpeg'),
  }


def _path(component: quality.Component) -> dict[str, Any]:
  poses = [component.poses[time_s] for time_s in sorted(component.poses)]
  return {
    'name': f'{component.video_id} / {component.scene_id}',
    'poses': [np.round(pose, 5).ravel().tolist() for pose in poses],
  }


def _pictures(
  rejected: Sequence[dict[str, Any]], records: pathlib.Path
) -> dict[str, str]:
  """The examples' pictures that are there, by their name in the ledger."""
  names = {
    example['picture']
    for group in rejected
    for example in group['examples']
    if 'picture' in example
  }
  return {
    name: page.data_uri((records / name).read_bytes(), 'image/jpeg')
    for name in sorted(names)
    if (records / name).is_file()
  }
