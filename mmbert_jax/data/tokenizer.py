"""Tokenisers: a sentencepiece `.model` and a Hugging Face `tokenizer.json`, with one interface.

`encode` gives the tokens of a text as it stands: nothing in front of it, nothing behind it, and a text that contains
"<eos>" gives the letters, not the token. The one exception is the mask token, "<mask>" or "[MASK]": masking replaces a
whole piece, and a piece begins with its space, so with Gemma's special tokens it takes the white space on its left with
it; with others it does as the file says.

What a tokeniser does with the text of its special tokens is tried once, when it is loaded.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence

import sentencepiece
import tokenizers

from mmbert_jax.data.sentencepiece_model import SPACE
from mmbert_jax.data.special_ids import GEMMA, PIECES, ROLES, SpecialIds, as_ranges
from mmbert_jax.data.special_tokens import (
    TOKENIZER_JSON,
    Description,
    find_special,
    has_gemmas,
    naming_files,
    pieces_of,
)
from mmbert_jax.errors import UserError
from mmbert_jax.files import check_uploaded
from mmbert_jax.places import Place, place

# Unicode's White_Space, which `tokenizers` strips; Python's own idea of it has four more (U+001C to U+001F).
WHITE_SPACE = "".join(
    c for c in map(chr, range(0x3001)) if c.isspace() and not "\x1c" <= c <= "\x1f"
)
TRAIN_FIRST = "make one with tools/train_tokenizer.py"


class SentencePieceTokenizer:
    """A sentencepiece `.model`. Threads are not used: preparation has a process per core.

    Attributes:
      special: Gemma's five, and control symbols.
      pieces: role -> piece of the special tokens.
    """

    def __init__(self, path: Place):
        self.path = path
        data = path.read_bytes()
        self.sha256 = hashlib.sha256(data).hexdigest()
        self._processor = processor = sentencepiece.SentencePieceProcessor()
        try:
            processor.LoadFromSerializedProto(data)
        except RuntimeError as error:
            raise UserError(f"{path}: not a sentencepiece model ({error})") from None
        self.vocab_size = processor.get_piece_size()
        found = [processor.id_to_piece(i) for i in range(min(len(PIECES), self.vocab_size))]
        if tuple(found) != PIECES:
            raise UserError(
                f"{path}: ids 0 to 4 are {', '.join(found)}, but a sentencepiece model needs {', '.join(PIECES)} there;"
                f" take the model's {TOKENIZER_JSON}, use Gemma's tokeniser or {TRAIN_FIRST}"
            )
        controls = {i for i in range(len(PIECES), self.vocab_size) if processor.is_control(i)}
        self.special = SpecialIds(*(getattr(GEMMA, role) for role in ROLES), as_ranges(controls))
        self.pieces = dict(zip(ROLES, PIECES, strict=True))
        _probe(self.encode_batch, self.special, self.pieces, PIECES[:4], path)

    def encode(self, text: str) -> list[int]:
        """Token ids of one text, without <bos> and <eos>."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without <bos> and <eos>."""
        ids = self._processor.encode(list(texts), num_threads=1)
        for i, text in enumerate(texts):
            if self.pieces["mask"] in text:
                ids[i] = self._encode_around_masks(text)
        return ids

    def _encode_around_masks(self, text: str) -> list[int]:
        # As one text: alone, the part behind a mask would get a space of its own in front from some models.
        *before, last = text.split(self.pieces["mask"])
        stripped = [*(part.rstrip(WHITE_SPACE) for part in before), last]
        ids = self._processor.encode(self.pieces["mask"].join(stripped))
        # Such a space in front of a mask at the beginning is the mask's, like all white space on its left.
        if not stripped[0] and self._processor.id_to_piece(ids[0]) == SPACE:
            return ids[1:]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids; <pad>, <eos> and <bos> give nothing."""
        return self._processor.decode([int(i) for i in ids])

    def token_text(self, i: int) -> str:
        """What one token adds to a text, its leading space included."""
        return _text_in_context(self, i)

    def files(self) -> list[Place]:
        """What has to be copied for `load_tokenizer` to give this tokeniser again."""
        return [self.path]

    def serialized_model(self) -> bytes:
        """The model's protocol buffer."""
        return self._processor.serialized_model_proto()


class HuggingFaceTokenizer:
    """A `tokenizer.json`, read by `tokenizers`; TOKENIZERS_PARALLELISM says whether batches use threads.

    Attributes:
      special: see SpecialIds.
      pieces: role -> piece of the special tokens.
    """

    def __init__(self, path: Place):
        self.path = path
        data = path.read_bytes()
        self.sha256 = hashlib.sha256(data).hexdigest()
        try:
            description = json.loads(data)
            self.special, self.pieces = find_special(path, description)
            reserved = {i for start, stop in self.special.reserved() for i in range(start, stop)}
            names = {piece: i for piece, i in pieces_of(description).items() if i in reserved}
            self._hidden = _prepare(description, self.special, names, self.sha256)
            self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(description))
        except UserError:
            raise
        # `tokenizers` raises bare Exception for a file that it does not understand.
        except Exception as error:
            raise UserError(f"{path}: not a tokenizer.json ({error})") from None
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokenizer.encode_special_tokens = True
        self.vocab_size = vocabulary_size(self._tokenizer)
        for token in description["added_tokens"]:
            found = self._tokenizer.token_to_id(token["content"])
            if found != token["id"]:
                raise UserError(
                    f"{path}: the added token {token['content']} has the id {token['id']} there, but `tokenizers` gives"
                    f" it {found}: added tokens have to be numbered on from the model's vocabulary, which has no hole"
                )
        spelled = [piece for piece, i in names.items() if i != self.special.mask]
        _probe(self.encode_batch, self.special, self.pieces, spelled, path)

    def encode(self, text: str) -> list[int]:
        """Token ids of one text, without special tokens around it."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without special tokens around it."""
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids; special tokens give nothing, but for the mask."""
        shown = [int(i) for i in ids if int(i) not in self._hidden]
        return self._tokenizer.decode(shown, skip_special_tokens=True)

    def token_text(self, i: int) -> str:
        """What one token adds to a text, its leading space included."""
        return _text_in_context(self, i)

    def files(self) -> list[Place]:
        """What has to be copied for `load_tokenizer` to give this tokeniser again."""
        return [self.path, *([] if has_gemmas(self.special) else naming_files(self.path))]


Tokenizer = SentencePieceTokenizer | HuggingFaceTokenizer


def load_tokenizer(path: str | Place) -> Tokenizer:
    """The tokeniser at `path`.

    Args:
      path: a sentencepiece `*.model`, a Hugging Face `*.json`, or a folder with one of them, on a disk or in a bucket;
        of a folder that has both, `tokenizer.json` is taken.

    Raises:
      UserError: nothing there, a file that is neither, special tokens that are not known or that a text can spell, or
        a mask that is not found in texts.
    """
    path = place(path)
    if path.is_dir():
        check_uploaded(path)
        models = sorted(path.glob("*.model"))
        if (path / TOKENIZER_JSON).is_file():
            path = path / TOKENIZER_JSON
        elif len(models) == 1:
            path = models[0]
        elif models:
            names = ", ".join(model.name for model in models)
            raise UserError(f"{path}: several sentencepiece models ({names}); name one of them")
        else:
            raise UserError(f"{path}: neither {TOKENIZER_JSON} nor a *.model here; {TRAIN_FIRST}")
    if not path.is_file():
        raise UserError(f"{path}: no such tokeniser; {TRAIN_FIRST}")
    if path.suffix == ".model":
        return SentencePieceTokenizer(path)
    if path.suffix == ".json":
        return HuggingFaceTokenizer(path)
    raise UserError(f"{path}: not a tokeniser: expected a *.model or a {TOKENIZER_JSON}")


def vocabulary_size(tokenizer: tokenizers.Tokenizer) -> int:
    """The rows that an embedding needs: ids may have holes, so the number of pieces can be less."""
    return 1 + max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)


def _prepare(
    description: Description, special: SpecialIds, names: dict[str, int], sha256: str
) -> frozenset[int]:
    """Changes a tokenizer.json so that texts have its mask and none of its other special tokens (`names`: their ids).

    Returns:
      The ids that `decode` has to leave out itself.
    """
    for token in description["added_tokens"]:
        if token["id"] == special.mask:  # found in a text, though it may be special in the file
            token["special"] = False
            if has_gemmas(special):
                token.update(lstrip=True, normalized=False)
        elif (
            token["content"] in names
        ):  # not found, though only a file beside it may call it special
            token["special"] = True
    model = description["model"]
    if model["type"] != "Unigram":
        return frozenset()
    # A Unigram has its special tokens in the vocabulary and takes them where a text spells them. By another name they
    # keep their ids and all scores stay; the name is one that no text has.
    hidden = frozenset(i for i in names.values() if i != special.mask and i < len(model["vocab"]))
    for i in hidden:
        model["vocab"][i][0] = f"{sha256} {i}"
    description["added_tokens"] = [t for t in description["added_tokens"] if t["id"] not in hidden]
    return hidden


def _probe(
    encode_batch: Callable[[Sequence[str]], list[list[int]]],
    special: SpecialIds,
    pieces: dict[str, str],
    spelled: Iterable[str],
    path: Place,
) -> None:
    """Tries what becomes of special tokens that a text spells: letters, but for the mask, which is found.

    Raises:
      UserError: a document could end itself (models that have whole words in their vocabulary may find the special ones
        as well), or the mask is not found.
    """
    never = special.never_in_texts()

    def is_never(i: int) -> bool:
        return any(start <= i < stop for start, stop in never)

    texts = {t: piece for piece in spelled for t in (piece, f"a {piece} b", f"a{piece}b")}
    for piece, ids in zip(texts.values(), encode_batch(list(texts)), strict=True):
        if any(map(is_never, ids)):
            raise UserError(
                f"{path}: the letters {piece} in a text become the special token, so a document could end itself; take"
                f" a BPE tokenizer.json without ignore_merges, a sentencepiece model, or {TRAIN_FIRST}"
            )
    mask = pieces["mask"]
    masked = [mask, f"a {mask} b", f"a{mask}b", f"a {mask}. {mask}"]
    for text, ids in zip(masked, encode_batch(masked), strict=True):
        if ids.count(special.mask) != text.count(mask) or any(map(is_never, ids)):
            raise UserError(
                f"{path}: {mask} is not found in the text {text!r}; it has to be one of the added tokens, without"
                " single_word (a user-defined symbol of a sentencepiece model)"
            )


def _text_in_context(tokenizer: "Tokenizer", i: int) -> str:
    """The text of a token behind another: at the head of a text some decoders take its space away."""
    first = tokenizer.encode("a")[-1:]
    before = tokenizer.decode(first)
    both = tokenizer.decode([*first, i])
    return (
        both.removeprefix(before) if before and both.startswith(before) else tokenizer.decode([i])
    )
