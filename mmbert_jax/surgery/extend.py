"""A checkpoint with a larger vocabulary for text in a new script: pieces, rows of the embedding, tokeniser files."""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from mmbert_jax.checkpoint import Meta, write_params
from mmbert_jax.data.sources import Fields, Input
from mmbert_jax.data.special_tokens import TOKENIZER_JSON
from mmbert_jax.data.tokenizer import HuggingFaceTokenizer, Tokenizer
from mmbert_jax.data.tokenizer_identity import describe_tokenizer
from mmbert_jax.data.train_tokenizer import read_all
from mmbert_jax.errors import UserError
from mmbert_jax.files import atomic_folder, read_json, write_json
from mmbert_jax.hf.tokenizer import to_hf_files
from mmbert_jax.places import Place, resolved
from mmbert_jax.run import SUMS
from mmbert_jax.surgery.costs import TITLES, LanguageCost, cost_lines
from mmbert_jax.surgery.derived import derived_meta
from mmbert_jax.surgery.new_pieces import (
    affected_characters,
    drop_until_kept,
    extend_description,
    learn_pieces,
    new_characters,
    old_ids,
)
from mmbert_jax.surgery.trimmed_files import NEVER
from mmbert_jax.surgery.vocabulary import check_bpe

REPORT, TOKENIZER = "extend.json", "tokenizer"
MULTIPLE = 64  # of rows: matrix units and sharding prefer round numbers
_BATCH = 256  # texts that are tokenised at a time
# Parameters with a row for each id: the embedding, which decodes as well, and the decoder's bias.
_EMBEDDING, _BIAS = "embeddings/tokens", "head/bias"


def extend_vocabulary(
    output: Place,
    params: Mapping,
    meta: Meta,
    tokenizer: Tokenizer,
    new_text: Sequence[Input],
    keep_text: Sequence[Input],
    fields: Fields,
    *,
    pieces: int,
    path: str,
) -> dict:
    """Writes a checkpoint with new pieces, `tokenizer/` to match, and `extend.json` with what they save.

    A new piece's row in the embedding, and its entry in the decoder's bias, is the mean of those by which the old
    tokeniser spells it. Rows are filled up to a multiple of 64 with some that no token has.

    Args:
      output: the checkpoint's folder, new.
      params, meta, tokenizer: of the checkpoint that is extended.
      new_text: to learn from.
      keep_text: texts of the other languages, whose ids stay as they are; see `new_pieces`.
      fields: of both. All texts are read three times.
      pieces: new ones, at most. Text without a script that is new to `keep_text` gets none.
      path: of the checkpoint, as its successor is to record it.

    Returns:
      What is written to `extend.json`.

    Raises:
      UserError: a tokeniser of another kind, a language on both sides, no text, an output folder that holds something.
    """
    counts, kept = (_characters(inputs, fields) for inputs in (new_text, keep_text))
    for name, of_languages in (("--input", counts), ("--keep_text", kept)):
        if not any(of_languages.values()):
            raise UserError(f"{name}: there is no text")
    if both := sorted(counts.keys() & kept.keys()):
        raise UserError(
            f"{both[0]!r} is a language of --input and of --keep_text: its texts cannot both change and stay;"
            " name languages with --language_field, or leave one of them out"
        )
    characters = new_characters(sum(counts.values(), Counter()), sum(kept.values(), Counter()))

    with atomic_folder(output, last=SUMS) as folder:
        files = folder / TOKENIZER
        files.mkdir()
        to_hf_files(tokenizer, files, int(meta["config"]["data"]["row_length"]))
        file = files / TOKENIZER_JSON
        description = read_json(file)
        check_bpe(description, str(tokenizer.path), "extended")
        before = HuggingFaceTokenizer(file)
        learnt = learn_pieces(description, characters, _batches(new_text, fields), pieces)
        affected = affected_characters(description, characters, learnt)
        new = drop_until_kept(description, learnt, affected, _batches(keep_text, fields))
        write_json(file, extend_description(description, new))
        after = HuggingFaceTokenizer(file)
        costs = _costs(before, after, new_text, True, fields)
        costs |= _costs(before, after, keep_text, False, fields)

        shape = meta["config"]["model"]
        rows = max(shape["vocab_size"], -(-after.vocab_size // MULTIPLE) * MULTIPLE)
        larger = extend_params(params, before.vocab_size, old_ids(description, new), rows)
        report = {
            "checkpoint": path,
            "pieces": len(new.pieces()),
            "dropped": len(learnt.pieces()) - len(new.pieces()),
            "affected": affected_characters(description, characters, new),
            "vocabulary": {"before": before.vocab_size, "after": after.vocab_size},
            "rows": {"before": shape["vocab_size"], "after": rows},
            "languages": dict(sorted(costs.items())),
        }
        record = describe_tokenizer(after) | {"path": str(resolved(output) / TOKENIZER)}
        write_params(folder, larger, _extended_meta(meta, report, record))
        write_json(folder / REPORT, report)
    return report


def extend_params(params: Mapping, first: int, spelled: Sequence[Sequence[int]], rows: int) -> dict:
    """Parameters with rows for new tokens: nested dicts of float32 NumPy arrays.

    Args:
      params: of a model with any head, or with none.
      first: id of the first new token.
      spelled: of each new token, the old ids whose mean it starts from.
      rows: of the embedding, no fewer than it has.
    """
    flat = dict(flatten_dict(params, sep="/"))
    for name, filling in ((_EMBEDDING, 0.0), (_BIAS, NEVER)):
        if name not in flat:
            continue
        old = np.asarray(flat[name])
        larger = np.full((rows, *old.shape[1:]), filling, old.dtype)
        larger[: len(old)] = old
        for i, ids in enumerate(spelled, first):
            larger[i] = old[list(ids)].mean(axis=0, dtype=np.float64)
        flat[name] = larger
    return unflatten_dict(flat, sep="/")


def table(report: Mapping) -> str:
    """How large it has become, what the new languages gain, and what is promised of the others."""
    vocabulary, rows = report["vocabulary"], report["rows"]
    lines = [
        f"{report['pieces']:,} new pieces: {vocabulary['before']:,} -> {vocabulary['after']:,} entries,"
        f" {rows['before']:,} -> {rows['after']:,} rows",
        *TITLES,
    ]
    costs = report["languages"]
    lines += cost_lines(
        costs, sorted(costs, key=lambda name: (not costs[name]["new"], name)), "new"
    )
    if report["dropped"]:
        lines.append(
            f"{report['dropped']:,} pieces were dropped, which would have changed a text of --keep_text"
        )
    if report["affected"]:
        ranges = ", ".join(
            f"U+{ord(a):04X}" + (f"-{ord(b):04X}" if a != b else "") for a, b in report["affected"]
        )
        lines.append(f"every text without a character of {ranges} keeps its tokens")
    else:
        lines.append("no script that --keep_text does not have: every text keeps its tokens")
    return "\n".join(lines)


def _batches(inputs: Sequence[Input], fields: Fields) -> Iterator[tuple[str, ...]]:
    texts = (document.text for document in read_all(inputs, fields))
    yield from itertools.batched(texts, _BATCH)


def _characters(inputs: Sequence[Input], fields: Fields) -> dict[str, Counter[str]]:
    """Language -> how often it has each character."""
    found: dict[str, Counter[str]] = {}
    for document in read_all(inputs, fields):
        found.setdefault(document.language, Counter()).update(document.text)
    return found


def _costs(
    before: HuggingFaceTokenizer,
    after: HuggingFaceTokenizer,
    inputs: Sequence[Input],
    new: bool,
    fields: Fields,
) -> dict[str, dict]:
    """Both tokenisers on every text; those to keep have to have the same ids."""
    costs: dict[str, LanguageCost] = {}
    for documents in itertools.batched(read_all(inputs, fields), _BATCH):
        texts = [document.text for document in documents]
        ids = (tokenizer.encode_batch(texts) for tokenizer in (before, after))
        for document, old, found in zip(documents, *ids, strict=True):
            if old != found and not new:
                raise RuntimeError(
                    f"{inputs[document.input_index].path}:{document.number}: the extended tokeniser splits this text"
                    " otherwise"
                )
            cost = costs.setdefault(document.language, LanguageCost())
            cost.count(document.text, old, found, old == found)
    return {language: {"new": new} | dataclasses.asdict(cost) for language, cost in costs.items()}


def _extended_meta(meta: Meta, report: Mapping, record: Mapping) -> Meta:
    model = meta["config"]["model"] | {"vocab_size": report["rows"]["after"]}
    told = ("pieces", "affected", "vocabulary", "rows")
    made = {"path": report["checkpoint"]} | {name: report[name] for name in told}
    return derived_meta(meta, "extended", model, {"extend": made}) | {"tokenizer": dict(record)}
