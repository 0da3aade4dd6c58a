#!/usr/bin/env bash
# Makes .peers/NAME/: libraries that tests and recipes use, in versions that do not go together with .venv's.
#
#   bash tools/setup_peers.sh                     all of them, about 1 GB
#   bash tools/setup_peers.sh transformers-4.48   only these
#
# Such a folder goes in front of .venv on the path, and so holds only what differs; torch is always .venv's:
#
#   PYTHONPATH=.peers/transformers-4.48 .venv/bin/python -c 'import transformers; print(transformers.__version__)'
#
# Does nothing for a folder that is complete; may be interrupted and started again. PYTHON=/path/to/python takes another
# interpreter than .venv's.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-.venv/bin/python}

# Whole lists, installed with --no-deps: a resolver would bring a second torch.
requests="requests==2.34.2 urllib3==2.8.0 charset-normalizer==3.5.2 certifi==2026.10.18"
training="datasets==5.2.0 accelerate==1.15.0 scikit-learn==1.9.1 joblib==1.6.0 threadpoolctl==3.8.0 narwhals==2.29.0
    pandas==3.1.1 pyarrow==26.0.1 dill==0.4.1 multiprocess==0.70.19 xxhash==4.1.0"

packages() {
    case $1 in
    transformers-4.48) echo transformers==4.48.0 tokenizers==0.21.4 huggingface-hub==0.36.0 $requests ;;
    transformers-4.57) echo transformers==4.57.6 tokenizers==0.22.2 huggingface-hub==0.36.0 $requests ;;
    sentence-transformers) echo sentence-transformers==6.2.0 $training ;;
    # Without PyLate's index (fast-plaid), which would bring an older torch.
    pylate)
        echo pylate==1.6.0 sentence-transformers==5.3.0 transformers==5.3.0 tokenizers==0.22.2 \
            huggingface-hub==1.33.0 httpx==0.28.1 httpcore==1.0.9 certifi==2026.10.18 fastkmeans==0.5.0 \
            ujson==5.12.0 $training
        ;;
    mergekit) echo mergekit==0.1.5 ;;
    # Writes MDS; without what reads images, and the clients of clouds.
    streaming)
        echo mosaicml-streaming==0.13.0 brotli==1.2.1 catalogue==2.0.10 python-snappy==0.7.3 cramjam==2.14.0 \
            zstd==1.5.7.2 xxhash==4.1.0
        ;;
    *)
        echo "error: no peer is called $1; there are $all" >&2
        return 1
        ;;
    esac
}

all="transformers-4.48 transformers-4.57 sentence-transformers pylate mergekit streaming"
[ $# -gt 0 ] || set -- $all
for name in "$@"; do
    list=$(packages "$name")
    folder=.peers/$name
    wanted=$({ echo "$list" && "$python" --version; } | cksum)
    if [ "$(cat "$folder/.complete" 2>/dev/null)" = "$wanted" ]; then
        continue
    fi
    echo "Installing $list into $folder"
    rm -rf "$folder"
    "$python" -m pip install --quiet --no-deps --target "$folder/site-packages" $list
    # A level deeper, since dill takes modules for somebody's own unless `site-packages` is in their path: it would store
    # them by value, which fails for pyarrow's. Python runs this file at start-up where the folder is on the path.
    echo 'import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "site-packages"))' \
        >"$folder/sitecustomize.py"
    echo "$wanted" >"$folder/.complete"
done
