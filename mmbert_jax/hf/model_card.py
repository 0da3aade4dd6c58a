"""README.md of an exported model, from what its checkpoint and its run recorded; nothing in it is a stock claim."""

import json
from collections.abc import Mapping
from pathlib import Path

FRONT_MATTER = """\
---
library_name: transformers
pipeline_tag: fill-mask
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

inputs = tokenizer("One, two,<mask>.", return_tensors="pt")
with torch.no_grad():
    logits = model(**inputs).logits
mask = inputs.input_ids[0].tolist().index(tokenizer.mask_token_id)
print(tokenizer.decode(logits[0, mask].argmax()))
```

`<mask>` stands for a token together with the space before it, so no space is written in front of it. Needs
`transformers` 4.48 or newer; config.json carries both generations of RoPE fields.
"""


def model_card(
    name: str, meta: Mapping, fields: Mapping, parameters: int, held_out: Mapping | None
) -> str:
    """The text of README.md.

    Args:
      name: the model's name, used as the title and in the usage example.
      meta: of the checkpoint (see `mmbert_jax.checkpoint`).
      fields: of config.json (see `hf.config`).
      parameters: how many the model has.
      held_out: the run's last evaluation up to this checkpoint (a line of metrics.jsonl), if there is one.
    """
    parts = [
        FRONT_MATTER,
        f"# {name}\n",
        _introduction(meta, fields, parameters),
        _training(meta),
        _model(fields),
    ]
    if held_out:
        parts.append(_held_out(held_out))
    parts.append(USAGE.format(name=name))
    return "\n".join(part for part in parts if part)


def last_evaluation(run: Path, step: int) -> dict | None:
    """The newest line with held-out losses up to `step` in a run folder's metrics.jsonl.

    None for a run that was never evaluated, and for merged and imported models, which have no metrics.
    """
    found = run / "metrics.jsonl"
    if not found.exists():
        return None
    newest = None
    with found.open() as lines:
        for line in lines:
            try:
                record = json.loads(line)
            except ValueError:
                continue  # a line cut off when a run was killed
            if "held_out" in record and record["step"] <= step:
                newest = record
    return newest


def _introduction(meta: Mapping, fields: Mapping, parameters: int) -> str:
    embedding = fields["vocab_size"] * fields["hidden_size"]
    if meta.get("import"):
        origin = f"was imported from `{meta['import']['model']}`"
    elif meta.get("merge"):
        origin = f"was merged from {len(meta['merge']['models'])} checkpoints of mmbert_jax"
    else:
        origin = "was trained with mmbert_jax"
    return (
        f"A ModernBERT encoder with a masked-language-model head that {origin}. It has {parameters:,} parameters,"
        f" {parameters - embedding:,} of them outside the token embedding, and reads up to"
        f" {fields['max_position_embeddings']:,} tokens.\n"
    )


def _training(meta: Mapping) -> str:
    config = meta.get("config", {})
    rows = [("Phase", meta.get("phase")), ("Step", _number(meta.get("step")))]
    rows += [("Tokens trained on in this phase", _number(meta.get("tokens")))]
    rows += [("Languages", _number(meta.get("languages")))]
    rows += [("Started from", config.get("init_from") or None)]
    rows += [("Row length", _number(config.get("data", {}).get("row_length")))]
    rows += [("Share of tokens masked", config.get("mask", {}).get("ratio"))]
    optimizer = config.get("optimizer", {})
    rows += [
        ("Peak learning rate", optimizer.get("peak_lr")),
        ("Schedule", optimizer.get("schedule")),
    ]
    rows += [("Seed", config.get("seed"))]
    if merge := meta.get("merge"):
        rows = [
            ("Phase", meta.get("phase")),
            (
                "Merged by",
                f"{merge['method']}, density {merge['density']}, lambda {merge['lambda']}",
            ),
            ("Task vectors against", _parent(merge["base"])),
        ]
        rows += [
            (f"Model, weight {w}", _parent(m))
            for w, m in zip(merge["weights"], merge["models"], strict=True)
        ]
    rows = [(key, value) for key, value in rows if value is not None]
    if not rows:
        return ""
    return "## Training\n\n" + _table(("", ""), rows)


def _parent(parent: Mapping) -> str:
    facts = [
        str(parent.get("phase") or ""),
        f"step {parent['step']:,}" if parent.get("step") is not None else "",
    ]
    return (
        f"`{parent['path']}` ({', '.join(fact for fact in facts if fact)})"
        if any(facts)
        else f"`{parent['path']}`"
    )


def _model(fields: Mapping) -> str:
    keys = (
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
    return "## Model\n\n" + _table(("config.json", ""), [(f"`{key}`", fields[key]) for key in keys])


def _held_out(held_out: Mapping) -> str:
    """Loss in nats per masked token, by group of languages; by language where a run has no groups."""
    heading = (
        "## Held-out text\n\nMean loss (nats) and accuracy at masked positions of documents that training never saw,"
        f" at step {held_out['step']:,}.\n\n"
    )
    groups = held_out.get("held_out_groups")
    if groups:
        rows = [
            (name, _number(g.get("languages")), _fixed(g["loss"]), _fixed(g["accuracy"]))
            for name, g in groups.items()
        ]
        return heading + _table(("Languages", "Number", "Loss", "Accuracy"), rows)
    rows = [
        (name, _fixed(x["loss"]), _fixed(x["accuracy"]))
        for name, x in sorted(held_out["held_out"].items())
    ]
    return heading + _table(("Language", "Loss", "Accuracy"), rows)


def _table(header: tuple, rows: list[tuple]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(str(cell) for cell in line) + " |\n" for line in lines)


def _number(value: int | None) -> str | None:
    return None if value is None else f"{value:,}"


def _fixed(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
