#!/usr/bin/env bash
# Runs a command again for as long as it ends with status 75: training was interrupted, saved, and can go on.
#
#   bash launch/restart.sh .venv/bin/python -m mmbert_jax.train --config configs/phase1.py --workdir runs/phase1
#
#   MAX_RESTARTS=100   then its status is handed on
#
# SIGTERM and SIGINT are passed on to the command; whatever it ends with then is the end. Slurm and Kubernetes restart
# jobs themselves (slurm.sh, gke_jobset.yaml); this is for machines that nobody watches, such as the VMs of a TPU pod.
set -uo pipefail

child=
stopped=
trap 'stopped=1; [ -z "$child" ] || kill -TERM "$child"' TERM INT

for ((restarts = 0; ; restarts++)); do
    "$@" &
    child=$!
    wait "$child"
    status=$?
    while kill -0 "$child" 2>/dev/null; do # a signal ends `wait`, not the command
        wait "$child"
        status=$?
    done
    if [ "$status" -ne 75 ] || [ -n "$stopped" ] || [ "$restarts" -ge "${MAX_RESTARTS:-100}" ]; then
        exit "$status"
    fi
    echo "restart $((restarts + 1)) after status 75"
done
