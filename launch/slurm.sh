#!/usr/bin/env bash
# Trains on the GPUs of several hosts under Slurm, and queues itself again when its time is over.
#
#   sbatch --nodes 2 launch/slurm.sh --config configs/phase1.py --workdir /shared/runs/phase1 \
#       --config.data.corpus=/shared/corpora --config.train.microbatch_rows=768
#
#   DRY_RUN=1 bash launch/slurm.sh --config ...    prints the command of the job step
#
# Options of sbatch given on the command line win over those below; partition and account are the site's.
# Variables:
#   PYTHON         default .venv/bin/python of the folder that sbatch was called in: bash tools/setup_env.sh cuda13
#   CACHE          folder of compiled programs, seen by all hosts (default .jax_cache); a restart then starts in seconds
#   MAX_RESTARTS   how often the job is queued again (default 100), and only when it got to a new checkpoint
#   NCCL_SOCKET_IFNAME, NCCL_IB_HCA   which interfaces and adapters NCCL takes, where it chooses wrongly; they, and all
#                  other NCCL variables, are handed on
#
# One process a GPU: so jax reads Slurm's environment, and every process takes the GPU of its rank. Each process must see
# all GPUs of its host, hence no --gpus-per-task. 120 seconds before the time limit (and at a preemption) Slurm sends
# SIGTERM: training saves and ends with status 75, and the job is queued again with its number; it resumes. What ends
# with 75 before it got to a new checkpoint is tried again in the same allocation, three times at most.
# What fits on how many GPUs: tools/compile_ahead.py --topology h100:2x8.
#
#SBATCH --job-name=mmbert
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -uo pipefail

if [ $# -eq 0 ]; then
    echo "usage: sbatch --nodes N launch/slurm.sh --config FILE --workdir RUN [--config.x.y=value ...]" >&2
    exit 2
fi
export JAX_PLATFORMS=cuda
export JAX_COMPILATION_CACHE_DIR=${CACHE:-$PWD/.jax_cache}
# jax takes 75% of a GPU by default. What is left here is for NCCL and CUDA's own needs.
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.95}
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}

python=${PYTHON:-.venv/bin/python}
# --cpus-per-task: since Slurm 22.05 srun does not take it from sbatch, and each process would have one core.
# --kill-on-bad-exit=0 and --wait: the first process that ends with 75 must not have the others killed while they save,
# but when one has crashed, the others, which wait for it, are ended after a minute.
step=(srun --kill-on-bad-exit=0 --wait=60 --cpus-per-task="${SLURM_CPUS_PER_TASK:-8}" --cpu-bind=cores
    "$python" -m mmbert_jax.train "$@")
if [ -n "${DRY_RUN:-}" ]; then
    printf '%q ' "${step[@]}"
    echo
    exit 0
fi

newest_step() {
    "$python" -m mmbert_jax.train "$@" --newest_step 2>/dev/null | tail -n 1
}

child=
trap '[ -z "$child" ] || kill -TERM "$child"' TERM # Slurm signals the steps; a site may signal the batch script as well
before=$(newest_step "$@")
for tries in 1 2 3; do
    "${step[@]}" &
    child=$!
    wait "$child"
    status=$?
    while kill -0 "$child" 2>/dev/null; do # a signal ends `wait`, not the step
        wait "$child"
        status=$?
    done
    # A job that was cancelled, or that Slurm has queued again after a preemption, is no longer RUNNING.
    if [ "$status" -ne 75 ] || [ "$(squeue --noheader --jobs "$SLURM_JOB_ID" --format %T)" != RUNNING ]; then
        break
    fi
    after=$(newest_step "$@")
    if [ "${after:--1}" -gt "${before:--1}" ]; then
        if [ "${SLURM_RESTART_COUNT:-0}" -lt "${MAX_RESTARTS:-100}" ]; then
            echo "status 75 at step $after: queued again"
            scontrol requeue "$SLURM_JOB_ID"
        fi
        break
    fi
    echo "status 75 without a new checkpoint, $tries of 3 times"
done
exit "$status"
