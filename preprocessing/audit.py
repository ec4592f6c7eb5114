"""How good are the records of a run? Figures and drawings of pairs.

    python -m preprocessing.audit --records=DIR --output=DIR [--truth=DIR]

writes audit.json:

    pose         with --truth, by kind of world: errors against truth
    real         without: frames, frame pairs per gap, order along the path
    epipolar     Sampson distances of fresh matches between the two pictures
    consistency  target2source against frame2scene and the view angles
    videos       the same per video

and pairs/*.jpg, some records with their epipolar lines.
"""

from absl import flags

from odin_jax.shared import binary
from preprocessing import figures

TOOL = 'preprocessing.audit'

_RECORDS = flags.DEFINE_string(
  'records', None, 'Folder of records to judge (preprocessing.run).'
)
_OUTPUT = flags.DEFINE_string(
  'output', None, 'Folder to write; new, or made by this command.'
)
_TRUTH = flags.DEFINE_string(
  'truth', None, 'Folder with VIDEO_ID.truth.npz (preprocessing.worlds).'
)
_MAX_MATCHED = flags.DEFINE_integer(
  'max_matched', 240, 'Most records to match afresh, spread evenly.', 1
)


def main() -> None:
  """Reads the flags and judges the records."""
  for name, flag in (('records', _RECORDS), ('output', _OUTPUT)):
    if not flag.value:
      raise binary.UserError(f'--{name} is missing; see --help')
  stopwatch = binary.Stopwatch()
  if _TRUTH.value:
    binary.require_folder(_TRUTH.value, 'the truth of the videos')
  figures.read_manifest(_RECORDS.value)
  output = binary.claim_output(_OUTPUT.value, TOOL)
  report, rows = figures.judge(_RECORDS.value, _TRUTH.value, _MAX_MATCHED.value)
  drawings = figures.draw_pairs(_RECORDS.value, rows, output)
  binary.write_json(
    output / 'audit.json',
    {**report, 'drawings': drawings, **stopwatch.figures()},
  )


if __name__ == '__main__':
  binary.run(main)
