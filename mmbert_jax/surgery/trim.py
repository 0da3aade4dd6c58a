"""A Hugging Face folder with a vocabulary of only what some languages need; the embedding is most of a small model."""

import dataclasses
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence

from mmbert_jax.data.sources import Document, Fields, Input, read_documents
from mmbert_jax.data.special_ids import ROLES
from mmbert_jax.data.special_tokens import TOKENIZER_JSON
from mmbert_jax.data.tokenizer import HuggingFaceTokenizer
from mmbert_jax.errors import UserError
from mmbert_jax.files import read_json, to_json, write_json, write_text
from mmbert_jax.hf.export import check_output, new_folder
from mmbert_jax.places import Place, place, resolved
from mmbert_jax.surgery.costs import TITLES, LanguageCost, cost_lines
from mmbert_jax.surgery.trimmed_files import read_naming_files, write_model, write_names
from mmbert_jax.surgery.vocabulary import check_supported, ids_to_keep, trim_description

REPORT = "trim.json"


def trim_vocabulary(
    source: Place,
    output: Place,
    inputs: Sequence[Input],
    fields: Fields,
    *,
    languages: Collection[str] | None,
    min_count: int = 1,
    multiple_of: int = 64,
    name: str | None = None,
) -> dict:
    """Writes a folder with the tokens that texts need, model and tokeniser alike, and `trim.json` with what it costs.

    Args:
      source: a Hugging Face folder with safetensors and a tokenizer.json.
      output: see `hf.export.check_output`.
      inputs, fields: texts, see `data.sources`. They are read twice.
      languages: those whose tokens are kept; None for all. The others are measured only.
      min_count: tokens that are rarer in those texts are left out and spelled in shorter ones.
      multiple_of: the embedding gets rows that no token has until their number is a multiple of this: matrix units and
        sharding prefer round numbers.
      name: what the report calls the model; None: by its path.

    Returns:
      What is written to `trim.json`.

    Raises:
      UserError: a tokeniser of another kind, no text in a language, a damaged file, an output folder that holds
        something else.
    """
    name = name or str(source)
    check_output(output)
    if resolved(source) == resolved(output):
        raise UserError(f"--output {output} is the model itself; choose another folder")
    tokenizer_path = source / TOKENIZER_JSON
    if not tokenizer_path.is_file():
        raise UserError(f"{source} has no {TOKENIZER_JSON}; only such tokenisers can be trimmed")
    before = HuggingFaceTokenizer(tokenizer_path)
    description, files = read_json(tokenizer_path), read_naming_files(source)
    check_supported(description, str(tokenizer_path))
    special = {getattr(before.special, role) for role in ROLES} - {None}
    named = special | files.ids()
    _keep(
        description, (), named, tokenizer_path
    )  # refuses what has no piece, before the texts are read

    counts, found = _count(before, inputs, fields, languages)
    for language in languages or ():
        if language not in found:
            raise UserError(
                f"--languages {language}: no text in it; there are {', '.join(sorted(found)[:20])}"
            )
    if not counts:
        raise UserError("there is no text to take the vocabulary from: check --input")
    used = [i for i, count in counts.items() if count >= min_count]
    keep = _keep(description, used, named, tokenizer_path)
    rows = -(-len(keep) // multiple_of) * multiple_of

    with new_folder(output, phase="trimmed") as folder:
        write_json(folder / TOKENIZER_JSON, trim_description(description, keep))
        new_id = {old: new for new, old in enumerate(keep)}
        write_names(source, folder, files.renumbered(new_id, rows))
        after = HuggingFaceTokenizer(folder / TOKENIZER_JSON)
        _check_special(before, after, new_id)
        costs = _compare(before, after, new_id, inputs, fields, languages)
        sizes = write_model(source, folder, files, keep, rows)
        report = {
            "model": name,
            "min_count": min_count,
            "vocabulary": {"before": before.vocab_size, "after": len(keep)},
            **sizes,
            "languages": costs,
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
    for name in ("vocabulary", "rows", "parameters", "bytes"):
        size = report[name]
        share = size["after"] / size["before"]
        lines.append(f"{name:<22}{size['before']:>15,}{size['after']:>15,}{share:>8.1%}")
    lines += ["", *TITLES]
    costs = report["languages"]

    def growth(cost):
        return cost["tokens_after"] / max(1, cost["tokens_before"])

    ordered = sorted(costs, key=lambda name: (not costs[name]["kept"], growth(costs[name]), name))
    lines += cost_lines(costs, ordered[:most], "kept")
    if len(ordered) > most:
        lines.append(f"... and {len(ordered) - most} more in {REPORT}")
    return "\n".join(lines)


def _keep(
    description: Mapping, used: Collection[int], named: Collection[int], path: Place
) -> list[int]:
    try:
        return ids_to_keep(description, used, named)
    except UserError as error:  # which does not know the file
        raise UserError(f"{path}: {error}") from None


def _documents(
    inputs: Sequence[Input], fields: Fields, *tokenizers: HuggingFaceTokenizer
) -> Iterator[tuple[Document, *tuple[list[int], ...]]]:
    """Every document, and its ids by each tokeniser."""
    for batch in read_documents(inputs, fields):
        texts = [document.text for document in batch.documents]
        ids = [tokenizer.encode_batch(texts) for tokenizer in tokenizers]
        yield from zip(batch.documents, *ids, strict=True)


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


def _check_special(
    before: HuggingFaceTokenizer, after: HuggingFaceTokenizer, new_id: Mapping[int, int]
) -> None:
    for role in ROLES:
        i, found = getattr(before.special, role), getattr(after.special, role)
        if found != new_id.get(i):
            raise RuntimeError(f"the trimmed tokeniser has {found} for {role}, not {new_id.get(i)}")


def _compare(
    before: HuggingFaceTokenizer,
    after: HuggingFaceTokenizer,
    new_id: Mapping[int, int],
    inputs: Sequence[Input],
    fields: Fields,
    languages: Collection[str] | None,
) -> dict[str, dict]:
    """Both tokenisers on every text; where all tokens were kept, they have to agree."""
    costs: dict[str, LanguageCost] = {}
    for document, ids, found in _documents(inputs, fields, before, after):
        expected = [new_id.get(i) for i in ids]
        same = None not in expected
        if same and found != expected:
            raise RuntimeError(
                f"{inputs[document.input_index].path}:{document.number}: the trimmed tokeniser splits this text"
                " otherwise, although all its tokens were kept"
            )
        cost = costs.setdefault(document.language, LanguageCost())
        cost.count(document.text, ids, found, same)
    return {
        language: {"kept": languages is None or language in languages} | dataclasses.asdict(cost)
        for language, cost in sorted(costs.items())
    }
