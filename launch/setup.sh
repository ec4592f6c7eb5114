#!/usr/bin/env bash
# Makes .venv with the pinned requirements; quiet when nothing is to do.
#   bash launch/setup.sh            what preprocessing and training need
#   bash launch/setup.sh --tests    and what the tests need
# PYTHON names another interpreter (3.11 or 3.12) than the one found here.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

lists=(requirements.txt)
case "${1:-}" in
  "") ;;
  --tests) lists+=(tests/requirements.txt tests/requirements-no-deps.txt) ;;
  *) echo "error: setup.sh: unknown argument $1; the only one is --tests" >&2; exit 2 ;;
esac

supported() {
  "$1" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null
}

if ! { [ -x .venv/bin/python ] && supported .venv/bin/python; }; then
  for python in ${PYTHON:-python3.11 python3.12 python3}; do
    supported "$python" && break
    python=
  done
  if [ -z "$python" ]; then
    echo "error: no Python 3.11 or 3.12 found; install one or set PYTHON=/path/to/python" >&2
    exit 2
  fi
  rm -rf .venv
  "$python" -m venv .venv
fi

# A stamp per list holds its checksum: an unchanged list is not installed again.
for list in "${lists[@]}"; do
  stamp=".venv/${list//\//-}.sha256"
  if ! sha256sum --check --status "$stamp" 2>/dev/null; then
    echo "Installing $list into .venv (minutes on the first run)" >&2
    dependencies=()
    case "$list" in *-no-deps.txt) dependencies=(--no-deps) ;; esac
    .venv/bin/python -m pip install -qq --disable-pip-version-check \
      "${dependencies[@]}" --requirement "$list"
    sha256sum "$list" > "$stamp"
  fi
done
