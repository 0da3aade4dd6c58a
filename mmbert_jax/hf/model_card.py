"""README.md of an exported model, from what its checkpoint recorded; nothing in it is a stock claim."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from mmbert_jax.hf.config import SPECIAL_IDS, recorded_ids
from mmbert_jax.model.heads import ENCODER, MLM, SEQUENCES, SPANS, TOKENS, HeadConfig

CARD = "README.md"

# Kind of head -> pipeline_tag, what it is called, the class that loads it.
HEADS = {
    MLM: ("fill-mask", "a masked-language-model head", "AutoModelForMaskedLM"),
    ENCODER: ("feature-extraction", "no head", "AutoModel"),
    SEQUENCES: (
        "text-classification",
        "a head for classes of texts",
        "AutoModelForSequenceClassification",
    ),
    TOKENS: (
        "token-classification",
        "a head for classes of tokens",
        "AutoModelForTokenClassification",
    ),
    SPANS: ("question-answering", "a head for answer spans", "AutoModelForQuestionAnswering"),
}

TAGS = ("modernbert", "multilingual", "mmbert_jax")

LOADED = """\
## Use

```python
import torch
from transformers import {auto_class}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = {auto_class}.from_pretrained("{name}").eval()

{use}
```
{remark}
Needs `transformers` {version} or newer.
"""

USE = {
    MLM: """\
inputs = tokenizer(f"One, two, {tokenizer.mask_token}.", return_tensors="pt")
with torch.no_grad():
    logits = model(**inputs).logits
mask = inputs.input_ids[0].tolist().index(tokenizer.mask_token_id)
print(tokenizer.decode(logits[0, mask].argmax()))""",
    ENCODER: """\
inputs = tokenizer(["One text.", "And another."], padding=True, return_tensors="pt")
with torch.no_grad():
    hidden = model(**inputs).last_hidden_state
weights = inputs.attention_mask.unsqueeze(-1)
print((hidden * weights).sum(1) / weights.sum(1))  # the mean of each text""",
    SEQUENCES: """\
inputs = tokenizer(["One text.", "And another."], padding=True, return_tensors="pt")
with torch.no_grad():
    logits = model(**inputs).logits
print([model.config.id2label[i] for i in logits.argmax(-1).tolist()])""",
    TOKENS: """\
inputs = tokenizer("One text.", return_tensors="pt")
with torch.no_grad():
    logits = model(**inputs).logits
labels = [model.config.id2label[i] for i in logits[0].argmax(-1).tolist()]
print(list(zip(tokenizer.convert_ids_to_tokens(inputs.input_ids[0]), labels)))""",
    SPANS: """\
inputs = tokenizer("What is asked?", "The text that has the answer.", return_tensors="pt")
with torch.no_grad():
    outputs = model(**inputs)
start, end = outputs.start_logits[0].argmax(), outputs.end_logits[0].argmax()
print(tokenizer.decode(inputs.input_ids[0, start : end + 1]))""",
}

OWN_MASK = """
`<mask>` stands for a token together with the space before it.
"""

SENTENCES = """\
## Use

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{name}")
vectors = model.encode(["One text.", "And another."])
print(model.similarity(vectors, vectors))
```
"""

MODEL_FIELDS = (
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "intermediate_size",
    "vocab_size",
    "local_attention",
    "global_attn_every_n_layers",
    "global_rope_theta",
    "local_rope_theta",
)


def model_card(
    name: str,
    meta: Mapping,
    fields: Mapping,
    parameters: int,
    held_out_groups: Mapping,
    sentences: bool = False,
) -> str:
    """The text of README.md.

    Args:
      name: the model's name, used as the title and in the usage example.
      meta: of the checkpoint (see `train.describe_checkpoint` and `merge.output.merged_meta`).
      fields: of config.json (see `hf.config`).
      parameters: how many the model has.
      held_out_groups: group -> {"loss", "accuracy", "languages"}; may be empty.
      sentences: whether modules of Sentence Transformers lie beside it.
    """
    imported = meta.get("imported") or {}
    front_matter, usage = frame(
        name,
        HeadConfig.from_config(meta["config"]),
        recorded_ids(meta) == SPECIAL_IDS,
        sentences=sentences,
        licence=imported.get("licence", {}),
    )
    parts = [
        front_matter,
        f"# {name}\n",
        _introduction(meta, fields, parameters),
        _held_out(held_out_groups),
        usage,
        _training(meta),
        _languages(meta.get("languages")),
        "## Model\n\n"
        + _table(("Field", "Value"), [(f"`{key}`", fields[key]) for key in MODEL_FIELDS]),
    ]
    return "\n".join(part for part in parts if part)


def frame(
    name: str,
    head: HeadConfig,
    own_special_ids: bool,
    *,
    sentences: bool = False,
    licence: Mapping[str, Any] | None = None,
) -> tuple[str, str]:
    """What a card begins with, for the hub, and its section on use, for a model with this head.

    Args:
      own_special_ids: whether the tokeniser's special ids are this project's, so that `<mask>` is its mask.
      sentences: whether modules of Sentence Transformers lie beside it.
      licence: see `licence_of`; a hub's card need not have one, and nobody else can say which it is.
    """
    tag, _, loader = HEADS[head.kind]
    data = {"library_name": "transformers", **(licence or {}), "pipeline_tag": tag}
    tags = list(TAGS)
    if sentences:
        data |= {"library_name": "sentence-transformers", "pipeline_tag": "sentence-similarity"}
        tags += ["sentence-transformers", "feature-extraction"]
    front_matter = yaml.safe_dump(data | {"tags": tags}, sort_keys=False, allow_unicode=True)
    usage = SENTENCES.format(name=name)
    if not sentences:
        usage = LOADED.format(
            name=name,
            auto_class=loader,
            use=USE[head.kind],
            remark=OWN_MASK if head.kind == MLM and own_special_ids else "",
            version="4.53" if head.kind == SPANS else "4.48",
        )
    return f"---\n{front_matter}---\n", usage


def licence_of(card: str) -> dict[str, Any]:
    """What the front matter of a model's card says of its licence, by the hub's names; {} if it says nothing.

    Args:
      card: the text of its README.md.
    """
    found = re.match(r"\ufeff?---\s*\n(.*?)\n---\s*(\n|$)", card, re.DOTALL)
    try:
        data = yaml.safe_load(found.group(1)) if found else None
    except yaml.YAMLError:  # then the hub shows none, either
        data = None
    if not isinstance(data, dict):
        return {}
    fields = ("license", "license_name", "license_link")
    return {name: data[name] for name in fields if isinstance(data.get(name), str)}


def auto_class(meta: Mapping) -> str:
    """The class of `transformers` that loads the model of a checkpoint."""
    return HEADS[HeadConfig.from_config(meta["config"]).kind][2]


def _introduction(meta: Mapping, fields: Mapping, parameters: int) -> str:
    if meta["phase"] == "shrunk":
        origin = f"sampled from `{_last(meta['shrink']['path'])}`, a larger one, by mmbert_jax"
    elif meta["phase"] == "imported":
        origin = f"imported into mmbert_jax from `{_last(meta['import']['model'])}`"
    elif meta.get("merge"):
        origin = f"merged from {len(meta['merge']['models'])} checkpoints of mmbert_jax"
    else:
        origin = f"trained with mmbert_jax, phase `{meta['phase']}`"
    head = HEADS[HeadConfig.from_config(meta["config"]).kind][1]
    outside = parameters - fields["vocab_size"] * fields["hidden_size"]
    return (
        f"A ModernBERT encoder with {head}, {origin}. It has {parameters:,} parameters,"
        f" {outside:,} of them outside the token embedding, and reads up to {fields['max_position_embeddings']:,}"
        " tokens.\n"
    )


def _held_out(groups: Mapping) -> str:
    if not groups:
        return ""
    rows = [
        (name, g["languages"], f"{g['loss']:.3f}", f"{g['accuracy']:.3f}")
        for name, g in groups.items()
    ]
    return (
        "## Held-out text\n\nLoss (nats) and accuracy at masked tokens of documents that training never saw, mean over"
        " the languages of each group.\n\n"
        + _table(("Group", "Languages", "Loss", "Accuracy"), rows)
    )


def _training(meta: Mapping) -> str:
    """The phases that led here, then the last one's settings or the recipe of the merge."""
    config = meta["config"]
    if merge := meta.get("merge"):
        settings = [
            f"{key} {value}" if isinstance(value, int | float) else f"{key} by tensor or model"
            for key, value in merge.items()
            if key not in ("by", "method", "weights", "base", "models")
        ]
        told = f" ({', '.join(settings)})" if settings else ""
        rows = [("base", *_parent(merge["base"]))] if "base" in merge else []
        for weight, model in zip(merge["weights"], merge["models"], strict=True):
            number = round(weight, 4) if isinstance(weight, int | float) else "by tensor"
            rows.append((f"weight {number}", *_parent(model)))
        return (
            f"## Training\n\nMerged by {merge['method'].upper().replace('_', ' ')}{told} from:\n\n"
            + _table(("", "Phase", "Steps", "Tokens", "Run", "SHA256SUMS"), rows)
        )
    if shrunk := meta["phase"] == "shrunk" and meta["shrink"]:
        return _shrunk(shrunk, config["model"], meta.get("history", ()))
    if meta["phase"] == "imported":
        sums = (meta.get("import") or {}).get("sums", {})
        rows = [(f"`{file}`", digest[:12]) for file, digest in sums.items()]
        return "## Weights\n\n" + _table(("Imported from", "SHA-256"), rows) if rows else ""
    if "optimizer" not in config:
        return ""
    settings = [
        (
            "Rows in a batch, tokens in a row",
            f"{config['train']['batch_rows']:,} x {config['data']['row_length']:,}",
        ),
        ("Tokens masked", f"{config['mask']['ratio']:.0%}"),
        ("Optimiser", f"`{config['optimizer'].get('name', 'stable_adamw')}`"),
        (
            "Peak learning rate, schedule",
            f"{config['optimizer']['peak_lr']:g}, {config['optimizer']['schedule']}",
        ),
        ("Weight decay", f"{config['optimizer']['weight_decay']:g}"),
        ("Temperature of the language mixture", config["data"]["temperature"]),
        ("Compute dtype", config["dtype"]),
        ("Seed", config["seed"]),
    ]
    return (
        "## Training\n\n"
        + _phases((*meta.get("history", ()), meta))
        + "\nSettings of the last phase:\n\n"
        + _table(("Setting", "Value"), settings)
    )


def _shrunk(shrink: Mapping, model: Mapping, history: Sequence[Mapping]) -> str:
    """What became of the larger model, and its training: the smaller one has had none of its own."""
    larger = shrink["model"]
    rows = [
        (f"`{field}`", f"{larger[field]:,}", f"{model[field]:,}")
        for field in ("num_layers", "hidden_size", "num_heads", "intermediate_size", "vocab_size")
    ]
    return (
        f"## Training\n\nNone of its own: it is sampled from `{_last(shrink['path'])}`, layers"
        f" {' '.join(map(str, shrink['layers']))}, to start a training from.\n\n"
        + _table(("", "Larger model", "This one"), rows)
        + "\nThe larger model's training:\n\n"
        + _phases(history)
    )


def _phases(phases: Sequence[Mapping]) -> str:
    rows = [
        (*_phase(phase), _last(phase.get("run", "")), phase.get("sums", "")[:12])
        for phase in phases
    ]
    return _table(("Phase", "Steps", "Tokens", "Run", "SHA256SUMS"), rows)


def _phase(phase: Mapping) -> tuple[str, str, str]:
    return phase["phase"], f"{phase['step']:,}", f"{phase['tokens']:,}"


def _parent(merged: Mapping) -> tuple[str, ...]:
    """Of what was merged: its training, its run's name and the beginning of its sums' own sum.

    Merges of before those were recorded have only the first.
    """
    run = merged.get("run") or merged["path"]
    return (*_phase(merged), _last(run), merged.get("sums", "")[:12])


def _last(path: str) -> str:
    """A folder's own name: where it lay is nobody else's business."""
    return path.rstrip("/").rpartition("/")[2]


def _languages(languages: Sequence[str] | None) -> str:
    if not languages:
        return ""
    codes = ", ".join(languages)
    return f"## Languages\n\n<details><summary>{len(languages)} languages</summary>\n\n{codes}\n\n</details>\n"


def _table(header: Sequence, rows: Sequence[Sequence]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(str(cell) for cell in line) + " |\n" for line in lines)
