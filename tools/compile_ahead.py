"""Compiles the training step for hardware that is not there, and says what it needs and how fast it can be.

Prints parameters and optimiser state on a chip, peak memory, the collectives with the axes of the mesh that they go
over, FLOPs a token, the rate that the hardware's peaks allow, and the time of the phase. Exits with 1 when the step
does not fit. Runs in the environment of the compilers (bash tools/setup_env.sh aot), on a CPU.

What is computed and what is estimated:
  memory        the compiler's own plan. TPU compilers refuse a step that does not fit; for GPUs it is compared with
                what a program gets (mmbert_jax/parallel/hardware.py has all figures of the hardware).
  collectives   read from the compiled program, times the length of its loops, for the largest batch of the phase.
  rate          a bound: the slowest of products at peak FLOP/s (the loss's logits twice on TPUs and with fsdp or
                tensor, where they are computed again), memory traffic (operands and results of each fusion, once) and
                collectives (all links evenly used), the other two hidden behind it; and the rate if nothing is hidden.
                No measurement.
  suggestion    linear in the rows of a microbatch, from one compiled program: an estimate, to be compiled again.
"""

import argparse
import os
import sys

# Before jax is imported. No device is used: libtpu asks no metadata server which machine this is, and does not mind
# another process that has it.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

from mmbert_jax.ahead import lines, plan
from mmbert_jax.config import validate
from mmbert_jax.config_file import load
from mmbert_jax.errors import run_main
from mmbert_jax.files import check_file, write_json
from mmbert_jax.places import place


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  .venv-aot/bin/python tools/compile_ahead.py --config configs/phase1.py --topology v5e:16x16"
        " \\\n      --config.train.microbatch_rows=1536\n"
        "Any other field of the config can be given in the same way.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, help="e.g. configs/phase1.py:small")
    parser.add_argument(
        "--topology", required=True, help="v5e:16x16, v5p:8x8x8, v6e:4x4, h100:2x8 (2 hosts of 8)"
    )
    parser.add_argument(
        "--document", type=int, default=1024, help="tokens of a document, for FLOPs (default 1024)"
    )
    parser.add_argument("--output", type=place, help="JSON file to write")
    parser.add_argument("--hlo", type=place, help="file for the text of the compiled program")
    arguments, overrides = parser.parse_known_args()
    config = load(arguments.config, overrides)
    validate(config)
    for path in filter(None, (arguments.output, arguments.hlo)):
        check_file(path)
    report = plan(config, arguments.topology, arguments.document, arguments.hlo)
    print("\n".join(lines(report)))
    if arguments.output:
        write_json(arguments.output, report)
    sys.exit(0 if report["fits"] else 1)


if __name__ == "__main__":
    run_main(main)
