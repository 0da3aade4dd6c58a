"""Names what a step of a run saw: language, source and pass of every row, and its documents' files and lines.

For a loss that jumps at a step, or a document that should not have been there. The order of the data is a pure function
of the config, so nothing has to be recorded for this while a run goes on.
"""

import argparse

from ml_collections import ConfigDict

from mmbert_jax.batches import open_phase
from mmbert_jax.checks import check_documents
from mmbert_jax.config import complete
from mmbert_jax.data.pipeline import find_corpora
from mmbert_jax.data.tokenizer import load_tokenizer
from mmbert_jax.errors import UserError, run_main
from mmbert_jax.files import to_json
from mmbert_jax.places import place
from mmbert_jax.report.runs import steps_and_evaluations
from mmbert_jax.report.steps import rows_of_step, seen
from mmbert_jax.rollback import read_stretches
from mmbert_jax.run import read_config


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python tools/step_documents.py --run runs/phase1 --step 1200 --microbatch 0 --text",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--run", required=True, type=place, help="run folder")
    parser.add_argument("--step", required=True, type=int, help="its number in the log, from 1")
    parser.add_argument("--microbatch", type=int, help="only this one of the step, from 0")
    parser.add_argument("--text", action="store_true", help="show the documents' text, decoded")
    parser.add_argument("--json", action="store_true", help="print a JSON object for each row")
    parser.add_argument("--corpus", help="where the corpus is now (default config.data.corpus)")
    arguments = parser.parse_args()

    config = complete(ConfigDict(read_config(arguments.run)))
    if arguments.corpus:
        config.data.corpus = arguments.corpus
    steps, _ = steps_and_evaluations(arguments.run)
    stretches = read_stretches(arguments.run)
    start, stop = rows_of_step(config, steps, arguments.step, stretches)
    rows = config.train.microbatch_rows
    count = -(-(stop - start) // rows)
    chosen = arguments.microbatch
    if chosen is not None and not 0 <= chosen < count:
        raise UserError(f"--microbatch {chosen}: step {arguments.step} has {count}, from 0")

    data = open_phase(config)
    check_documents(arguments.run, config, data)
    tokenizer = None
    if arguments.text:
        tokenizer = load_tokenizer(find_corpora(config.data)[0][0] / "tokenizer")
    records = seen(data, start, stop, rows, tokenizer)
    if not arguments.json:
        print(
            f"step {arguments.step}: rows {start} to {stop - 1} of the phase, {count} microbatches"
        )
    for record in records:
        if chosen in (None, record["microbatch"]):
            print(to_json(record) if arguments.json else describe(record))


def describe(record: dict) -> str:
    """A row, and its documents below it."""
    lines = [
        f"row {record['row']}  microbatch {record['microbatch']}  {record['language']} ({record['source']})"
        f"  row {record['row_of_language']} of the language, pass {record['pass']}"
    ]
    for document in record["documents"]:
        lines.append(f"    {document['file']}:{document['line']}  id {document['id']}")
        if "text" in document:
            lines.append(f"        {document['text']!r}")
    return "\n".join(lines)


if __name__ == "__main__":
    run_main(main)
