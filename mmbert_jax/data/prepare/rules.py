"""What becomes of a text before it is hashed and tokenised."""

from dataclasses import dataclass
from typing import Any

from mmbert_jax.data.prepare.normalise import UNICODE_VERSION, normalise


@dataclass(frozen=True)
class Rules:
    """What becomes of texts. Documents that were tokenised before have none: rules for them are an error.

    Attributes:
      normalise: whether they are brought into one spelling, see `normalise`.
    """

    normalise: bool = False

    def described(self) -> dict[str, Any]:
        """What differs from leaving texts alone, and what else decides its result: for manifests and names of parts."""
        found: dict[str, Any] = {}
        if self.normalise:
            found["normalised"] = {"form": "NFC", "unicode": UNICODE_VERSION}
        return found

    def rewrite(self, text: str) -> str:
        return normalise(text) if self.normalise else text
