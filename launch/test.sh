#!/usr/bin/env bash
# The test suite, in .venv, without network after installation.
#   bash launch/test.sh [PYTEST_ARGUMENTS]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash launch/setup.sh --tests
.venv/bin/ruff check .
.venv/bin/ruff format --check --quiet .
# Two workers for two cores; a file's tests stay in one worker, so that its
# module-scoped fixtures are made once.
exec .venv/bin/python -m pytest --numprocesses 2 --dist loadfile "$@"
