"""The preparation as a whole."""

import sys
from collections.abc import Sequence

from mmbert_jax.data.corpus import FORMAT, MANIFEST, VERSION, Manifest
from mmbert_jax.data.prepare.deal import deal, plan, shard_limit
from mmbert_jax.data.prepare.duplicates import drop_duplicates
from mmbert_jax.data.prepare.hold_out import (
    hold_out_enough,
    leave_some_to_train_on,
    shares_of,
    total,
)
from mmbert_jax.data.prepare.output import (
    TOKENIZER_FOLDER,
    check_output,
    copy_tokenizer,
    corpus_folder,
)
from mmbert_jax.data.prepare.pack import pack
from mmbert_jax.data.prepare.parts import first_ids, kept_parts, parts_folder
from mmbert_jax.data.prepare.settings import Settings
from mmbert_jax.data.prepare.tokenise import check_documents, sum_dropped, tokenize
from mmbert_jax.data.prepare.workers import Engine, run_jobs
from mmbert_jax.data.sources import Faults, Input, OtherTokenizer, load_other, split
from mmbert_jax.data.tokenizer import load_tokenizer
from mmbert_jax.data.tokenizer_identity import describe_tokenizer
from mmbert_jax.errors import UserError
from mmbert_jax.files import write_json
from mmbert_jax.places import Place


def prepare_corpus(
    inputs: Sequence[Input],
    settings: Settings,
    output: Place,
    engine: Engine,
    source: str,
    overwrite: bool = False,
    keep_parts: bool = False,
) -> Manifest:
    """Writes a corpus and returns its manifest.

    Its finished parts lie in `output`.parts until it is complete, also when the program is interrupted: the same call
    then goes on behind them. The corpus lies in a hidden folder beside `output` until it is complete, in a bucket below
    the parts; a folder in a bucket without a manifest, which comes last, is no corpus.

    Args:
      inputs: as `sources.find_inputs` gives them; a document id names a file by its index in this list.
      settings: see Settings.
      output: a folder, on a disk or in a bucket, that does not exist or is empty, or holds a corpus and `overwrite` is
        set.
      engine: who does the work: so many processes of this machine (1: this process), or a Ray cluster's.
      source: the corpus's name in its manifest.
      overwrite: whether to replace a corpus.
      keep_parts: whether the finished parts stay, for the same text with more files.

    Raises:
      UserError: bad input, or an output folder that holds something else.
      OSError: no space left on the disk; names `output`.
    """
    check_output(output, overwrite)
    tokenizer = load_tokenizer(settings.tokenizer)
    tokens_of = _load_tokens_of(inputs, settings)
    parts_in = parts_folder(output)
    with (
        kept_parts(parts_in, keep_parts),
        run_jobs(engine, settings, tokenizer.special) as run,
    ):
        pieces = split(inputs, several=tokens_of is not None)
        parts = tokenize(pieces, run, parts_in, tokenizer, settings, tokens_of)
        faults = Faults()
        for part in parts:
            faults.merge(part.counts.faults)
        if faults.counts:
            print(f"records that were passed over:\n{faults.table()}", file=sys.stderr)
        empty = check_documents(parts, inputs)
        ids = first_ids(pieces, parts)
        dropped = sum_dropped(parts)
        languages = {language for part in parts for language in part.counts.dropped}
        languages |= {language for part in parts for _, language in part.blocks}
        if settings.deduplicate:
            parts, dropped["duplicate"] = drop_duplicates(parts, ids, run, parts_in)
        shares = shares_of(parts)
        if gone := languages - {language for _, language in shares}:
            print(
                f"all documents are dropped of {len(gone)} languages: {', '.join(sorted(gone))}",
                file=sys.stderr,
            )
        of_all = total([share for of_key in shares.values() for share in of_key])
        least = settings.held_out_documents if settings.held_out else 0
        shares, moved = hold_out_enough(shares, least, run, parts_in)
        shares = leave_some_to_train_on(shares)
        limit = shard_limit([of_all], settings.shard_tokens)
        deals = deal(shares, moved, ids, limit, run, parts_in)
        with corpus_folder(output, parts_in / "corpus") as folder:
            jobs = plan(deals, limit, parts_in, moved, folder)
            row_lengths = pack(jobs, settings, run)
            copy_tokenizer(tokenizer, folder / TOKENIZER_FOLDER)
            manifest = {
                "format": FORMAT,
                "version": VERSION,
                "source": source,
                "inputs": [str(item.path) for item in inputs],
                "tokenizer": describe_tokenizer(tokenizer),
                "held_out_fraction": settings.held_out,
                "held_out_documents": settings.held_out_documents,
                "documents": of_all.documents,
                "empty_documents": empty,
                "faulty_records": dict(sorted(faults.counts.items())),
                "tokens": of_all.tokens - of_all.documents,
                "bytes": of_all.text_bytes,
                "row_lengths": row_lengths,
            }
            manifest |= settings.rules.described()
            if tokens_of is not None:
                manifest["tokens_of"] = tokens_of.described()
            if dropped:
                manifest["dropped_documents"] = dict(sorted(dropped.items()))
            write_json(folder / MANIFEST, manifest)
    return manifest


def _load_tokens_of(inputs: Sequence[Input], settings: Settings) -> OtherTokenizer | None:
    if settings.tokens_of is None:
        return None
    if not any(source.format == "mds" for source in inputs):
        raise UserError(
            "--tokens_of: the inputs have no MDS, of which it would read tokens; leave it out"
        )
    return load_other(settings.tokens_of)
