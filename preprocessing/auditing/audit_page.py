"""The page of an audit: its figures, its sample with pictures, its paths."""

import pathlib
from typing import Any, Sequence

import numpy as np

from odin_jax.shared import page
from preprocessing.auditing import epipolar, figures, quality, sample
from preprocessing.writing import jpeg

_TEMPLATE = pathlib.Path(__file__).with_name('audit_page.html')
_JPEG_QUALITY = 80
# A page has to open in a browser: so many paths and videos, spread evenly.
_MAX_PATHS = 24
_MAX_VIDEOS = 200


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
