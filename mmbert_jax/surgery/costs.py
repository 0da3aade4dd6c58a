"""What languages cost by the tokeniser of a model and by the one that it gets."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

TITLES = (
    f"{'language':<22}{'documents':>10}{'unchanged':>11}{'tokens per character':>24}",
    f"{'':<43}{'before':>12}{'after':>12}",
)


@dataclasses.dataclass
class LanguageCost:
    """What a language costs before and after: documents, characters, tokens without <bos> and <eos>.

    `same` counts the documents whose tokens are the ones that they were.
    """

    documents: int = 0
    characters: int = 0
    tokens_before: int = 0
    tokens_after: int = 0
    same: int = 0

    def count(self, text: str, before: Sequence[int], after: Sequence[int], same: bool) -> None:
        """Adds a document, its ids by both tokenisers."""
        self.documents += 1
        self.characters += len(text)
        self.tokens_before += len(before)
        self.tokens_after += len(after)
        self.same += same


def cost_lines(
    costs: Mapping[str, Mapping[str, Any]], order: Sequence[str], mark: str
) -> Iterator[str]:
    """Lines under TITLES, of costs as a report has them: with a flag `mark`, which is named behind a language."""
    for name in order:
        cost = costs[name]
        characters = max(1, cost["characters"])
        yield (
            f"{name + (f' ({mark})' if cost[mark] else ''):<22}{cost['documents']:>10,}"
            f"{cost['same'] / cost['documents']:>11.1%}"
            f"{cost['tokens_before'] / characters:>12.3f}{cost['tokens_after'] / characters:>12.3f}"
        )
