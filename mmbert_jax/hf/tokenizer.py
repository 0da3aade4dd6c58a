"""The tokeniser's files as `AutoTokenizer.from_pretrained` wants them: tokenizer.json and tokenizer_config.json."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers

from mmbert_jax.data.sentencepiece_model import added_token, as_tokenizer_json, parse_model
from mmbert_jax.data.special_ids import GEMMA, PIECES
from mmbert_jax.data.special_tokens import TOKENIZER_CONFIG, TOKENIZER_JSON, has_gemmas
from mmbert_jax.data.tokenizer import (
    SentencePieceTokenizer,
    Tokenizer,
    vocabulary_size,
)
from mmbert_jax.data.tokenizer_identity import is_recorded
from mmbert_jax.errors import UserError
from mmbert_jax.files import write_json
from mmbert_jax.places import Place, place

# What `AutoTokenizer` reads of a model whose tokeniser is not this project's.
FILES = (TOKENIZER_JSON, TOKENIZER_CONFIG, "special_tokens_map.json")

UNCUT = {"truncation": None, "padding": None}


@dataclasses.dataclass(frozen=True)
class CopiedTokenizer:
    """Another project's tokeniser, with special ids of its own: its files go through as they are."""

    folder: Place
    vocab_size: int
    sha256: str  # of tokenizer.json


def open_copied(folder: str | Place) -> CopiedTokenizer:
    """The tokeniser files of an imported model.

    Raises:
      UserError: there is no tokenizer.json, or it is not one.
    """
    path = place(folder) / TOKENIZER_JSON
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error}); give the model's tokeniser folder"
        ) from None
    try:
        size = vocabulary_size(tokenizers.Tokenizer.from_str(data.decode("utf-8-sig")))
    # `tokenizers` raises bare Exception for a file that it does not understand.
    except Exception as error:
        raise UserError(f"{path}: not a tokenizer.json ({error})") from None
    return CopiedTokenizer(place(folder), size, hashlib.sha256(data).hexdigest())


def copied_tokenizer(meta: Mapping, folder: str | Place | None = None) -> CopiedTokenizer:
    """The tokeniser in `folder`, or in the folder that the checkpoint was imported from.

    Raises:
      UserError: there is none, or it is not the one that was imported.
    """
    recorded = meta.get("tokenizer") or {}
    found_at = folder or recorded.get("path")
    if found_at is None:
        raise UserError(
            "the checkpoint was imported from a folder without a tokeniser; give it with --tokenizer DIR"
        )
    found = open_copied(found_at)
    if not is_recorded(found.folder / TOKENIZER_JSON, found.sha256, recorded):
        raise UserError(
            f"{found.folder / TOKENIZER_JSON} is not the one that was imported with the model"
            f" (sha256 {recorded['sha256'][:12]}...); give that one with --tokenizer DIR"
        )
    return found


def copy_files(tokenizer: CopiedTokenizer, folder: Path) -> None:
    """Copies the tokeniser's files, byte for byte."""
    for name in FILES:
        if (tokenizer.folder / name).exists():
            (folder / name).write_bytes((tokenizer.folder / name).read_bytes())


def to_hf_files(tokenizer: Tokenizer, folder: str | Place, model_max_length: int) -> None:
    """Writes tokenizer.json and tokenizer_config.json into `folder`, which exists.

    Texts become `<bos> A <eos>` and pairs `<bos> A <eos> B <eos>`; `<mask>` is the mask token and takes the space on
    its left with it. A tokenizer.json with other special tokens than Gemma's goes through as it is, with its files,
    unless it puts something else around a text than the model was trained with.

    Args:
      tokenizer: a sentencepiece BPE made with this project's recipe, or any tokenizer.json.
      folder: where to write.
      model_max_length: tokens; `transformers` warns beyond it and cuts there on request.

    Raises:
      UserError: a sentencepiece model whose behaviour the conversion does not reproduce.
    """
    folder = place(folder)
    if not has_gemmas(tokenizer.special):
        _copy_with_template(tokenizer, folder, model_max_length)
        return
    if isinstance(tokenizer, SentencePieceTokenizer):
        description = _from_sentencepiece(tokenizer)
    else:
        description = json.loads(tokenizer.path.read_bytes())
    description |= UNCUT | {"post_processor": _template(tokenizer)}
    for token in description["added_tokens"]:
        if token["id"] == GEMMA.mask:
            token.update(added_token(GEMMA.mask, PIECES[GEMMA.mask]))
    write_json(folder / TOKENIZER_JSON, description)
    write_json(folder / TOKENIZER_CONFIG, _config(tokenizer, description, model_max_length))


def _copy_with_template(tokenizer: Tokenizer, folder: Place, model_max_length: int) -> None:
    for file in tokenizer.files()[1:]:
        (folder / file.name).write_bytes(file.read_bytes())
    data = tokenizer.path.read_bytes()
    description = json.loads(data)
    ids = tokenizers.Tokenizer.from_str(json.dumps(description | UNCUT)).encode("a").ids
    special = tokenizer.special
    if ids == [special.bos, *tokenizer.encode("a"), special.eos]:
        (folder / TOKENIZER_JSON).write_bytes(data)
    else:
        write_json(folder / TOKENIZER_JSON, description | {"post_processor": _template(tokenizer)})
    if not (folder / TOKENIZER_CONFIG).exists():
        config = _config(tokenizer, description, model_max_length)
        write_json(folder / TOKENIZER_CONFIG, config)


def _config(tokenizer: Tokenizer, description: Mapping, model_max_length: int) -> dict[str, Any]:
    names = {f"{role}_token": piece for role, piece in tokenizer.pieces.items()}
    return {
        # The only class that all versions of transformers from 4.48 on read alike.
        "tokenizer_class": "PreTrainedTokenizerFast",
        **names,
        "cls_token": names["bos_token"],
        "sep_token": names["eos_token"],
        "added_tokens_decoder": {
            str(token["id"]): {key: value for key, value in token.items() if key != "id"}
            for token in description["added_tokens"]
        },
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": model_max_length,
        "padding_side": "right",
    }


def _from_sentencepiece(tokenizer: SentencePieceTokenizer) -> dict[str, Any]:
    model = parse_model(tokenizer.serialized_model())
    if what := model.obstacle():
        raise UserError(
            f"{tokenizer.path}: cannot be converted to {TOKENIZER_JSON}: it has {what}; use the model's own "
            f"{TOKENIZER_JSON} or train a tokeniser with tools/train_tokenizer.py"
        )
    return as_tokenizer_json(model)


def _template(tokenizer: Tokenizer) -> dict[str, Any]:
    around = {tokenizer.pieces[role]: getattr(tokenizer.special, role) for role in ("bos", "eos")}
    bos, eos = (
        {"SpecialToken": {"id": tokenizer.pieces[role], "type_id": 0}} for role in ("bos", "eos")
    )
    a, b = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    return {
        "type": "TemplateProcessing",
        "single": [bos, a, eos],
        "pair": [bos, a, eos, b, eos],
        "special_tokens": {
            piece: {"id": piece, "ids": [i], "tokens": [piece]} for piece, i in around.items()
        },
    }
