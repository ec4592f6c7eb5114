#!/usr/bin/env bash
# Makes the checkpoint that comes with the project, odin_jax/pretrained, anew.
#   bash launch/pretrain.sh OUTPUT [--share=1]
# Some hours on two CPU cores. OUTPUT gets the worlds, the runs and, in the end,
# OUTPUT/pretrained. A run that was stopped goes on where it was. --share=0.005
# takes that share of all worlds and steps, to see whether everything runs.
set -euo pipefail
output=
share=1
for argument in "$@"; do
  case "$argument" in
    -h | --help) sed -n '2,6s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    --share=*) share=${argument#*=} ;;
    -*) echo "error: pretrain.sh: unknown argument $argument; see --help" >&2; exit 2 ;;
    *) output=$argument ;;
  esac
done
stop() {
  echo "error: pretrain.sh: $1" >&2
  exit 2
}
[ -n "$output" ] || stop "give a folder to write"
[[ $share =~ ^(1|0?\.[0-9]+)$ ]] || stop "--share=$share: give a number from 0 to 1, such as 0.005"
output=$(realpath -m "$output")
# What is done of a share is not done of another.
if [ -e "$output/share" ] && [ "$(< "$output/share")" != "$share" ]; then
  stop "$output: was begun with --share=$(< "$output/share"); give that, or another folder"
fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash launch/setup.sh
source .venv/bin/activate
# Runs start from `pretrained`, which is made on the way: in a copy of the code.
code=$output/code
mkdir -p "$code" "$output/done"
echo "$share" > "$output/share"
cp -r configs launch odin_jax preprocessing "$code"
cd "$code"
export PYTHONPATH=$code JAX_COMPILATION_CACHE_DIR=$output/.compiled

# stage NAME MODULE FLAGS...: once.
stage() {
  [ ! -e "$output/done/$1" ] || return 0
  echo "$1: python -m ${*:2}"
  python -m "${@:2}"
  touch "$output/done/$1"
}
part() { awk -v n="$1" -v s="$share" 'BEGIN { x = int(n * s); print x < 2 ? 2 : x }'; }
# worlds NAME NUMBER SEED FLAGS...
worlds() {
  stage "$1" preprocessing.worlds --output="$output/$1" --num_worlds="$(part "$2")" \
    --seed="$3" --view_px=128 --depth_px=64 --seconds=24 --test_fraction=0 "${@:4}"
}
# train NAME WORLDS STEPS FLAGS...
train() {
  stage "$1" odin_jax.train --config=configs/train.py:multisphere \
    --records="$output/$2" --workdir="$output/$1" --config.steps="$(part "$3")" \
    --config.augment.mirror=True "${@:4}"
}
# publish NAME RUN WORLDS: as what the next run calls `pretrained`.
publish() {
  stage "$1" odin_jax.port_weights --export=pretrained --source="$output/$2" \
    --records="$output/$3" --output="$output/$1"
  cp "$output/$1/multisphere."* odin_jax/pretrained
  # Of fewer than a hundred records there is none.
  [ ! -e "$output/$1/familiarity.json" ] ||
    cp "$output/$1/familiarity.json" odin_jax/pretrained
}
means=(--config.model.spheres.perceptual_weight=0)
both=(--config.model.sources=2 --config.optimizer.learning_rate=7e-4)

# 64 px; then 128 px, both before there was a refiner; then views of all lenses.
plain=(--config.model.spheres.refiner=0)
half=(--config.image_size_px=64 --config.autoencoder.patch_px=4 "${plain[@]}")
worlds p 400 5000 --pairs=24
train one p 2400 "${half[@]}" "${means[@]}"
train two p 400 "${half[@]}" "${both[@]}" --init="$output/one"
publish first two p
worlds q 800 5000 --pairs=12
train three q 1900 "${plain[@]}" "${means[@]}" --init=pretrained
train four q 400 "${plain[@]}" "${both[@]}" --init="$output/three"
publish second four q
worlds r 300 5001 --pairs=16 --fov_deg=40 --max_fov_deg=100
train five r 800 "${means[@]}" --config.optimizer.learning_rate=1e-3 --init=pretrained
train six r 300 "${both[@]}" --init="$output/five"
publish pretrained six r
echo "made $output/pretrained; take multisphere.* and familiarity.json to odin_jax/pretrained, and write down what it reaches"
