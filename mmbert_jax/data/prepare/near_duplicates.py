"""Near-duplicates, by datatrove's MinHash (extra `dedup`).

Of texts that have most of their word sequences in common one is kept, with the number of those that it stands for.

Its four stages, with its own settings, which are FineWeb2's: hashes of each text's sequences of 5 words, 112 in 14
buckets; texts that agree in a bucket; clusters of such; and the texts that are left. Two texts of which 80% of all
sequences are common to both are found with a probability of 92%. Texts of fewer than 5 words are always kept.

Everything lies on a disk that this machine's processes see. The third stage is one process, which has all documents
that have near-duplicates in memory, some 300 bytes each. Languages are not kept apart, and which text of a cluster is
kept follows from the order of the inputs, but need not be the first.
"""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import zstandard
from datatrove.data import Document
from datatrove.pipeline.dedup import (
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.utils.word_tokenizers import WordTokenizer
from loguru import logger

from mmbert_jax.data.prepare.parts import name_pieces
from mmbert_jax.data.prepare.rules import Rules
from mmbert_jax.data.prepare.words import characters_of_word, code_points, split_words
from mmbert_jax.data.prepare.workers import Run, pool_jobs
from mmbert_jax.data.sources import Faults, Fields, Input, Piece, read_slice, split
from mmbert_jax.files import atomic_file, atomic_folder

CONFIG = MinhashConfig()
SIZE_FIELD = "minhash_cluster_size"  # as FineWeb2 has it


class _Job(NamedTuple):
    work: Path
    piece: Piece
    rank: int
    fields: Fields
    rules: Rules
    output: Path | None = None


class _Words(WordTokenizer):
    """Words without a library for the language; of scripts without spaces sequences that overlap.

    They are so long that as many of them in a row as are hashed together are as long as so many words.
    """

    def word_tokenize(self, text: str) -> list[str]:
        characters = characters_of_word(code_points(text)) if text else None
        if not characters:
            return split_words(text)
        n = CONFIG.n_grams * characters - CONFIG.n_grams + 1
        return [text[i : i + n] for i in range(len(text) - n + 1)]

    def sent_tokenize(self, text: str) -> list[str]:
        raise NotImplementedError("MinHash asks for words alone")

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        raise NotImplementedError("MinHash asks for words alone")


def drop_near_duplicates(
    inputs: Sequence[Input], fields: Fields, rules: Rules, output: Path, workers: int
) -> tuple[int, int, Faults]:
    """Writes `output`, a folder of JSONL files with text, language and SIZE_FIELD.

    Until it is complete, what is done lies in `output`.minhash, and the same call goes on behind it.

    Args:
      rules: of which texts are rewritten before they are compared; none is dropped for them.

    Returns:
      How many documents with text were read, how many are kept, and the records that were passed over.

    Raises:
      UserError: bad input, or an output folder that holds something.
    """
    pieces = split(inputs)
    decided_by = [
        version("datatrove"),
        str(CONFIG),
        asdict(fields),
        rules.described(),
    ]
    digest = hashlib.blake2b("".join(name_pieces(pieces, decided_by)).encode(), digest_size=16)
    beside = output.with_name(f"{output.name}.minhash")
    work = beside / digest.hexdigest()
    with atomic_folder(output) as folder, _run_jobs(workers) as run:
        for other in beside.iterdir() if beside.is_dir() else ():
            if other != work:
                shutil.rmtree(other)
        (work / "signed").mkdir(parents=True, exist_ok=True)
        jobs = [_Job(work, x, i, fields, rules, folder) for i, x in enumerate(pieces)]
        faults = Faults()
        for found in run(_sign, jobs):
            faults.merge(found)
        list(run(_compare, [(work, bucket) for bucket in range(CONFIG.num_buckets)]))
        list(run(_cluster, [(work, len(pieces))]))
        counts = sum(run(_keep, jobs), Counter())
    shutil.rmtree(beside)
    return counts["read"], counts["kept"], faults


def _be_quiet() -> None:
    logger.disable("datatrove")  # lines for each of thousands of tasks


@contextmanager
def _run_jobs(workers: int) -> Iterator[Run]:
    if workers == 1:
        _be_quiet()
        yield map
        return
    with pool_jobs(workers, _be_quiet, ()) as run:
        yield run


def _documents(job: _Job, faults: Faults) -> Iterator[Document]:
    for part in job.piece:
        for batch in read_slice(part, job.fields):
            faults.merge(batch.faults)
            for document in batch.documents:
                text = job.rules.rewrite(document.text)
                if text and not text.isspace():
                    yield Document(text, "", metadata={"language": document.language})


def _sign(job: _Job) -> Faults:
    done = job.work / "signed" / f"{job.rank}.json"
    if done.exists():
        return Faults(**json.loads(done.read_text()))
    faults = Faults()
    step = MinhashDedupSignature(str(job.work / "signatures"), CONFIG, _Words())
    step.run(_documents(job, faults), job.rank)
    with atomic_file(done) as file:
        json.dump(asdict(faults), file)
    return faults


def _compare(job: tuple[Path, int]) -> None:
    work, bucket = job
    step = MinhashDedupBuckets(str(work / "signatures"), str(work / "pairs"), config=CONFIG)
    step.run(None, bucket, CONFIG.num_buckets)


def _cluster(job: tuple[Path, int]) -> None:
    work, ranks = job
    step = MinhashDedupCluster(
        str(work / "pairs"), str(work / "clusters"), CONFIG, save_cluster_size=True
    )
    step.run(None, 0, 1)
    for rank in range(ranks):
        # Without these the last stage leaves the sizes out for a piece of which every document is kept.
        for ending in ("remove", "sizes"):
            (work / "clusters" / f"{rank:06}.{ending}").touch()


def _keep(job: _Job) -> Counter[str]:
    counts: Counter[str] = Counter()

    def counted(documents: Iterator[Document]) -> Iterator[Document]:
        for document in documents:
            counts["read"] += 1
            yield document

    assert job.output is not None
    step = MinhashDedupFilter(str(job.work / "clusters"), load_cluster_sizes=True)
    path = job.output / f"{job.rank:05}.jsonl.zst"
    with path.open("wb") as raw, zstandard.ZstdCompressor().stream_writer(raw) as file:
        for document in step.run(counted(_documents(job, Faults())), job.rank):
            record = {
                "text": document.text,
                "language": document.metadata["language"],
                SIZE_FIELD: document.metadata[SIZE_FIELD],
            }
            file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
            counts["kept"] += 1
    return counts
