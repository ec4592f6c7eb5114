#!/usr/bin/env bash
# The test suite, in .venv, without network after installation.
#   bash launch/test.sh [PYTEST_ARGUMENTS]    such as tests/test_launch.py -x
set -euo pipefail
case "${1:-}" in
  -h | --help) sed -n '2,3s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash launch/setup.sh --tests
.venv/bin/ruff check .
.venv/bin/ruff format --check --quiet .
# Two workers for two cores; a file's tests stay in one worker, so that its
# module-scoped fixtures are made once.
exec .venv/bin/python -m pytest --numprocesses 2 --dist loadfile "$@"
