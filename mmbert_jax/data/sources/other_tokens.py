"""Rows of another tokeniser's tokens, back to the texts of their documents.

As princeton-nlp/ProLong publishes long documents: MDS, a row of `input_ids` of Llama 3's tokeniser and, where several
documents lie in it, `indices` [n, 2], the first token of each and the one behind its last (training/dataset.py, there).
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import tokenizers

from mmbert_jax.data.sources.faults import RecordError
from mmbert_jax.data.special_tokens import TOKENIZER_JSON, named_ends, pieces_of
from mmbert_jax.errors import UserError
from mmbert_jax.files import check_uploaded
from mmbert_jax.places import Place

INDICES = "indices"
# What decoding gives for bytes that are no UTF-8.
_REPLACEMENT = "\ufffd"
# In NFC, which some tokenisers make of every text.
_PROBE = 'Two  words, "naïve" 東京\n\n\tdon\'t . A <b> 🙂 İ'


@dataclass(frozen=True)
class OtherTokenizer:
    """The tokeniser that rows were made by.

    Attributes:
      tokenizer: as `tokenizers` reads its file.
      known: which ids it has, bool [vocabulary].
      special: which of them are special, and no text; bool [vocabulary].
      ends: those that begin or end a document.
      sha256: of its file.
    """

    tokenizer: tokenizers.Tokenizer
    known: np.ndarray
    special: np.ndarray
    ends: tuple[int, ...]
    sha256: str

    def described(self) -> dict[str, Any]:
        """All that decides what text rows give."""
        return {"sha256": self.sha256, "ends": list(self.ends)}


def load_other(path: Place) -> OtherTokenizer:
    """The tokeniser of a tokenizer.json, or of a folder with one.

    A document begins or ends at what the tokeniser puts around a text, and at what the files beside it call BOS and
    EOS.

    Raises:
      UserError: nothing there, not a tokenizer.json, or one from whose tokens the text cannot be had again.
    """
    if path.is_dir():
        check_uploaded(path)
        path = path / TOKENIZER_JSON
    if path.suffix != ".json" or not path.is_file():
        raise UserError(
            f"{path}: --tokens_of wants the {TOKENIZER_JSON} of the tokeniser that made the tokens, or its folder"
        )
    data = path.read_bytes()
    try:
        description = json.loads(data)
        pieces = pieces_of(description)
        tokenizer = tokenizers.Tokenizer.from_str(data.decode())
    # `tokenizers` raises bare Exception for a file that it does not understand.
    except Exception as error:
        raise UserError(f"{path}: not a {TOKENIZER_JSON} ({error})") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    around = tokenizer.encode("a")
    ends = {i for i, end in zip(around.ids, around.special_tokens_mask, strict=True) if end}
    ends |= {pieces[piece] for piece in named_ends(path, pieces)}
    tokenizer.encode_special_tokens = True
    again = tokenizer.decode(tokenizer.encode(_PROBE, add_special_tokens=False).ids)
    if again != _PROBE:
        raise UserError(
            f"{path}: its tokens do not give the text again: {_PROBE!r} becomes {again!r}; take the texts themselves"
        )
    known = np.zeros(1 + max(pieces.values()), bool)
    known[list(pieces.values())] = True
    special = np.zeros_like(known)
    special[list(ends)] = True
    added = description.get("added_tokens") or ()
    special[[token["id"] for token in added if token.get("special")]] = True
    sha256 = hashlib.sha256(data).hexdigest()
    return OtherTokenizer(tokenizer, known, special, tuple(sorted(ends)), sha256)


def texts_of_row(
    tokens: np.ndarray, indices: Any, other: OtherTokenizer, place: object
) -> list[str]:
    """The texts of a row's documents, in order; special tokens are not in them.

    Documents are what `indices` say, and end at BOS and EOS besides. What no index covers is left out. A row ends where
    it is full, be it in the midst of a character: what is left of that is left out as well.

    Args:
      tokens: uint32 [n].
      indices: int [documents, 2], or None: the row is one.
      place: of the row, for messages.

    Raises:
      RecordError: an id that the tokeniser does not have; indices that are none of this row's, or overlap.
      UserError: no indices, and a tokeniser of which neither BOS nor EOS is known.
    """
    if tokens.max(initial=0) >= len(other.known) or not other.known[tokens].all():
        _refuse("an id that --tokens_of does not have", "name the right tokeniser", place)
    if indices is None and not other.ends:
        raise UserError(
            f"{place}: there is no column {INDICES!r}, and neither BOS nor EOS of --tokens_of is known, so documents"
            " cannot be told apart; name them in a tokenizer_config.json beside it"
        )
    ranges = [(0, len(tokens))] if indices is None else _ranges(indices, len(tokens), place)
    texts = []
    for start, stop in ranges:
        document = tokens[start:stop]
        at_ends = np.flatnonzero(np.isin(document, other.ends))
        for part in np.split(document, at_ends):
            ids = part[~other.special[part]]
            if len(ids):
                texts.append(_decode(ids.tolist(), other.tokenizer))
    return texts


def _ranges(indices: Any, length: int, place: object) -> list[tuple[int, int]]:
    array = np.asarray(indices)
    if array.size == 0:
        return []
    if array.ndim != 2 or array.shape[1] != 2 or array.dtype.kind not in "iu":
        _refuse(f"{INDICES!r} that are no pairs of positions", "remove the row", place)
    flat = array.astype(np.int64).ravel()
    if flat[0] < 0 or flat[-1] > length or (flat[1:] < flat[:-1]).any():
        what = f"{INDICES!r} that overlap, or lie outside of its tokens"
        _refuse(what, "remove the row", place)
    return [(start, stop) for start, stop in flat.reshape(-1, 2).tolist()]


def _decode(ids: Sequence[int], tokenizer: tokenizers.Tokenizer) -> str:
    text = tokenizer.decode(ids)
    if not (text.startswith(_REPLACEMENT) or text.endswith(_REPLACEMENT)):
        return text
    # The text may itself have it there.
    if tokenizer.encode(text, add_special_tokens=False).ids == ids:
        return text
    return text.strip(_REPLACEMENT)


def _refuse(what: str, what_to_do: str, place: object) -> NoReturn:
    raise RecordError(what, place, f"has {what}; {what_to_do}")
