"""Which documents go into which shard."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmbert_jax.data.corpus import SPLITS
from mmbert_jax.data.prepare.tokenise import Spills
from mmbert_jax.data.prepare.workers import Run
from mmbert_jax.data.shards import SUFFIX
from mmbert_jax.data.spill import Size, SpillWriter, read_blocks

# Shards that a corpus has at least, for as many processes to pack, where they would not be smaller than this.
SHARDS_TO_SHARE = 64
LEAST_SHARED = 1 << 20  # tokens
# What a process packs at a time, at 8 bytes of memory a token: a large language comes into a shard in several parts.
PART_TOKENS = 1 << 25


@dataclass(frozen=True)
class Part:
    """Documents of one language that go into one shard."""

    language: str
    path: Path
    size: Size


@dataclass(frozen=True)
class Job:
    """One shard for each row length, from one split."""

    split: str
    parts: tuple[Part, ...]
    folder: Path
    index: int  # within the split

    def file(self, row_length: int) -> str:
        return f"{self.split}_{row_length}-{self.index:05}{SUFFIX}"


def shard_limit(sizes: Iterable[Size], largest: int) -> int:
    """Tokens of a shard: fewer in a small corpus, or one process would pack it while the others wait.

    It follows from the text alone, not from the number of processes, which must not change the corpus.
    """
    return min(largest, max(sum(size.tokens for size in sizes) // SHARDS_TO_SHARE, LEAST_SHARED))


def deal(spills: Spills, shard_tokens: int, run: Run) -> dict[str, list[Part]]:
    """Parts of about PART_TOKENS at most, or of a smaller shard's, by split, in order of their languages."""
    keys = sorted(spills)
    part_tokens = min(shard_tokens, PART_TOKENS)
    counts = [-(-spills[key][1].tokens // part_tokens) for key in keys]
    large = [(*spills[key], n) for key, n in zip(keys, counts, strict=True) if n > 1]
    dealt = run(deal_out, large)
    parts: dict[str, list[Part]] = {split: [] for split in SPLITS}
    for (split, language), n in zip(keys, counts, strict=True):
        pieces = next(dealt) if n > 1 else [spills[split, language]]
        parts[split] += [Part(language, path, size) for path, size in pieces]
    return parts


def deal_out(job: tuple[Path, Size, int]) -> list[tuple[Path, Size]]:
    """Splits a spill file into `n` by the documents' hashes; removes it."""
    path, _, n = job
    writer = SpillWriter()
    for block in read_blocks(path):
        # The hash's upper half decided the split, so the lower half decides here.
        part = (block.hashes & np.uint64(0xFFFFFFFF)) * np.uint64(n) >> np.uint64(32)
        for i in np.unique(part).tolist():
            writer.add(path.with_suffix(f".{i}"), block.take(np.flatnonzero(part == i)))
    writer.flush()
    path.unlink()
    return sorted(writer.sizes.items(), key=lambda item: int(item[0].suffix[1:]))


def plan(parts: dict[str, list[Part]], shard_tokens: int, folder: Path) -> list[Job]:
    """One job a shard, which takes neighbouring parts, of one language or of several."""
    jobs = []
    for split, of_split in parts.items():
        shards: list[list[Part]] = []
        tokens = shard_tokens
        for part in of_split:
            if not shards or tokens + part.size.tokens > shard_tokens:
                shards.append([])
                tokens = 0
            shards[-1].append(part)
            tokens += part.size.tokens
        jobs += [Job(split, tuple(shard), folder, i) for i, shard in enumerate(shards)]
    return jobs
