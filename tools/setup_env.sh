#!/usr/bin/env bash
# Makes .venv at the repository's root and installs mmbert_jax into it, versions pinned by constraints.txt.
#
#   bash tools/setup_env.sh                 the core: prepare text, train, merge, export
#   bash tools/setup_env.sh demo hf test    with extras of pyproject.toml
#   bash tools/setup_env.sh cuda13          to train on NVIDIA GPUs (driver for CUDA 13)
#   bash tools/setup_env.sh tpu             to train on TPUs
#   bash tools/setup_env.sh aot             .venv-aot instead: the core, and compilers for TPUs and NVIDIA GPUs
#
# The compilers have an environment of their own: where their hardware is missing, jax complains about their plugins
# unless JAX_PLATFORMS says which one is wanted.
#
# Does nothing when the environment already holds what is asked for; may be interrupted and started again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Prints a Python >= 3.12 that can make virtual environments. Every candidate is run, since a name on the PATH need not
# be one that works (pyenv's shims exit with 127 for versions that are installed but not selected).
find_python() {
    local pyenv_root candidate
    pyenv_root=$(pyenv root 2>/dev/null || true)
    for candidate in "${PYTHON:-}" python3.12 python3.13 python3 python \
        "${pyenv_root:-$HOME/.pyenv}"/versions/3.1[2-9]*/bin/python3; do
        if [ -n "$candidate" ] && "$candidate" -c '
import sys, venv, ensurepip
sys.exit(sys.version_info < (3, 12))' >/dev/null 2>&1; then
            echo "$candidate"
            return 0
        fi
    done
    return 1
}

extras=$(printf '%s\n' "$@" | sed '/^$/d' | sort -u)
venv=.venv
if [ "$extras" = aot ]; then
    venv=.venv-aot
elif grep -qx aot <<<"$extras"; then
    echo "error: the extra aot has its own environment, so it is set up by itself: bash $0 aot" >&2
    exit 1
fi
wanted=$(cat pyproject.toml constraints.txt | cksum)
stamp=$venv/mmbert_jax_installed # first line: checksum of what was asked for; then the extras, one a line

if [ -x $venv/bin/python ] && [ -f "$stamp" ] && [ "$(head -n 1 "$stamp")" = "$wanted" ]; then
    installed=$(tail -n +2 "$stamp")
    if [ -z "$(comm -23 <(echo "$extras") <(echo "$installed"))" ]; then
        exit 0
    fi
    extras=$(printf '%s\n' "$extras" "$installed" | sed '/^$/d' | sort -u)
fi

if ! $venv/bin/python -c 'import sys, pip; sys.exit(sys.version_info < (3, 12))' >/dev/null 2>&1; then
    if ! python=$(find_python); then
        echo "error: no Python >= 3.12 with the modules venv and ensurepip was found." >&2
        echo "Tried: \$PYTHON, python3.12, python3.13, python3, python, and pyenv's versions." >&2
        echo "Install one (Debian and Ubuntu: apt install python3.12 python3.12-venv; or: pyenv install 3.12)," >&2
        echo "or name it: PYTHON=/path/to/python3.12 bash $0" >&2
        exit 1
    fi
    echo "Making $venv with $("$python" --version) ($python)"
    "$python" -m venv --clear $venv
fi

list=$(echo "$extras" | paste -sd, -)
size="about 1 GB"
case ",$list," in
*,hf,*) size="about 5.5 GB, most of it torch" ;;
*,cuda13,*) size="about 4 GB, most of it CUDA" ;;
*,aot,* | *,tpu,*) size="about 2 GB" ;;
esac
echo "Installing mmbert_jax${list:+[$list]} into $venv ($size; minutes, once)"
rm -f "$stamp"
$venv/bin/python -m pip install --quiet --constraint constraints.txt --editable ".${list:+[$list]}"
{ echo "$wanted"; echo "$extras"; } >"$stamp"
