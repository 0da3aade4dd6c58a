"""Which documents go into which shard."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from mmbert_jax.data.corpus import SPLITS
from mmbert_jax.data.prepare.documents import COLUMNS, Documents, Size, place_of
from mmbert_jax.data.prepare.hold_out import Share, Shares, total
from mmbert_jax.data.prepare.parts import corpus_ids, read_columns, read_documents, read_kept
from mmbert_jax.data.prepare.workers import Run
from mmbert_jax.data.shards import SUFFIX
from mmbert_jax.places import Place

# Shards that a corpus has at least, for as many processes to pack, where they would not be smaller than this.
SHARDS_TO_SHARE = 64
LEAST_SHARED = 1 << 20  # tokens
# What a process packs at a time, at 8 bytes of memory a token: a large language comes into a shard in several parts.
PART_TOKENS = 1 << 25
# Every deal reads its range of hashes of every part. So that there are not as many requests as parts times parts, so
# many neighbouring tokens of a language are dealt by themselves; the order of training mixes all rows in any case.
DEALT_TOGETHER = 1 << 31
# Blocks of which one job looks at the hashes.
_SURVEYED = 64


@dataclass(frozen=True)
class Cut:
    """A range of a share's documents, and where in its block their tokens are.

    Attributes:
      first_ids: what has to be added to the numbers in each slice of the piece, uint64.
    """

    share: Share
    documents: tuple[int, int]
    tokens: tuple[int, int]
    first_ids: np.ndarray


@dataclass(frozen=True)
class Deal:
    """Documents of one language that go into one shard."""

    language: str
    cuts: tuple[Cut, ...]
    size: Size


@dataclass(frozen=True)
class Job:
    """One shard for each row length, from one split.

    Attributes:
      parts: where the documents lie.
      moved: hashes of the texts that were moved from one split to the other, uint64.
      folder: where the shards go.
      index: of the shard within the split.
    """

    split: str
    deals: tuple[Deal, ...]
    parts: Place
    moved: np.ndarray
    folder: Place
    index: int

    def file(self, row_length: int) -> str:
        return f"{self.split}_{row_length}-{self.index:05}{SUFFIX}"


def shard_limit(sizes: Iterable[Size], largest: int) -> int:
    """Tokens of a shard: fewer in a small corpus, or one process would pack it while the others wait.

    It follows from the text alone, not from the number of processes, which must not change the corpus.
    """
    return min(largest, max(sum(size.tokens for size in sizes) // SHARDS_TO_SHARE, LEAST_SHARED))


def deal(
    shares: Shares,
    moved: np.ndarray,
    first_ids: dict[str, np.ndarray],
    shard_tokens: int,
    run: Run,
    folder: Place,
) -> dict[str, list[Deal]]:
    """Deals of about PART_TOKENS at most, or of a smaller shard's, by split, in order of their languages."""
    part_tokens = min(shard_tokens, PART_TOKENS)
    dealt = [
        (key, together, -(-total(together).tokens // part_tokens))
        for key in sorted(shares)
        for together in _neighbours(shares[key])
    ]
    jobs = [
        (folder, tuple(together[i : i + _SURVEYED]), moved, n)
        for _, together, n in dealt
        if n > 1
        for i in range(0, len(together), _SURVEYED)
    ]
    surveyed = run(survey, jobs)
    deals: dict[str, list[Deal]] = {split: [] for split in SPLITS}
    for (split, language), together, n in dealt:
        if n <= 1:
            cuts = tuple(_whole(share, first_ids[share.block.part]) for share in together)
            deals[split].append(Deal(language, cuts, total(together)))
            continue
        found: list[list[Cut]] = [[] for _ in range(n)]
        sizes = [Size() for _ in range(n)]
        bounds = (x for _ in range(0, len(together), _SURVEYED) for x in next(surveyed))
        for share, (documents, tokens, of_share) in zip(together, bounds, strict=True):
            for i in range(n):
                if of_share[i].documents:
                    cut = Cut(
                        share,
                        (documents[i], documents[i + 1]),
                        (tokens[i], tokens[i + 1]),
                        first_ids[share.block.part],
                    )
                    found[i].append(cut)
                    sizes[i] += of_share[i]
        deals[split] += [
            Deal(language, tuple(found[i]), sizes[i]) for i in range(n) if sizes[i].documents
        ]
    return deals


def _neighbours(shares: list[Share]) -> list[list[Share]]:
    """The shares of a language in runs of DEALT_TOGETHER tokens or little more."""
    found: list[list[Share]] = []
    tokens = DEALT_TOGETHER
    for share in shares:
        if tokens >= DEALT_TOGETHER:
            found.append([])
            tokens = 0
        found[-1].append(share)
        tokens += share.size.tokens
    return found


def _whole(share: Share, first_ids: np.ndarray) -> Cut:
    size = share.block.size
    return Cut(share, (0, size.documents), (0, size.tokens), first_ids)


def survey(
    job: tuple[Place, tuple[Share, ...], np.ndarray, int],
) -> list[tuple[list[int], list[int], list[Size]]]:
    """Where each of `n` equal ranges of hashes begins in the shares' blocks.

    Returns:
      Of each share the documents and the tokens before each range, [n + 1] each, and the size of what each range has.
    """
    folder, shares, moved, n = job
    found = []
    for share in shares:
        columns = read_columns(folder, share.block)
        of = place_of(columns["hash"]) * np.uint64(n) >> np.uint64(32)
        documents = np.searchsorted(of, np.arange(n + 1, dtype=np.uint64))
        tokens = np.concatenate([[0], np.cumsum(columns["length"])])[documents]
        chosen = of_share(folder, columns, share, moved)
        counts = [
            np.bincount(of[chosen].astype(np.int64), weights, n).astype(np.int64).tolist()
            for weights in (None, columns["length"][chosen], columns["text_bytes"][chosen])
        ]
        sizes = [Size(*size) for size in zip(*counts, strict=True)]
        found.append((documents.tolist(), tokens.tolist(), sizes))
    return found


def of_share(
    folder: Place, columns: np.ndarray, share: Share, moved: np.ndarray, first: int = 0
) -> np.ndarray:
    """Which of a block's documents, from one on, belong to a share, bool."""
    kept = read_kept(folder, share.block, (first, first + len(columns)))
    if share.which == "all":
        return kept
    return kept & np.isin(columns["hash"], moved, invert=share.which == "rest")


def read_deal(deal: Deal, folder: Place, moved: np.ndarray) -> Documents:
    """The documents of a deal in one piece, with the ids that they have in the corpus.

    Raises:
      UserError: a part is damaged.
    """
    columns = np.empty(deal.size.documents, COLUMNS)
    tokens = np.empty(deal.size.tokens, np.uint32)
    document = token = 0
    for cut in deal.cuts:
        found = read_documents(folder, cut.share.block, cut.documents, cut.tokens)
        if cut.share.which != "all" or cut.share.block.kept is not None:
            which = of_share(folder, found.columns, cut.share, moved, cut.documents[0])
            found = found.take(np.flatnonzero(which))
        n, t = len(found.columns), len(found.tokens)
        columns[document : document + n] = found.columns
        tokens[token : token + t] = found.tokens
        ids = columns["id"][document : document + n]
        ids[:] = corpus_ids(ids, cut.first_ids)
        document, token = document + n, token + t
    if (document, token) != (deal.size.documents, deal.size.tokens):
        raise OSError(f"{folder}: {document} documents where {deal.size.documents} were written")
    return Documents(columns, tokens)


def plan(
    deals: dict[str, list[Deal]],
    shard_tokens: int,
    parts: Place,
    moved: np.ndarray,
    folder: Place,
) -> list[Job]:
    """One job a shard, which takes neighbouring deals, of one language or of several."""
    jobs = []
    for split, of_split in deals.items():
        shards: list[list[Deal]] = []
        tokens = shard_tokens
        for deal in of_split:
            if not shards or tokens + deal.size.tokens > shard_tokens:
                shards.append([])
                tokens = 0
            shards[-1].append(deal)
            tokens += deal.size.tokens
        jobs += [
            Job(split, tuple(shard), parts, moved, folder, i) for i, shard in enumerate(shards)
        ]
    return jobs
