"""The preparation as a whole."""

import shutil
from collections.abc import Sequence

from mmbert_jax.data.corpus import FORMAT, MANIFEST, VERSION, Manifest
from mmbert_jax.data.prepare.deal import deal, plan, shard_limit
from mmbert_jax.data.prepare.hold_out import hold_out_enough, leave_some_to_train_on
from mmbert_jax.data.prepare.output import TOKENIZER_FOLDER, check_output, copy_tokenizer
from mmbert_jax.data.prepare.pack import pack
from mmbert_jax.data.prepare.settings import Settings
from mmbert_jax.data.prepare.tokenise import tokenize
from mmbert_jax.data.prepare.workers import run_jobs
from mmbert_jax.data.sources import Input
from mmbert_jax.data.tokenizer import load_tokenizer
from mmbert_jax.data.tokenizer_identity import describe_tokenizer
from mmbert_jax.files import atomic_folder, write_json
from mmbert_jax.places import Place


def prepare_corpus(
    inputs: Sequence[Input],
    settings: Settings,
    output: Place,
    workers: int,
    source: str,
    overwrite: bool = False,
) -> Manifest:
    """Writes a corpus and returns its manifest.

    Until it is complete it lies in a hidden folder beside `output`; for a bucket in one for temporary files ($TMPDIR),
    from which the manifest is copied last, so that a folder in a bucket without one is no corpus.

    Args:
      inputs: as `sources.find_inputs` gives them; a document id names a file by its index in this list.
      settings: see Settings.
      output: a folder, on a disk or in a bucket, that does not exist or is empty, or holds a corpus and `overwrite` is
        set.
      workers: processes that tokenise and pack; 1 does the work in this process.
      source: the corpus's name in its manifest.
      overwrite: whether to replace a corpus.

    Raises:
      UserError: bad input, or an output folder that holds something else.
      OSError: no space left on the disk; names `output`.
    """
    check_output(output, overwrite)
    tokenizer = load_tokenizer(settings.tokenizer)
    with (
        atomic_folder(output, replace=True, last=MANIFEST) as partial,
        run_jobs(workers, settings, tokenizer.special) as run,
    ):
        spill = partial / "spill"
        spill.mkdir()
        spills, totals = tokenize(inputs, run, spill)
        if settings.held_out:
            spills = hold_out_enough(spills, settings.held_out_documents, run)
        spills = leave_some_to_train_on(spills)
        limit = shard_limit([size for _, size in spills.values()], settings.shard_tokens)
        jobs = plan(deal(spills, limit, run), limit, partial)
        row_lengths = pack(jobs, settings, run)
        shutil.rmtree(spill)
        copy_tokenizer(tokenizer, partial / TOKENIZER_FOLDER)
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "source": source,
            "inputs": [str(item.path) for item in inputs],
            "tokenizer": describe_tokenizer(tokenizer),
            "held_out_fraction": settings.held_out,
            "held_out_documents": settings.held_out_documents,
            "documents": totals["documents"],
            "empty_documents": totals["empty_documents"],
            "tokens": totals["tokens"],
            "bytes": totals["bytes"],
            "row_lengths": row_lengths,
        }
        write_json(partial / MANIFEST, manifest)
    return manifest
