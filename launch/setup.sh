#!/usr/bin/env bash
# Makes .venv with the pinned requirements; quiet when nothing is to do.
#   bash launch/setup.sh            what preprocessing and training need
#   bash launch/setup.sh --tests    and what the tests need
#   bash launch/setup.sh --cuda     and jax for NVIDIA GPUs
#   bash launch/setup.sh --tpu      and jax for Cloud TPUs
#   bash launch/setup.sh --plan     and the compiler for them alone, which
#                                   odin_jax.plan needs where there is no TPU
# Arguments go together. --cuda and --tpu end with one line that names the
# devices that jax finds; they fail where it finds none of that kind.
# With .venv active the commands work from any folder. After this folder was
# moved or copied, run this again.
# PYTHON names another interpreter (3.11 or 3.12) than the one found here,
# JAX_CUDA another CUDA (12 or 13) than the newest that the GPU's driver runs.
set -euo pipefail
for argument in "$@"; do
  case "$argument" in
    -h | --help) sed -n '2,15s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
  esac
done
cd "$(dirname "${BASH_SOURCE[0]}")/.."

stop() {
  echo "error: setup.sh: $1" >&2
  exit 2
}

lists=(requirements.txt)
platforms=()
for argument in "$@"; do
  case "$argument" in
    --tests) lists+=(tests/requirements.txt tests/requirements-no-deps.txt) ;;
    --cuda | --tpu | --plan) platforms+=("${argument#--}") ;;
    *) stop "unknown argument $argument; there are --tests, --cuda, --tpu and --plan" ;;
  esac
done

supported() {
  "$1" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null
}

# The extra of jax for the GPUs here. Its CUDA 13 needs a driver of 580 or newer
# and compute capability 7.5; its CUDA 12 runs on what is older.
cuda_extra() {
  if [ -n "${JAX_CUDA:-}" ]; then
    case "$JAX_CUDA" in
      12 | 13) echo "cuda$JAX_CUDA" ;;
      *) stop "JAX_CUDA=$JAX_CUDA: give 12 or 13" ;;
    esac
  else
    local gpus
    gpus=$(nvidia-smi --query-gpu=driver_version,compute_cap \
      --format=csv,noheader 2>/dev/null) && [ -n "$gpus" ] ||
      stop "nvidia-smi finds no GPU here; install NVIDIA's driver, or set JAX_CUDA=12 or 13 to install without it"
    awk -F '[., ]+' '
      $1 < 580 || $(NF - 1) * 10 + $NF < 75 { old = 1 }
      END { print old ? "cuda12" : "cuda13" }' <<< "$gpus"
  fi
}

# What a list takes, to tell before it is installed. Measured on Linux x86-64
# with Python 3.11 and torch for CPUs; PyPI's torch brings CUDA's libraries too.
size() {
  case "$1" in
    requirements.txt) echo "91 packages, 760 MB to download, 2.9 GB on disk" ;;
    tests/requirements.txt) echo "29 packages, 49 MB to download, 300 MB on disk" ;;
    tests/requirements-no-deps.txt) echo "1 package" ;;
    jax-*) echo "jax for accelerators, hundreds of MB" ;;
  esac
}

# install NAME LIST ARGUMENTS...: pip with these arguments, unless the stamp of
# that name says that it was done for LIST as it is now. On a terminal pip names
# the packages and their sizes and draws its bars.
install() {
  local stamp=.venv/${1//\//-}.sha256 list=$2 quiet=(-qq)
  if ! sha256sum --check --status "$stamp" 2>/dev/null; then
    echo "Installing $1 into .venv: $(size "$1"); $(free_space) free here" >&2
    [ -t 2 ] && quiet=()
    .venv/bin/python -m pip install "${quiet[@]}" --disable-pip-version-check "${@:3}" >&2
    sha256sum "$list" > "$stamp"
    echo "Installed $1: .venv takes $(du -s --si .venv/ | cut -f 1 | spaced) now" >&2
  fi
}

# 2.8G -> 2.8 GB
spaced() {
  sed 's/.$/ &B/'
}

free_space() {
  df -PH . | awk 'NR == 2 { print $4 }' | spaced
}

# Lets .venv find this folder from any other, after all else. The path goes from
# site-packages to here: that of a .venv that is moved, copied or reached by a
# link leads to the folder in which it is then.
link_here() {
  local site
  for site in .venv/lib/python3.*/site-packages; do
    if [ -d "$site" ] && [ ! -e "$site/odin_jax.pth" ]; then
      echo ../../../.. > "$site/odin_jax.pth"
    fi
  done
  # What `source .venv/bin/activate` puts first on PATH is absolute.
  local activate=.venv/bin/activate here=$PWD/.venv
  if [ ! -L .venv ] && [ -f "$activate" ] &&
    ! grep -qF -e "=$here" -e "=\"$here" -e "='$here" "$activate"; then
    .venv/bin/python -m venv --without-pip .venv
  fi
  if [ -f "$activate" ] && ! grep -q GLIBC_TUNABLES "$activate"; then
    cat launch/memory.sh >> "$activate"
  fi
}

# Before any work is done, so that a machine without a GPU is told at once.
extras=()
for platform in "${platforms[@]}"; do
  extra=$platform
  case "$platform" in
    cuda) extra=$(cuda_extra) ;;
    plan) extra=tpu ;;
  esac
  extras+=("$extra")
done

if ! { [ -x .venv/bin/python ] && supported .venv/bin/python; }; then
  for python in ${PYTHON:-python3.11 python3.12 python3}; do
    supported "$python" && break
    python=
  done
  if [ -z "$python" ]; then
    stop "no Python 3.11 or 3.12 found; install one or set PYTHON=/path/to/python"
  fi
  rm -rf .venv
  "$python" -m venv .venv
fi
link_here

for list in "${lists[@]}"; do
  dependencies=()
  case "$list" in *-no-deps.txt) dependencies=(--no-deps) ;; esac
  install "$list" "$list" "${dependencies[@]}" --requirement "$list"
done
# The list as a constraint: the extra of the very jax that it pins.
for extra in "${extras[@]}"; do
  case "$extra" in
    cuda12) rival=cuda13 ;;
    cuda13) rival=cuda12 ;;
    *) rival= ;;
  esac
  # After a new driver: jax loads every CUDA that it finds.
  if [ -n "$rival" ] && [ -f ".venv/jax-$rival.sha256" ]; then
    .venv/bin/python -m pip uninstall -qq --yes "jax-$rival-plugin" "jax-$rival-pjrt"
    rm ".venv/jax-$rival.sha256"
  fi
  install "jax-$extra" requirements.txt --constraint requirements.txt "jax[$extra]"
done
# What drivers print goes to a file: one line says what came of it.
for platform in "${platforms[@]}"; do
  [ "$platform" = plan ] && continue
  if ! line=$(.venv/bin/python -m launch.devices "$platform" 2> .venv/devices.log); then
    stop "${line:-jax does not start, see .venv/devices.log}"
  fi
  echo "$line"
done
