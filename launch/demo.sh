#!/usr/bin/env bash
# The main job, start to finish: 360-degree videos become a model that imagines
# new views.
#   bash launch/demo.sh [OUTPUT] [--video FILE] [--without_pretraining]
# OUTPUT (default runs/demo) gets one folder per stage, summary.json and
# index.html. --video takes your own 360-degree video in place of the
# procedural ones. --without_pretraining trains a second model, from nothing,
# to compare. A run that was stopped goes on where it was.
set -euo pipefail
output=runs/demo
video=
compare=
while [ $# -gt 0 ]; do
  case "$1" in
    --video)
      [ $# -gt 1 ] || { echo "error: demo.sh: --video needs a file" >&2; exit 2; }
      video=$2; shift 2 ;;
    --video=*) video=${1#*=}; shift ;;
    --without_pretraining) compare=1; shift ;;
    -h | --help) sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    -*) echo "error: demo.sh: unknown argument $1; see --help" >&2; exit 2 ;;
    *) output=$1; shift ;;
  esac
done
if [ -n "$video" ] && [ ! -f "$video" ]; then
  echo "error: $video: no such file; give a 360-degree video" >&2
  exit 2
fi
case "$output" in
  [A-Za-z]*:/*)
    echo "error: $output: is an address, and the demo writes to this machine only; give a folder" >&2
    exit 2 ;;
esac
output=$(realpath -m "$output")
[ -z "$video" ] || video=$(realpath "$video")

cd "$(dirname "${BASH_SOURCE[0]}")/.."
SECONDS=0
bash launch/setup.sh
source launch/memory.sh
python=.venv/bin/python
# Side of the views of the model, which the recipe of training has.
size=128
"$python" -m launch.claim "$output" "${video:-procedural videos}"
trap 'rm -f "$output/.odin_lock.json"' EXIT
rm -f "$output/stages.jsonl"
# What one stage has compiled the next one need not.
export JAX_COMPILATION_CACHE_DIR="$output/.compiled"
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=1
stage() {
  local status=0
  "$python" launch/stage.py "$output" "$1" -- "$python" -m "${@:2}" || status=$?
  [ "$status" -eq 0 ] && return
  [ "$status" -ne 75 ] ||
    echo "stopped in stage $1, which is not finished; the same command goes on from there" >&2
  exit "$status"
}
# evaluate FOLDER PREDICTORS FLAGS...: of several, each gets a folder in FOLDER.
# Samples of more steps than two have the same LPIPS and a decibel less.
evaluate() {
  stage "$1" odin_jax.evaluate --config=configs/evaluate.py \
    --benchmark=records --predictor="$2" --workdir="$output/train" \
    --config.image_size_px=$size --config.num_steps=2 --output="$output/$1" \
    "${@:3}"
}
# All rows of one set of pairs. One step (model_mean) is about the mean of what
# a model imagines.
evaluate_all() {
  evaluate "$1" "model,model_mean,sweep,copy,mean$geometry" "${@:2}"
  evaluate "$1/shuffled" model "${@:2}" --shuffle_poses
  # What the training started from, and a training that did not.
  evaluate "$1/pretrained" model "${@:2}" --config.num_steps=1 --workdir=pretrained
  [ -z "$compare" ] || evaluate "$1/without_pretraining" model "${@:2}" \
    --config.num_steps=1 --workdir="$output/train_without_pretraining"
}

truth=() replay=() gently=()
if [ -z "$video" ]; then
  videos=$output/worlds
  truth=(--truth="$videos")
  stage worlds preprocessing.worlds --output="$videos" --num_worlds=4 --seconds=24 --seed=0
  # Four worlds would make the model forget those that it knows: half of what
  # it sees are pairs of further ones (replay). A real video is to change more.
  stage replay preprocessing.worlds --output="$output/replay" --pairs=12 \
    --num_worlds=64 --seconds=24 --view_px=$size --depth_px=64 \
    --test_fraction=0 --seed=6000
  replay=(--records="$output/replay" --config.mixture.weights=1,1
    --config.augment.mirror=True)
  gently=(--config.optimizer.learning_rate=5e-4)
else
  videos=$video
fi

# Time blocks are held out: few videos, and none to spare for testing alone.
stage records preprocessing.run --config=configs/preprocess.py \
  --input="$videos" --output="$output/records" --config.split_by=time \
  --config.test_fraction=0.2 --config.views_per_pair=8 --config.depth_px=64
stage audit preprocessing.audit --records="$output/records" \
  --output="$output/audit" "${truth[@]}"
# From the checkpoint that comes with the project, which knows other worlds.
stage train odin_jax.train --config=configs/train.py:multisphere \
  --init=pretrained --records="$output/records" --workdir="$output/train" \
  "${replay[@]}" "${gently[@]}"
# The same without it, to see what it is worth.
[ -z "$compare" ] || stage train_without_pretraining odin_jax.train \
  --config=configs/train.py:multisphere --records="$output/records" \
  --workdir="$output/train_without_pretraining" "${replay[@]}"

held_out=(--data="$output/records")
geometry=
if [ -z "$video" ]; then
  # What the source sees and what it does not are scored apart, and the source
  # moved by the true depth is the ceiling of pure geometry.
  stage true_depth preprocessing.true_depth --records="$output/records" \
    --worlds="$videos" --image_size_px=$size --output="$output/true_depth"
  held_out+=(--truth="$output/true_depth")
  geometry=,warp
fi
evaluate_all evaluate "${held_out[@]}"
if [ -z "$video" ]; then
  stage unseen preprocessing.worlds --output="$output/unseen" \
    --num_worlds=8 --pairs=16 --test_fraction=1 --seconds=24 --seed=1000
  stage true_depth_unseen preprocessing.true_depth \
    --records="$output/unseen" --image_size_px=$size \
    --output="$output/true_depth_unseen"
  evaluate_all evaluate_unseen --data="$output/unseen" --truth="$output/true_depth_unseen"
fi

# One step, whose views agree with each other: samples differ in what they make
# up.
stage generate odin_jax.generate --workdir="$output/train" \
  --image="$output/evaluate/model/pairs/000_source.png" \
  --trajectory=forward --num_steps=1 --output="$output/generate"
# A rendered world shows what is really there along the path.
[ -n "$video" ] || stage truth preprocessing.true_views --worlds="$videos" \
  --views="$output/generate" --evaluation="$output/evaluate/model" \
  --output="$output/truth"
stage consistency/generate odin_jax.consistency \
  --views="$output/generate" --output="$output/consistency/generate"
[ -n "$video" ] || stage consistency/truth odin_jax.consistency \
  --views="$output/truth" --output="$output/consistency/truth"
# Of what lies ahead a path straight on tells little: the scene is that of views
# from side to side.
stage orbit odin_jax.generate --workdir="$output/train" \
  --image="$output/evaluate/model/pairs/000_source.png" \
  --trajectory=orbit --num_steps=1 --output="$output/orbit"
beside=()
if [ -z "$video" ]; then
  stage orbit_truth preprocessing.true_views --worlds="$videos" \
    --views="$output/orbit" --evaluation="$output/evaluate/model" \
    --output="$output/orbit_truth"
  beside=(--truth="$output/orbit_truth")
fi
stage reconstruct odin_jax.reconstruct --views="$output/orbit" \
  --output="$output/reconstruct" "${beside[@]}"
"$python" -m odin_jax.report --run="$output" --videos="$videos"
echo "total: $((SECONDS / 60)) min $((SECONDS % 60)) s"
