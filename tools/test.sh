#!/usr/bin/env bash
# The tests: sets up .venv and .venv-aot with everything they need, checks style, runs pytest in two processes, which take
# one file of tests at a time, in their order. Arguments go to pytest: -m "" adds the slow tests (whole curricula, and the
# training step of base compiled for other machines), which take minutes each. The last line is pytest's; the exit status
# is pytest's, or the style check's where the tests pass.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
bash tools/setup_env.sh dedup demo hf ray test || exit 1
bash tools/setup_peers.sh &
peers=$!
bash tools/setup_env.sh aot
aot=$?
wait $peers || exit 1
[ $aot = 0 ] || exit 1
.venv/bin/ruff check . && .venv/bin/ruff format --check .
style=$?
.venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow" "$@"
tests=$?
exit $((tests ? tests : style))
