"""Tokenisers: a sentencepiece `.model` and a Hugging Face `tokenizer.json`, with one interface.

`encode` gives the tokens of a text as it stands: no <bos>, no <eos>, and a text that contains "<eos>" gives the
letters, not the token. The one exception is "<mask>", which stands for the mask token and takes the white space on its
left with it: masking replaces a whole piece, and a piece begins with its space.
"""

import hashlib
import json
from collections.abc import Sequence

import sentencepiece
import tokenizers

from mmbert_jax.data.special_ids import BOS, MASK, PIECES
from mmbert_jax.errors import UserError
from mmbert_jax.files import check_uploaded
from mmbert_jax.places import Place, place

TOKENIZER_JSON = "tokenizer.json"
# Unicode's White_Space, which `tokenizers` strips; Python's own idea of it has four more (U+001C to U+001F).
WHITE_SPACE = "".join(
    c for c in map(chr, range(0x3001)) if c.isspace() and not "\x1c" <= c <= "\x1f"
)
TRAIN_FIRST = "make one with tools/train_tokenizer.py"


class SentencePieceTokenizer:
    """A sentencepiece `.model`. Threads are not used: preparation has a process per core."""

    def __init__(self, path: Place):
        self.path = path
        data = path.read_bytes()
        self.sha256 = hashlib.sha256(data).hexdigest()
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(data)
        except RuntimeError as error:
            raise UserError(f"{path}: not a sentencepiece model ({error})") from None
        self.vocab_size = self._processor.get_piece_size()
        _check_special_ids(
            path, [self._processor.id_to_piece(i) for i in range(min(5, self.vocab_size))]
        )

    def encode(self, text: str) -> list[int]:
        """Token ids of one text, without <bos> and <eos>."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without <bos> and <eos>."""
        ids = self._processor.encode(list(texts), num_threads=1)
        for i, text in enumerate(texts):
            if PIECES[MASK] in text:
                ids[i] = self._encode_around_masks(text)
        return ids

    def _encode_around_masks(self, text: str) -> list[int]:
        *before, last = text.split(PIECES[MASK])
        ids = []
        for part in self._processor.encode(
            [part.rstrip(WHITE_SPACE) for part in before], num_threads=1
        ):
            ids += [*part, MASK]
        return ids + self._processor.encode(last)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids; <pad>, <eos> and <bos> give nothing."""
        return self._processor.decode([int(i) for i in ids])

    def files(self) -> list[Place]:
        """What has to be copied for `load_tokenizer` to give this tokeniser again."""
        return [self.path]

    def serialized_model(self) -> bytes:
        """The model's protocol buffer."""
        return self._processor.serialized_model_proto()


class HuggingFaceTokenizer:
    """A `tokenizer.json`, read by `tokenizers`; TOKENIZERS_PARALLELISM says whether batches use threads."""

    def __init__(self, path: Place):
        self.path = path
        data = path.read_bytes()
        self.sha256 = hashlib.sha256(data).hexdigest()
        try:
            description = json.loads(data)
            for token in description["added_tokens"]:
                if (
                    token["id"] == MASK
                ):  # the only one to be found in a text, though it may be special in the file
                    token.update(special=False, lstrip=True, normalized=False)
            self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(description))
        # `tokenizers` raises bare Exception for a file that it does not understand.
        except Exception as error:
            raise UserError(f"{path}: not a tokenizer.json ({error})") from None
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokenizer.encode_special_tokens = True
        self.vocab_size = vocabulary_size(self._tokenizer)
        _check_special_ids(path, [self._tokenizer.id_to_token(i) for i in range(5)])
        self._check_spelled_tokens()

    def encode(self, text: str) -> list[int]:
        """Token ids of one text, without <bos> and <eos>."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without <bos> and <eos>."""
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def _check_spelled_tokens(self) -> None:
        """A model that has whole words in its vocabulary finds the special ones, too, where a text spells them."""
        for piece in PIECES[: BOS + 1]:
            for text in (piece, f"a {piece} b", f"a{piece}b"):
                if min(self.encode(text), default=MASK) <= BOS:
                    raise UserError(
                        f"{self.path}: the letters {piece} in a text become the special token, so a document could end "
                        "itself; take a BPE tokenizer.json without ignore_merges, a sentencepiece model, or "
                        f"{TRAIN_FIRST}"
                    )

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids; <pad>, <eos>, <bos> and other special tokens give nothing."""
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)

    def files(self) -> list[Place]:
        """What has to be copied for `load_tokenizer` to give this tokeniser again."""
        return [self.path]


Tokenizer = SentencePieceTokenizer | HuggingFaceTokenizer


def load_tokenizer(path: str | Place) -> Tokenizer:
    """The tokeniser at `path`.

    Args:
      path: a sentencepiece `*.model`, a Hugging Face `*.json`, or a folder with one of them, on a disk or in a bucket;
        of a folder that has both, `tokenizer.json` is taken.

    Raises:
      UserError: nothing there, a file that is neither, special tokens that are not Gemma's with ids 0 to 4, or that a
        text can spell.
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


def _check_special_ids(path: Place, found: Sequence[str | None]) -> None:
    if tuple(found) != PIECES:
        raise UserError(
            f"{path}: ids 0 to 4 are {', '.join(map(str, found))}, but training needs {', '.join(PIECES)} there; "
            f"use Gemma's tokeniser or {TRAIN_FIRST}"
        )
