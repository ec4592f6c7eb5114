#!/usr/bin/env bash
# One training on all workers of a Cloud TPU slice that is there already.
#
#   bash launch/train_tpu_pod.sh NAME ZONE --config=configs/train.py:odin \
#     --config.mesh.fsdp=16 --init=DIR --records=DIR --workdir=DIR
#
# Copies the last commit of this checkout to ~/odin on every worker, installs
# what it needs there, and starts one process on each. It creates nothing else:
# no slice, disk or bucket. A slice is made, and removed, by you:
#
#   gcloud compute tpus tpu-vm create NAME --zone=ZONE --accelerator-type=v5litepod-16 \
#     --version=v2-alpha-tpuv5-lite
#   gcloud compute tpus tpu-vm delete NAME --zone=ZONE
#
# --init, --records and --workdir are addresses, gs://BUCKET/DIR, or lie on a
# file system that all workers mount under the same path, such as a Filestore
# share:
#
#   gcloud compute tpus tpu-vm ssh NAME --zone=ZONE --worker=all \
#     --command='sudo mkdir -p /mnt/shared && sudo mount -t nfs 10.0.0.2:/share /mnt/shared'
#
# It may end with this connection: start it in tmux, on a machine that stays.
# After a worker was lost or the slice was taken away the same command goes on.
set -euo pipefail

usage() {
  sed -n '2,5s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
}

case "${1:-}" in
  -h | --help) usage; exit 0 ;;
esac
if [ $# -lt 3 ] || [[ "$1 $2" == *-- || "$1" == -* || "$2" == -* ]]; then
  echo "error: train_tpu_pod.sh: give NAME and ZONE of the slice, then flags of odin_jax.train" >&2
  exit 2
fi
name=$1 zone=$2
shift 2
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if ! command -v gcloud > /dev/null; then
  echo "error: train_tpu_pod.sh: no gcloud here; install the Google Cloud CLI" >&2
  exit 2
fi

on_all_workers() {
  gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$1"
}

archive=$(mktemp --suffix=.tar.gz)
trap 'rm -f "$archive"' EXIT
git archive --format=tar.gz --output="$archive" HEAD
gcloud compute tpus tpu-vm scp "$archive" "$name:odin.tar.gz" --zone="$zone" --worker=all
setup='mkdir -p odin && tar -xzf odin.tar.gz -C odin && bash odin/launch/setup.sh --tpu'
case "$*" in
  *=gs://*)
    # Reads and writes buckets; of the version of fsspec.
    driver='$(grep -o "^fsspec==[^ ]*" odin/requirements.txt | sed s/fsspec/gcsfs/)'
    setup+=" && odin/.venv/bin/python -m pip install --quiet $driver"
    ;;
esac
on_all_workers "$setup"
# Started together: each waits for the others.
on_all_workers "cd odin && exec .venv/bin/python -m odin_jax.train$(printf ' %q' "$@")"
