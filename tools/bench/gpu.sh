#!/usr/bin/env bash
# Everything that one GPU can tell, in less than nine minutes on an H100: numbers of the kernels against a float32
# reference, then tables of attention and of the training step. Needs jax with CUDA, flax, optax and numpy; times
# PyTorch's and tokamax's attention beside ours where they are installed.
#
#   bash tools/bench/gpu.sh OUTPUT_FOLDER
set -euo pipefail
[ $# -eq 1 ] || { echo "usage: bash tools/bench/gpu.sh OUTPUT_FOLDER" >&2; exit 2; }
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
output=$1
mkdir -p "$output"
export PYTHONPATH="$PWD" XLA_PYTHON_CLIENT_PREALLOCATE=false

python -c 'import jax; print(*jax.devices(), jax.__version__, sep="\n")' | tee "$output/device.txt"
nvidia-smi | tee -a "$output/device.txt"

# The training step first: it is the figure that matters, and a failure in one program does not keep the other from
# running.
status=0
timeout 270 python tools/bench/train_step.py --output "$output/train_step.json" 2>&1 |
    tee "$output/train_step.txt" || status=1
timeout 260 python tools/bench/attention.py --output "$output/attention.json" 2>&1 |
    tee "$output/attention.txt" || status=1
exit $status
