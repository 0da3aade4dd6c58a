#!/usr/bin/env bash
# The demo: sets up .venv, then runs the whole curriculum at toy size on text made on the spot. Nothing but Python
# packages is downloaded. Options go to tools/curriculum.py (--help lists them); run again, it goes on where it stopped.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bash "$root/tools/setup_env.sh" demo
cd "$root"
exec .venv/bin/python tools/curriculum.py "$@"
