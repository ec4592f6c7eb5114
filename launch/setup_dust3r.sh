#!/usr/bin/env bash
# Makes a checkout of the official DUSt3R with its checkpoint, for
# --config.matcher=dust3r; what is there already is checked and kept.
#   bash launch/setup_dust3r.sh FOLDER                  code and checkpoint
#   bash launch/setup_dust3r.sh FOLDER --no-checkpoint  code alone
# Then: export DUST3R_HOME=FOLDER. Code and weights are CC BY-NC-SA 4.0 (not for
# commercial use), so FOLDER lies outside of this project.
#
# The code is fixed by its commit. The publisher names no digest of the
# checkpoint (and replaced the file once, in June 2024), so that of the first
# download is noted beside the file and every later run checks it. To check the
# first download too, give the digest that a source you trust states:
#   DUST3R_SHA256=HEX bash launch/setup_dust3r.sh FOLDER
# DUST3R_REPOSITORY, DUST3R_COMMIT, DUST3R_CHECKPOINT_URL name other sources.
set -euo pipefail

repository=${DUST3R_REPOSITORY:-https://github.com/naver/dust3r}
# Fixes its submodule croco too, at d7de0705845239092414480bd829228723bf20de.
commit=${DUST3R_COMMIT:-4c24a6ebf04809f2cfe59915e51779c8984aaa40}
checkpoint_url=${DUST3R_CHECKPOINT_URL:-https://download.europe.naverlabs.com/ComputerVision/DUSt3R/DUSt3R_ViTLarge_BaseDecoder_512_dpt.pth}
digest=${DUST3R_SHA256:-}

stop() {
  echo "error: setup_dust3r.sh: $1" >&2
  exit 2
}

case "${1:-}" in
  -h | --help) sed -n '2,16s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
  "" | -*) stop "give a folder for the checkout, outside of this project" ;;
esac
case "${2:-}" in
  "") with_checkpoint=yes ;;
  --no-checkpoint) with_checkpoint= ;;
  *) stop "unknown argument $2; the only one is --no-checkpoint" ;;
esac
[ $# -le 2 ] || stop "unknown argument $3"
[[ -z "$digest" || "$digest" =~ ^[0-9a-f]{64}$ ]] ||
  stop "DUST3R_SHA256=$digest: give 64 lower-case hexadecimal digits"
for tool in git curl sha256sum realpath; do
  command -v "$tool" > /dev/null || stop "$tool is not installed"
done

folder=$(realpath -m -- "$1")
project=$(realpath -- "$(dirname -- "${BASH_SOURCE[0]}")/..")
case "$folder/" in
  "$project"/*) stop "$folder: lies in this project; give a folder outside of it" ;;
esac

up_to_date() {
  [ "$(git -C "$folder" rev-parse HEAD 2> /dev/null)" = "$commit" ] &&
    # A leading space: the submodule is there, at the commit that is meant.
    [[ "$(git -C "$folder" submodule status croco 2> /dev/null)" = " "* ]]
}

if [ ! -e "$folder/.git" ]; then
  if [ -e "$folder" ] && [ -n "$(ls -A -- "$folder")" ]; then
    stop "$folder: holds something else; give a new folder"
  fi
  git init --quiet "$folder"
fi
if ! up_to_date; then
  echo "Fetching $repository at ${commit:0:7} into $folder" >&2
  git -C "$folder" fetch --quiet --depth 1 "$repository" "$commit" ||
    stop "$repository: cannot fetch $commit; is the network there?"
  git -C "$folder" -c advice.detachedHead=false checkout --quiet "$commit" ||
    stop "$folder: has changes of its own; give a new folder"
  git -C "$folder" submodule --quiet update --init --depth 1 croco ||
    stop "$folder: cannot fetch the submodule croco; is the network there?"
fi

if [ -n "$with_checkpoint" ]; then
  mkdir -p -- "$folder/checkpoints"
  cd -- "$folder/checkpoints"
  name=${checkpoint_url##*/}
  noted=$name.sha256
  if [ ! -f "$name" ]; then
    echo "Downloading $checkpoint_url (2.3 GB)" >&2
    curl --fail --location --silent --show-error --retry 3 --continue-at - \
      --output "$name.part" "$checkpoint_url" ||
      stop "$checkpoint_url: cannot download it; run this again to go on"
    file=$name.part
  else
    file=$name
  fi
  found=$(sha256sum < "$file" | cut -d ' ' -f 1)
  if [ -z "$digest" ] && [ -f "$noted" ]; then
    digest=$(cut -d ' ' -f 1 < "$noted")
  fi
  if [ -z "$digest" ]; then
    echo "SHA-256 of the first download, not checked against any source: $found" >&2
  elif [ "$digest" != "$found" ]; then
    stop "$folder/checkpoints/$file: SHA-256 is $found, not $digest; remove the file and run this again"
  fi
  printf '%s  %s\n' "$found" "$name" > "$noted.part"
  mv -- "$noted.part" "$noted"
  [ "$file" = "$name" ] || mv -- "$file" "$name"
fi
echo "export DUST3R_HOME=$(printf '%q' "$folder")"
