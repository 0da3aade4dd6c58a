#!/usr/bin/env bash
# Runs a training command again for as long as it ends with status 75: it was interrupted, saved, and can go on.
#
#   bash launch/restart.sh .venv/bin/python -m mmbert_jax.train --config configs/phase1.py --workdir runs/phase1
#
#   MAX_RESTARTS=3   restarts in a row without a new checkpoint; then its status is handed on
#
# SIGTERM and SIGINT are passed on to the command; whatever it ends with then is the end. Slurm and Kubernetes restart
# jobs themselves (slurm.sh, gke_jobset.yaml); this is for machines that nobody watches, such as the VMs of a TPU pod.
set -uo pipefail

child=
signals=0
trap 'signals=$((signals + 1)); [ -z "$child" ] || kill -TERM "$child"' TERM INT

newest_step() {
    "$@" --newest_step 2>/dev/null | tail -n 1
}

tries=0
reached=$(newest_step "$@")
while true; do
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
    if [ "$status" -ne 75 ] || [ "$signals" -gt 0 ]; then
        exit "$status"
    fi
    before=$reached
    reached=$(newest_step "$@")
    # A run that went back to an earlier checkpoint counts as one that got no further: it may try as often.
    if [ "${reached:--1}" -gt "${before:--1}" ]; then tries=1; else tries=$((tries + 1)); fi
    if [ "$tries" -gt "${MAX_RESTARTS:-3}" ]; then
        echo "gave up after ${MAX_RESTARTS:-3} restarts without a new checkpoint" >&2
        exit "$status"
    fi
    echo "status 75: started again, at step ${reached:--1}"
done
