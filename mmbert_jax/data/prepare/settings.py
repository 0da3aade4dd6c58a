"""What decides the content of a corpus."""

from dataclasses import dataclass, field

from mmbert_jax.data.prepare.rules import Rules
from mmbert_jax.data.sources import Fields
from mmbert_jax.places import Place

# A packed row takes 4 bytes a token, so a shard has some 2.2 GB, and 3T tokens have 6,000 shards: few enough to list
# and to check, small enough to be copied, or copied again after an error, in seconds.
SHARD_TOKENS = 1 << 29


@dataclass(frozen=True)
class Settings:
    """What decides the content of a corpus, apart from its inputs."""

    tokenizer: Place
    fields: Fields
    row_lengths: tuple[int, ...]
    held_out: float  # share of documents
    held_out_documents: int = (
        4  # of each language at least, unless that is more than a quarter of what it has
    )
    shard_tokens: int = SHARD_TOKENS
    rules: Rules = field(default_factory=Rules)
    deduplicate: bool = False  # whether of equal texts all but the first are dropped
    tokens_of: Place | None = None  # the tokeniser that made the tokens of MDS, to be made text of
