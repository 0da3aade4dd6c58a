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
signals=0
trap 'signals=$((signals + 1)); [ -z "$child" ] || kill -TERM "$child"' TERM INT

for ((restarts = 0; ; restarts++)); do
    child=
    "$@" &
    child=$!
    [ "$signals" -eq 0 ] || kill -TERM "$child" # the signal came before the command had a number
    status=
    while [ -z "$status" ]; do
        before=$signals
        wait "$child"
        status=$?
        # A signal ends `wait`, not the command, whose status the next `wait` tells even if it has ended meanwhile.
        [ "$before" -eq "$signals" ] || status=
    done
    if [ "$status" -ne 75 ] || [ "$signals" -gt 0 ] || [ "$restarts" -ge "${MAX_RESTARTS:-100}" ]; then
        exit "$status"
    fi
    echo "restart $((restarts + 1)) after status 75"
done
