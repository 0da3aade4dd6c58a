"""A Hugging Face folder with a vocabulary of only what some languages need; the embedding is most of a small model."""

import dataclasses
import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from mmbert_jax.data.sources import Document, Fields, Input, parse_chunk, read_chunks
from mmbert_jax.data.special_tokens import TOKENIZER_CONFIG, TOKENIZER_JSON
from mmbert_jax.data.tokenizer import HuggingFaceTokenizer
from mmbert_jax.errors import UserError
from mmbert_jax.files import to_json, write_json, write_text
from mmbert_jax.hf.export import check_output, check_written, new_folder
from mmbert_jax.hf.weights import open_weights, save_weights
from mmbert_jax.places import Place, place, resolved
from mmbert_jax.surgery.vocabulary import check_supported, ids_to_keep, trim_description

REPORT = "trim.json"
# Tensors with a row for each id, in any of the model's classes.
BY_ID = ("tok_embeddings.weight", "decoder.weight", "decoder.bias")
# `tokenizer.model` is not copied: it would still have the whole vocabulary.
COPIED = ("special_tokens_map.json",)
MAX_SHARD_BYTES = 5_000_000_000


@dataclasses.dataclass
class LanguageCost:
    """What a language costs before and after: documents, characters, tokens without <bos> and <eos>.

    `same` counts the documents whose tokens were all kept.
    """

    kept: bool
    documents: int = 0
    characters: int = 0
    tokens_before: int = 0
    tokens_after: int = 0
    same: int = 0


def trim_vocabulary(
    source: Place,
    output: Place,
    inputs: Sequence[Input],
    fields: Fields,
    *,
    languages: Collection[str] | None,
    min_count: int = 1,
    name: str | None = None,
) -> dict:
    """Writes a folder with the tokens that texts need, model and tokeniser alike, and `trim.json` with what it costs.

    Args:
      source: a Hugging Face folder with safetensors and a tokenizer.json.
      output: see `hf.export.check_output`.
      inputs, fields: texts, see `data.sources`. They are read twice.
      languages: those whose tokens are kept; None for all. The others are measured only.
      min_count: tokens that are rarer in those texts are left out and spelled in shorter ones.
      name: what the report calls the model; None: by its path.

    Returns:
      What is written to `trim.json`.

    Raises:
      UserError: a tokeniser of another kind, no text in a language, an output folder that holds something else.
    """
    name = name or str(source)
    check_output(output)
    if resolved(source) == resolved(output):
        raise UserError(f"--output {output} is the model itself; choose another folder")
    tokenizer_path = source / TOKENIZER_JSON
    if not tokenizer_path.is_file():
        raise UserError(f"{source} has no {TOKENIZER_JSON}; only such tokenisers can be trimmed")
    description = json.loads(tokenizer_path.read_bytes())
    check_supported(description, str(tokenizer_path))
    before = HuggingFaceTokenizer(tokenizer_path)

    counts, found = _count(before, inputs, fields, languages)
    for language in languages or ():
        if language not in found:
            raise UserError(
                f"--languages {language}: no text in it; there are {', '.join(sorted(found)[:20])}"
            )
    if not counts:
        raise UserError("there is no text to take the vocabulary from: check --input")
    keep = ids_to_keep(description, [i for i, count in counts.items() if count >= min_count])

    with new_folder(output, phase="trimmed") as folder:
        trimmed = trim_description(description, keep)
        write_json(folder / TOKENIZER_JSON, trimmed)
        _trim_names(source, folder, keep)
        after = HuggingFaceTokenizer(folder / TOKENIZER_JSON)
        costs = _compare(before, after, keep, inputs, fields, languages)
        sizes = _trim_model(source, folder, keep)
        report = {
            "model": name,
            "min_count": min_count,
            "vocabulary": {"before": before.vocab_size, "after": len(keep)},
            **sizes,
            "languages": {
                language: dataclasses.asdict(cost) for language, cost in sorted(costs.items())
            },
            "kept_ids": keep,
        }
        write_text(folder / REPORT, to_json(report) + "\n")  # tens of thousands of ids on one line
        card = f"# {output.name}\n\n`{place(name).name}` with a vocabulary of {len(keep):,} tokens; see `{REPORT}`.\n"
        write_text(folder / "README.md", card)
    return report


def table(report: Mapping, most: int = 40) -> str:
    """Sizes, then the languages' tokens per character: those that were kept, then the others by how much they lose.

    Args:
      most: lines for languages at most.
    """
    lines = [f"{'':<22}{'before':>15}{'after':>15}"]
    for name in ("vocabulary", "parameters", "bytes"):
        size = report[name]
        share = size["after"] / size["before"]
        lines.append(f"{name:<22}{size['before']:>15,}{size['after']:>15,}{share:>8.1%}")
    lines += [
        "",
        f"{'language':<22}{'documents':>10}{'unchanged':>11}{'tokens per character':>24}",
        f"{'':<43}{'before':>12}{'after':>12}",
    ]
    costs = report["languages"]

    def growth(cost):
        return cost["tokens_after"] / max(1, cost["tokens_before"])

    ordered = sorted(costs, key=lambda name: (not costs[name]["kept"], growth(costs[name]), name))
    for name in ordered[:most]:
        cost = costs[name]
        characters = max(1, cost["characters"])
        lines.append(
            f"{name + (' (kept)' if cost['kept'] else ''):<22}{cost['documents']:>10,}"
            f"{cost['same'] / cost['documents']:>11.1%}"
            f"{cost['tokens_before'] / characters:>12.3f}{cost['tokens_after'] / characters:>12.3f}"
        )
    if len(ordered) > most:
        lines.append(f"... and {len(ordered) - most} more in {REPORT}")
    return "\n".join(lines)


def _documents(
    inputs: Sequence[Input], fields: Fields, tokenizer: HuggingFaceTokenizer
) -> Iterator[tuple[Document, list[int]]]:
    for chunk in read_chunks(inputs):
        documents = parse_chunk(chunk, fields)
        ids = tokenizer.encode_batch([document.text for document in documents])
        yield from zip(documents, ids, strict=True)


def _count(
    tokenizer: HuggingFaceTokenizer,
    inputs: Sequence[Input],
    fields: Fields,
    languages: Collection[str] | None,
) -> tuple[Counter[int], set[str]]:
    """How often each id occurs in the texts of the languages, and the languages that there are."""
    counts: Counter[int] = Counter()
    found = set()
    for document, ids in _documents(inputs, fields, tokenizer):
        found.add(document.language)
        if languages is None or document.language in languages:
            counts.update(ids)
    return counts, found


def _compare(
    before: HuggingFaceTokenizer,
    after: HuggingFaceTokenizer,
    keep: Sequence[int],
    inputs: Sequence[Input],
    fields: Fields,
    languages: Collection[str] | None,
) -> dict[str, LanguageCost]:
    """Both tokenisers on every text; where all tokens were kept, they have to agree."""
    new_id = {old: new for new, old in enumerate(keep)}
    costs: dict[str, LanguageCost] = {}
    for document, ids in _documents(inputs, fields, before):
        language = document.language
        if language not in costs:
            costs[language] = LanguageCost(kept=languages is None or language in languages)
        cost = costs[language]
        expected = [new_id.get(i) for i in ids]
        found = after.encode(document.text)
        if None not in expected:
            if found != expected:
                raise RuntimeError(
                    f"{inputs[document.input_index].path}:{document.number}: the trimmed tokeniser splits this text"
                    " otherwise, although all its tokens were kept"
                )
            cost.same += 1
        cost.documents += 1
        cost.characters += len(document.text)
        cost.tokens_before += len(ids)
        cost.tokens_after += len(found)
    return costs


def _trim_names(source: Place, folder: Path, keep: Sequence[int]) -> None:
    """Writes the files beside tokenizer.json that name its special tokens."""
    new_id = {old: new for new, old in enumerate(keep)}
    if (source / TOKENIZER_CONFIG).is_file():
        config = json.loads((source / TOKENIZER_CONFIG).read_bytes())
        if "added_tokens_decoder" in config:
            added = config["added_tokens_decoder"].items()
            config["added_tokens_decoder"] = {str(new_id[int(i)]): token for i, token in added}
        write_json(folder / TOKENIZER_CONFIG, config)
    for name in COPIED:
        if (source / name).is_file():
            (folder / name).write_bytes((source / name).read_bytes())


def _trim_model(source: Place, folder: Path, keep: Sequence[int]) -> dict[str, dict[str, int]]:
    """Writes weights and config.json; returns parameters and bytes before and after."""
    fields = json.loads((source / "config.json").read_bytes())
    shapes, read = open_weights(source)
    vocab_size = fields["vocab_size"]
    if keep[-1] >= vocab_size:
        raise UserError(
            f"{source}: its tokeniser has the id {keep[-1]}, but config.json's vocab_size is {vocab_size}"
        )
    tensors, before = {}, 0
    for name, shape in shapes.items():
        tensor = read(name)
        before += tensor.nbytes
        if name.endswith(BY_ID):
            if shape[0] != vocab_size:
                raise UserError(
                    f"{source}: {name} has {shape[0]} rows, but config.json's vocab_size is {vocab_size}"
                )
            tensor = tensor[np.asarray(keep)]
        tensors[name] = tensor
    save_weights(folder, tensors, MAX_SHARD_BYTES)
    check_written(folder, tensors)

    new_id = {old: new for new, old in enumerate(keep)}
    fields["vocab_size"] = len(keep)
    for name, value in fields.items():
        if name.endswith("_token_id") and value in new_id:
            fields[name] = new_id[value]
    write_json(folder / "config.json", fields)
    return {
        "parameters": {
            "before": sum(int(np.prod(shape)) for shape in shapes.values()),
            "after": sum(tensor.size for tensor in tensors.values()),
        },
        "bytes": {"before": before, "after": sum(tensor.nbytes for tensor in tensors.values())},
    }
