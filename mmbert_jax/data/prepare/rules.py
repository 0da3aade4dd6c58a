"""What becomes of a text before it is hashed and tokenised."""

from dataclasses import dataclass
from typing import Any

from mmbert_jax.data.prepare.normalise import UNICODE_VERSION, normalise
from mmbert_jax.data.prepare.repetition import repetition


@dataclass(frozen=True)
class Rules:
    """What becomes of texts. Documents that were tokenised before have none: rules for them are an error.

    Attributes:
      normalise: whether they are brought into one spelling, see `normalise`; the others see them so.
      min_characters, max_characters: of a text that is kept; None: any.
      repetition: whether texts are dropped that repeat themselves, see `repetition`.
    """

    normalise: bool = False
    min_characters: int | None = None
    max_characters: int | None = None
    repetition: bool = False

    def described(self) -> dict[str, Any]:
        """What differs from leaving texts alone, and what else decides its result: for manifests and names of parts."""
        found: dict[str, Any] = {}
        if self.normalise:
            found["normalised"] = {"form": "NFC", "unicode": UNICODE_VERSION}
        filters = {
            "min_characters": self.min_characters,
            "max_characters": self.max_characters,
            "repetition": "gopher" if self.repetition else None,
        }
        filters = {name: value for name, value in filters.items() if value is not None}
        return found | ({"filters": filters} if filters else {})

    def rewrite(self, text: str) -> str:
        return normalise(text) if self.normalise else text

    def reason_to_drop(self, text: str) -> str | None:
        """Why a text that is not empty is not kept."""
        if self.min_characters is not None and len(text) < self.min_characters:
            return f"fewer than {self.min_characters} characters"
        if self.max_characters is not None and len(text) > self.max_characters:
            return f"more than {self.max_characters} characters"
        return repetition(text) if self.repetition else None
