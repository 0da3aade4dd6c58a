"""Writes one page of HTML about one run or several phases: losses, throughput, shares, where the time went, config.

Everything is in the page, so it can be sent and opened anywhere. Reads run folders and, for the sampling shares, the
manifests of the corpora. Works while a run goes on.
"""

import argparse

from mmbert_jax.errors import run_main
from mmbert_jax.files import check_file, write_text
from mmbert_jax.places import place
from mmbert_jax.report.page import report_page


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python tools/run_report.py --run runs/phase1 runs/phase2 --output report.html",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--run",
        required=True,
        nargs="+",
        type=place,
        help="run folders, in the order of the phases",
    )
    parser.add_argument("--output", required=True, type=place, help="HTML file to write")
    arguments = parser.parse_args()
    check_file(arguments.output)
    write_text(arguments.output, report_page(arguments.run))
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    run_main(main)
