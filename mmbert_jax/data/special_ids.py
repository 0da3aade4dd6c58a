"""The special tokens of a tokeniser: what packing, masking, inference and the exported model have to agree on.

Ids come with the tokeniser (data/tokenizer.py finds them) and are kept in its record. Gemma's are those of mmBERT and
of this project's own tokenisers, and what a record without any means: until others were read, there were no others.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

ROLES = ("pad", "eos", "bos", "unk", "mask")
# Gemma's, in order of their ids.
PIECES = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")

Ranges = tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class SpecialIds:
    """Ids by what they are for.

    Attributes:
      pad: fills rows; that it is padding is said by segment ids alone.
      eos: ends a document: <eos>, [SEP], </s>.
      bos: begins a document, and every piece of one: <bos>, [CLS], <s>.
      unk: what a tokeniser cannot spell; None where it can spell everything.
      mask: stands for a hidden token.
      others: ids in [start, stop), in order, that texts do not have either: more special tokens, and holes, which have
        no piece. Neither are targets of the masked LM, nor drawn as random tokens.
    """

    pad: int
    eos: int
    bos: int
    unk: int | None
    mask: int
    others: Ranges = ()

    def reserved(self) -> Ranges:
        """All ids that are no ordinary token's, as disjoint ranges [start, stop) in order."""
        own = {self.pad, self.eos, self.bos, self.unk, self.mask} - {None}
        return as_ranges(own, self.others)

    def never_in_texts(self) -> Ranges:
        """The ids that a tokeniser must not give for a text; <unk> and <mask> can stand in one."""
        return as_ranges({self.pad, self.eos, self.bos}, self.others)

    def to_dict(self) -> dict[str, Any]:
        """For a record; `from_record` reads it."""
        ids = {role: getattr(self, role) for role in ROLES}
        return ids | ({"others": [list(r) for r in self.others]} if self.others else {})


GEMMA = SpecialIds(pad=0, eos=1, bos=2, unk=3, mask=4)


def from_record(record: Mapping[str, Any] | None) -> SpecialIds:
    """The special ids in a tokeniser's record, as manifests and checkpoints keep it."""
    ids = (record or {}).get("special_ids")
    if ids is None:
        return GEMMA
    others = tuple((start, stop) for start, stop in ids.get("others", ()))
    return SpecialIds(*(ids[role] for role in ROLES), others)


def as_ranges(ids: set[int], ranges: Ranges = ()) -> Ranges:
    """Ids and ranges [start, stop) together, as few ranges as possible, in order."""
    joined: list[list[int]] = []
    for start, stop in sorted([*((i, i + 1) for i in ids), *ranges]):
        if joined and start <= joined[-1][1]:
            joined[-1][1] = max(joined[-1][1], stop)
        else:
            joined.append([start, stop])
    return tuple((start, stop) for start, stop in joined)
