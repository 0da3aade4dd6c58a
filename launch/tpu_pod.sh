#!/usr/bin/env bash
# Trains on a Cloud TPU slice of any number of VMs: `gcloud` on your machine, one training process on each VM.
#
#   export NAME=mmbert ZONE=us-west4-a ACCELERATOR=v5litepod-256
#   bash launch/tpu_pod.sh create       ask for the slice (a queued resource) and wait for it; skip it if you have one
#   bash launch/tpu_pod.sh install      copy this checkout's last commit to every VM and install it
#   bash launch/tpu_pod.sh train --config configs/phase1.py --workdir /shared/runs/phase1 \
#       --config.data.corpus=/shared/corpora --config.train.microbatch_rows=1536
#   bash launch/tpu_pod.sh log          follow the output of worker 0
#   bash launch/tpu_pod.sh stop         SIGTERM: training saves and ends; `train` resumes it
#   bash launch/tpu_pod.sh delete       give the slice back
#
#   DRY_RUN=1 bash launch/tpu_pod.sh train ...    prints the commands, runs none
#
# Variables:
#   NAME, ZONE        of the slice
#   ACCELERATOR       v5litepod-256 (v5e:16x16), v5p-1024 (512 chips), v6e-256, ...
#   RUNTIME           image of the VMs; default: the one for the accelerator
#   PROJECT           Google Cloud project; default: gcloud's
#   SPOT=1            preemptible and cheaper. After a preemption: delete, create, install, train
#   MOUNT             command that each VM runs at `install`, e.g. to mount a Filestore share at /shared. Run folder
#                     and corpus must be at one path on all VMs
#   CACHE             folder of compiled programs (default ~/jax_cache): a restart then starts in seconds
#   LIBTPU_INIT_ARGS  compiler flags, handed on. None are set here: libtpu overlaps all-gathers and sums gradients
#                     once a batch by itself (docs/benchmarks/ahead.md); whatever you add, measure
#
# jax finds the other VMs of the slice by itself. A process that ends with status 75 (it was interrupted, and saved) is
# started again on its VM, at the same moment as on the others, unless it gets no further (launch/restart.sh). What fits on a slice: tools/compile_ahead.py.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

run() {
    if [ -n "${DRY_RUN:-}" ]; then
        printf '%q ' "$@"
        echo
    else
        "$@"
    fi
}

usage() {
    sed -n '2,/^set /p' "$0" | grep '^#' | cut -c3- >&2
    exit 2
}

action=${1:-}
shift || usage
: "${NAME:?set NAME, the name of the slice}" "${ZONE:?set ZONE, e.g. us-west4-a}"
place=(--zone "$ZONE")
[ -z "${PROJECT:-}" ] || place+=(--project "$PROJECT")

on_all() {
    run gcloud compute tpus tpu-vm ssh "$NAME" "${place[@]}" --worker=all --command "$1"
}

case $action in
create)
    : "${ACCELERATOR:?set ACCELERATOR, e.g. v5litepod-256}"
    case $ACCELERATOR in
    v5litepod-*) image=v2-alpha-tpuv5-lite ;;
    v5p-*) image=v2-alpha-tpuv5 ;;
    v6e-*) image=v2-alpha-tpuv6e ;;
    *) image=tpu-ubuntu2204-base ;;
    esac
    run gcloud compute tpus queued-resources create "$NAME" --node-id "$NAME" "${place[@]}" \
        --accelerator-type "$ACCELERATOR" --runtime-version "${RUNTIME:-$image}" ${SPOT:+--spot}
    state=
    while [ "$state" != ACTIVE ] && [ -z "${DRY_RUN:-}" ]; do
        state=$(gcloud compute tpus queued-resources describe "$NAME" "${place[@]}" --format 'value(state.state)')
        echo "$NAME: $state"
        case $state in
        ACTIVE) ;;
        FAILED | SUSPENDING | SUSPENDED)
            echo "error: no slice was given; bash $0 delete, then try again" >&2
            exit 1
            ;;
        *) sleep "${POLL_SECONDS:-60}" ;;
        esac
    done
    ;;
install)
    archive=$(mktemp -d)/mmbert_jax.tar.gz
    trap 'rm -r "$(dirname "$archive")"' EXIT
    run git archive --output "$archive" HEAD
    run gcloud compute tpus tpu-vm scp "$archive" "$NAME:mmbert_jax.tar.gz" "${place[@]}" --worker=all
    on_all "set -e; ${MOUNT:+$MOUNT; }mkdir -p mmbert_jax; tar -xzf mmbert_jax.tar.gz -C mmbert_jax; cd mmbert_jax
bash tools/setup_env.sh tpu"
    ;;
train)
    [ $# -gt 0 ] || usage
    # In the background, so that it outlives the connection. JAX_PLATFORMS=tpu: a VM whose TPU is taken says so instead
    # of training on its CPU.
    cache=${CACHE:-\$HOME/jax_cache}
    on_all "cd mmbert_jax; if [ -e train.pid ] && kill -0 \$(cat train.pid) 2>/dev/null; then
echo 'error: training runs already (stop ends it)' >&2; exit 1; fi
export JAX_PLATFORMS=tpu JAX_COMPILATION_CACHE_DIR=$cache${LIBTPU_INIT_ARGS:+ LIBTPU_INIT_ARGS=$(printf %q "$LIBTPU_INIT_ARGS")}
nohup setsid bash launch/restart.sh .venv/bin/python -m mmbert_jax.train$(printf ' %q' "$@") >>train.log 2>&1 </dev/null &
echo \$! >train.pid"
    ;;
log)
    run gcloud compute tpus tpu-vm ssh "$NAME" "${place[@]}" --worker=0 \
        --command "tail -n 100 -F mmbert_jax/train.log"
    ;;
stop)
    on_all "cd mmbert_jax; kill -TERM \$(cat train.pid); while kill -0 \$(cat train.pid) 2>/dev/null; do sleep 1; done; tail -n 2 train.log"
    ;;
delete)
    run gcloud compute tpus queued-resources delete "$NAME" "${place[@]}" --force
    ;;
*)
    usage
    ;;
esac
