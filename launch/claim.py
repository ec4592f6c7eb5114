"""Makes the output folder of the demo, or continues one of the same input.

python -m launch.claim RUN_FOLDER INPUT

The folder then belongs to the process that called this one, the demo, which
removes the lock at its end.
"""

import os
import sys

from odin_jax.shared import errors, files


def main() -> int:
  run_folder, source = sys.argv[1:]
  try:
    files.claim_output(
      run_folder, f'launch/demo.sh on {source}', holder_pid=os.getppid()
    )
  except errors.UserError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  return 0


if __name__ == '__main__':
  sys.exit(main())
