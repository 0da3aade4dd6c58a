"""README.md of an exported model, from what its checkpoint recorded; nothing in it is a stock claim."""

from collections.abc import Mapping, Sequence

from mmbert_jax.hf.config import SPECIAL_IDS, recorded_ids
from mmbert_jax.model.heads import ENCODER, MLM, SEQUENCES, SPANS, TOKENS, HeadConfig

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

FRONT_MATTER = """\
---
library_name: transformers
pipeline_tag: {tag}
tags:
- modernbert
- multilingual
- mmbert_jax
---
"""

USAGE = """\
## Use

```python
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForMaskedLM.from_pretrained("{name}").eval()

inputs = tokenizer("One, two, <mask>.", return_tensors="pt")
with torch.no_grad():
    logits = model(**inputs).logits
mask = inputs.input_ids[0].tolist().index(tokenizer.mask_token_id)
print(tokenizer.decode(logits[0, mask].argmax()))
```

`<mask>` stands for a token together with the space before it. Needs `transformers` 4.48 or newer: config.json carries
both generations of RoPE fields.
"""

USAGE_OF_OTHERS = """\
## Use

```python
import torch
from transformers import AutoTokenizer, {auto_class}

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = {auto_class}.from_pretrained("{name}").eval()

inputs = tokenizer(["One text.", "And another."], padding=True, return_tensors="pt")
with torch.no_grad():
    outputs = model(**inputs)
```

Needs `transformers` {version} or newer: config.json carries both generations of RoPE fields.
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
    name: str, meta: Mapping, fields: Mapping, parameters: int, held_out_groups: Mapping
) -> str:
    """The text of README.md.

    Args:
      name: the model's name, used as the title and in the usage example.
      meta: of the checkpoint (see `train.describe_checkpoint` and `merge.output.merged_meta`).
      fields: of config.json (see `hf.config`).
      parameters: how many the model has.
      held_out_groups: group -> {"loss", "accuracy", "languages"}; may be empty.
    """
    front_matter, usage = frame(
        name, HeadConfig.from_config(meta["config"]), recorded_ids(meta) == SPECIAL_IDS
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


def frame(name: str, head: HeadConfig, own_special_ids: bool) -> tuple[str, str]:
    """What a card begins with, for the hub, and its section on use, for a model with this head.

    Args:
      own_special_ids: whether the tokeniser's special ids are this project's, so that `<mask>` is its mask.
    """
    tag, _, loader = HEADS[head.kind]
    if head.kind == MLM and own_special_ids:
        return FRONT_MATTER.format(tag=tag), USAGE.format(name=name)
    version = "4.53" if head.kind == SPANS else "4.48"
    usage = USAGE_OF_OTHERS.format(name=name, auto_class=loader, version=version)
    return FRONT_MATTER.format(tag=tag), usage


def auto_class(meta: Mapping) -> str:
    """The class of `transformers` that loads the model of a checkpoint."""
    return HEADS[HeadConfig.from_config(meta["config"]).kind][2]


def _introduction(meta: Mapping, fields: Mapping, parameters: int) -> str:
    if meta.get("import"):
        origin = "imported into mmbert_jax"
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
    if "optimizer" not in config:
        return ""
    settings = [
        (
            "Rows in a batch, tokens in a row",
            f"{config['train']['batch_rows']:,} x {config['data']['row_length']:,}",
        ),
        ("Tokens masked", f"{config['mask']['ratio']:.0%}"),
        (
            "Peak learning rate, schedule",
            f"{config['optimizer']['peak_lr']:g}, {config['optimizer']['schedule']}",
        ),
        ("Weight decay", f"{config['optimizer']['weight_decay']:g}"),
        ("Temperature of the language mixture", config["data"]["temperature"]),
        ("Compute dtype", config["dtype"]),
        ("Seed", config["seed"]),
    ]
    phases = [_phase(phase) for phase in (*meta.get("history", ()), meta)]
    return (
        "## Training\n\n"
        + _table(("Phase", "Steps", "Tokens"), phases)
        + "\nSettings of the last phase:\n\n"
        + _table(("Setting", "Value"), settings)
    )


def _phase(phase: Mapping) -> tuple[str, str, str]:
    return phase["phase"], f"{phase['step']:,}", f"{phase['tokens']:,}"


def _parent(merged: Mapping) -> tuple[str, ...]:
    """Of what was merged: its training, its run's name and the beginning of its sums' own sum.

    Merges of before those were recorded have only the first.
    """
    run = merged.get("run") or merged["path"]
    return (*_phase(merged), run.rstrip("/").rpartition("/")[2], merged.get("sums", "")[:12])


def _languages(languages: Sequence[str] | None) -> str:
    if not languages:
        return ""
    codes = ", ".join(languages)
    return f"## Languages\n\n<details><summary>{len(languages)} languages</summary>\n\n{codes}\n\n</details>\n"


def _table(header: Sequence, rows: Sequence[Sequence]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(str(cell) for cell in line) + " |\n" for line in lines)
