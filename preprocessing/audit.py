"""How good are the records of a run? Figures, and a page to look at.

    python -m preprocessing.audit --records=DIR --output=DIR \\
        [--sample=100] [--truth=DIR] [--exclude_ids=FILE]

writes index.html, a self-contained page, and audit.json:

    verdict      what these figures say, in sentences
    pose         with --truth, by kind of world: errors against truth
    real         without: frames, frame pairs per gap, order along the path
    calibration  what records say that their poses are off by, one sigma; with
                 --truth the shares inside the 95 % intervals
    held_out     the test split against the train split, with the 95 % interval
                 of the difference, from a bootstrap over scenes
    sample       share of consistent records in a random sample, 95 % interval
    epipolar     Sampson distances of fresh matches between the two pictures
    histograms   overlap, baseline, time between the frames
    unmasked_share  of the views: its mean and least; null where it is not known
    consistency  target2source against frame2scene and the view angles
    rejected     what was dropped, by stage and reason
    videos       figures per video

and pairs/*.jpg, some records with their epipolar lines.
"""

import sys

# As a file it finds none of the packages below.
if __name__ == '__main__' and not __package__:
  sys.stderr.write('error: type: python -m preprocessing.audit\n')
  sys.exit(2)

from absl import flags

from odin_jax.shared import command, cores, errors, files, page
from preprocessing import ids
from preprocessing.auditing import (
  audit_page,
  figures,
  held_out,
  ledger_summary,
  quality,
  records,
  sample,
  verdict,
)

TOOL = 'preprocessing.audit'
_SEED = 0

_RECORDS = command.define_records('to judge')
_OUTPUT = command.define_output()
_TRUTH = command.define_truth()
_SAMPLE = command.define_sample()
_MAX_MATCHED = flags.DEFINE_integer(
  'max_matched', 240, 'Most close records to match afresh, spread evenly.', 1
)
_EXCLUDE_IDS = command.define_exclude_ids()
flags.mark_flags_as_required(['records', 'output'])


def main() -> None:
  """Reads the flags and judges the records."""
  stopwatch = command.Stopwatch()
  if _TRUTH.value:
    files.require_folder(_TRUTH.value, 'the truth of the videos')
  excluded = ids.read_excluded(_EXCLUDE_IDS.value)
  audited = records.Records(_RECORDS.value, excluded)
  if not audited.manifest['videos']:
    raise errors.UserError(
      f'{_RECORDS.value}: every video in it is excluded; nothing to judge'
    )
  output = files.claim_output(_OUTPUT.value, TOOL)
  command.say([cores.text()])
  report, rows, measures = figures.compute(
    audited, _TRUTH.value, _MAX_MATCHED.value
  )
  assessments = [
    sample.assess(audited[row['place']])
    for row in sample.draw(rows, _SAMPLE.value, _SEED)
  ]
  report = {
    **report,
    'held_out': held_out.compare(
      {**measures, 'consistent_share': sample.measured(assessments)}
    ),
    'sample': sample.figures(assessments),
    'rejected': ledger_summary.by_reason(audited.ledger),
  }
  report = {'verdict': page.verdict(verdict.findings(report)), **report}
  drawings = figures.draw_pairs(audited, rows, output)
  html = audit_page.render(
    report, quality.gather_components(rows), assessments, audited.path
  )
  with files.atomic_path(output / 'index.html') as temporary:
    temporary.write_text(html)
  files.write_json(
    output / 'audit.json',
    {**report, 'drawings': drawings, **stopwatch.figures()},
  )
  judged = report['sample']
  given = {
    'config': 'configs/train.py:world',
    'records': _RECORDS.value,
    'workdir': command.beside(_RECORDS.value, 'train'),
  }
  command.finish(
    _OUTPUT.value,
    f'{report["records"]} records; of a sample, {judged["consistent"]} of '
    f'{judged["decided"]} that could be judged are consistent',
    look_at='index.html',
    then=('train on them', 'odin_jax.train', given),
  )


if __name__ == '__main__':
  command.run(main)
