"""config.json of a ModernBERT, written so that every `transformers` from 4.48 on reads it alike, read in any form.

RoPE's theta has two generations of fields. 4.x knows `global_rope_theta` and `local_rope_theta` and takes 10,000 for
local layers, silently, when it finds only the newer `layer_types` and `rope_parameters`. So both are written.
Of an imported model its own config.json goes through, see `hf.imported`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from mmbert_jax.data.special_ids import GEMMA, SpecialIds, from_record
from mmbert_jax.errors import UserError
from mmbert_jax.model.config import ModelConfig
from mmbert_jax.model.heads import (
    ACTIVATIONS,
    ENCODER,
    MLM,
    POOLINGS,
    SEQUENCES,
    SPANS,
    TOKENS,
    HeadConfig,
)

ARCHITECTURES = {
    MLM: "ModernBertForMaskedLM",
    ENCODER: "ModernBertModel",
    SEQUENCES: "ModernBertForSequenceClassification",
    TOKENS: "ModernBertForTokenClassification",
    SPANS: "ModernBertForQuestionAnswering",
}
ARCHITECTURE = ARCHITECTURES[MLM]
GLOBAL, LOCAL = "full_attention", "sliding_attention"

# What this model is, beyond its sizes: written as it stands, and a model that differs is refused.
FIXED = {
    "model_type": "modernbert",
    "hidden_activation": "gelu",
    "attention_bias": False,
    "mlp_bias": False,
    "norm_bias": False,
}
# And what its masked-LM head is; `classifier_*` are also that head's dense layer's.
FIXED_MLM = {
    "classifier_activation": "gelu",
    "classifier_bias": False,
    "decoder_bias": True,
    "tie_word_embeddings": True,
}


def id_fields(special: SpecialIds) -> dict[str, int]:
    """The fields of a tokeniser's special ids. What stands at position 0 is <bos>."""
    return {
        "pad_token_id": special.pad,
        "eos_token_id": special.eos,
        "bos_token_id": special.bos,
        "cls_token_id": special.bos,
        "sep_token_id": special.eos,
    }


# Those of this project's tokenisers. The released mmBERT-small says 1 for cls_token_id, which nothing in `transformers`
# reads.
SPECIAL_IDS = id_fields(GEMMA)

MASKED_LM = HeadConfig()

# Fields of which only training takes notice, and what other versions want to see.
WRITTEN = {
    "attention_dropout": 0.0,
    "embedding_dropout": 0.0,
    "mlp_dropout": 0.0,
    "initializer_range": 0.02,
    "initializer_cutoff_factor": 2.0,
    "position_embedding_type": "sans_pos",
    "sparse_prediction": False,
    "sparse_pred_ignore_index": -100,
    "deterministic_flash_attn": False,
    "reference_compile": False,  # 4.x would otherwise try to compile the model wherever it finds Triton
}

# Fields of which another value would have `transformers` compute, or load, something that this model is not. All the
# others that are not read here it does not compute with either: they go through an import and an export untouched.
SET_ASIDE = {"is_causal": (False, None), "quantization_config": (None,)}

# What `transformers` takes for a field that config.json leaves out.
DEFAULTS = {
    "hidden_activation": "gelu",
    "classifier_activation": "gelu",
    "attention_bias": False,
    "mlp_bias": False,
    "norm_bias": False,
    "classifier_bias": False,
    "decoder_bias": True,
    "tie_word_embeddings": True,
    "pad_token_id": 50283,
    "eos_token_id": 50282,
    "bos_token_id": 50281,
    "cls_token_id": 50281,
    "sep_token_id": 50282,
    "classifier_pooling": "cls",
    "classifier_dropout": 0.0,
    "problem_type": None,
    "norm_eps": 1e-5,
    "local_attention": 128,
    "global_attn_every_n_layers": 3,
    "max_position_embeddings": 8192,
    "global_rope_theta": 160_000.0,
    "local_rope_theta": 10_000.0,
    "attention_dropout": 0.0,
}


@dataclasses.dataclass(frozen=True)
class HfConfig:
    """What a config.json says.

    Attributes:
      special_ids: fields of `SPECIAL_IDS` with the ids of the model's tokeniser, which may be another than this
        project's.
      fields: the content of the file, all of it.
      stored: dtype of the weights beside it, "" where they have several or are not looked at.
    """

    model: ModelConfig
    head: HeadConfig
    special_ids: Mapping[str, int]
    max_positions: int
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    stored: str = ""


def to_hf(
    config: ModelConfig,
    max_position_embeddings: int,
    dtype: str,
    head: HeadConfig = MASKED_LM,
    special_ids: Mapping[str, int] = SPECIAL_IDS,
) -> dict:
    """The content of config.json; `dtype` is the stored one, "float32" or "bfloat16".

    Numbers are written as the type that the strict config of 5.x asks for (theta and eps as floats, sizes as integers).
    """
    global_theta, local_theta = float(config.global_rope_theta), float(config.local_rope_theta)
    sizes = {
        "vocab_size": int(config.vocab_size),
        "hidden_size": int(config.hidden_size),
        "num_hidden_layers": int(config.num_layers),
        "num_attention_heads": int(config.num_heads),
        "intermediate_size": int(config.intermediate_size),
        "local_attention": int(config.attention_window),
        "global_attn_every_n_layers": int(config.global_every),
        "max_position_embeddings": int(max_position_embeddings),
        "norm_eps": float(config.norm_eps),
        "torch_dtype": dtype,
    }
    rope = {
        "global_rope_theta": global_theta,
        "local_rope_theta": local_theta,
        "layer_types": [GLOBAL if config.is_global(i) else LOCAL for i in range(config.num_layers)],
        "rope_parameters": {
            GLOBAL: {"rope_type": "default", "rope_theta": global_theta},
            LOCAL: {"rope_type": "default", "rope_theta": local_theta},
        },
    }
    parts = (FIXED, FIXED_MLM, WRITTEN, special_ids, sizes, rope, _head_fields(head))
    fields = {field: value for part in parts for field, value in part.items()}
    return {"architectures": [ARCHITECTURES[head.kind]]} | dict(sorted(fields.items()))


def _head_fields(head: HeadConfig) -> dict:
    fields = {
        "classifier_pooling": head.pooling,
        "classifier_activation": head.activation,
        "classifier_bias": head.dense_bias,
        "classifier_dropout": float(head.dropout),
    }
    if head.kind in (MLM, ENCODER):
        return fields
    if head.problem_type:
        fields["problem_type"] = head.problem_type
    return fields | {
        "id2label": {str(i): label for i, label in enumerate(head.labels)},
        "label2id": {label: i for i, label in enumerate(head.labels)},
    }


def from_hf(fields: Mapping) -> tuple[ModelConfig, int]:
    """The model's shape and `max_position_embeddings`, from the content of a config.json; see `read_config`."""
    config = read_config(fields)
    return config.model, config.max_positions


def read_config(fields: Mapping) -> HfConfig:
    """What the content of a config.json says, of any generation.

    Raises:
      UserError: another architecture, or a field whose value this model does not have.
    """
    kinds = [kind for kind, name in ARCHITECTURES.items() if fields.get("architectures") == [name]]
    if not kinds:
        raise UserError(
            f"config.json: architectures is {fields.get('architectures')}; one of"
            f" {', '.join(ARCHITECTURES.values())} can be imported"
        )
    for field, value in (FIXED | (FIXED_MLM if kinds[0] == MLM else {})).items():
        found = _field(fields, field)
        if found != value:
            raise UserError(f"config.json: {field} is {found!r}; only {value!r} is supported")
    for field, values in SET_ASIDE.items():
        if field in fields and fields[field] not in values:
            raise UserError(
                f"config.json: {field} is {fields[field]!r}; only {values[0]!r} is supported"
            )
    num_layers = _size(fields, "num_hidden_layers")
    global_theta, local_theta = _thetas(fields)
    config = ModelConfig(
        vocab_size=_size(fields, "vocab_size"),
        hidden_size=_size(fields, "hidden_size"),
        num_layers=num_layers,
        num_heads=_size(fields, "num_attention_heads"),
        intermediate_size=_size(fields, "intermediate_size"),
        attention_window=_size(fields, "local_attention"),
        global_every=_global_every(fields, num_layers),
        global_rope_theta=global_theta,
        local_rope_theta=local_theta,
        norm_eps=_number(fields, "norm_eps"),
        attention_output_dropout=_number(fields, "attention_dropout"),
    )
    if config.hidden_size % config.num_heads:
        raise UserError(
            f"config.json: hidden_size {config.hidden_size} is not a multiple of"
            f" num_attention_heads {config.num_heads}"
        )
    # `transformers` 5 goes by these two where they stand, whatever the sizes that they follow from.
    for field, size, what in (
        ("sliding_window", config.attention_window // 2, "half of local_attention"),
        ("head_dim", config.head_dim, "hidden_size / num_attention_heads"),
    ):
        if fields.get(field) is not None and fields[field] != size:
            raise UserError(
                f"config.json: {field} is {fields[field]!r}; it has to be {size}, {what}, or be left out"
            )
    return HfConfig(
        config,
        _head(fields, kinds[0]),
        _special_ids(fields, config.vocab_size),
        _size(fields, "max_position_embeddings"),
        dict(fields),
    )


def _head(fields: Mapping, kind: str) -> HeadConfig:
    if kind in (MLM, ENCODER):
        return HeadConfig(kind)
    pooling, activation = (
        _field(fields, "classifier_pooling"),
        _field(fields, "classifier_activation"),
    )
    for field, found, known in (
        ("classifier_pooling", pooling, POOLINGS),
        ("classifier_activation", activation, tuple(ACTIVATIONS)),
    ):
        if found not in known:
            raise UserError(
                f"config.json: {field} is {found!r}; it has to be one of {', '.join(known)}"
            )
    labels = _labels(fields)
    if kind == SPANS and len(labels) != 2:
        raise UserError(
            f"config.json: id2label has {len(labels)} entries; a question answering head has two, start and end"
        )
    return HeadConfig(
        kind=kind,
        labels=labels,
        pooling=pooling,
        activation=activation,
        dense_bias=bool(_field(fields, "classifier_bias")),
        dropout=_number(fields, "classifier_dropout"),
        problem_type=_field(fields, "problem_type") or "",
    )


def _labels(fields: Mapping) -> tuple[str, ...]:
    """Names of the classes. `transformers` writes `id2label` where there are others than two without a name."""
    found = fields.get("id2label")
    count = fields.get("num_labels")
    if count is not None:
        count = _size(fields, "num_labels")
    if found is None:
        return tuple(f"LABEL_{i}" for i in range(count or 2))
    try:
        by_id = {int(i): str(label) for i, label in found.items()}
    except (AttributeError, ValueError):
        by_id = {}
    if not by_id or sorted(by_id) != list(range(len(by_id))):
        raise UserError(
            f"config.json: id2label is {found!r}; it has to name the classes 0, 1, 2, ..."
        )
    if count not in (None, len(by_id)):
        raise UserError(
            f"config.json: num_labels is {count} but id2label names {len(by_id)} classes; remove the wrong one"
        )
    return tuple(by_id[i] for i in range(len(by_id)))


def _special_ids(fields: Mapping, vocab_size: int) -> dict[str, int]:
    ids = {field: _field(fields, field) for field in SPECIAL_IDS}
    for field, i in ids.items():
        if not isinstance(i, int) or not 0 <= i < vocab_size:
            raise UserError(
                f"config.json: {field} is {i!r}; it has to be a token id, 0 to {vocab_size - 1} (vocab_size)"
            )
    if all(
        ids[f"{name}_token_id"] == SPECIAL_IDS[f"{name}_token_id"] for name in ("pad", "eos", "bos")
    ):
        return dict(SPECIAL_IDS)
    return ids


def recorded_ids(meta: Mapping) -> Mapping[str, int]:
    """The special ids for config.json from a checkpoint's meta: of the model that was imported, or the tokeniser's."""
    imported = meta["config"].get("special_ids") or meta.get("imported_special_ids")
    return imported or id_fields(from_record(meta.get("tokenizer")))


def disagreement(fields: Mapping[str, int], special: SpecialIds) -> str | None:
    """The field of config.json's special ids that names another token than the tokeniser has; None if there is none.

    A head or an end may go by either of its two names.
    """
    names = {
        "pad_token_id": ("pad",),
        "cls_token_id": ("cls", "bos"),
        "sep_token_id": ("sep", "eos"),
    }
    for field, i in id_fields(special).items():
        if field in names and i not in (fields[f"{name}_token_id"] for name in names[field]):
            return field
    return None


def _field(fields: Mapping, name: str):
    """A field, or what `transformers` takes where it is left out."""
    if name in fields:
        return fields[name]
    if name in DEFAULTS:
        return DEFAULTS[name]
    raise UserError(f"config.json: {name} is missing; is this the config.json of a ModernBERT?")


def _size(fields: Mapping, name: str) -> int:
    value = _field(fields, name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"config.json: {name} is {value!r}; it has to be a whole number above 0")
    return value


def _number(fields: Mapping, name: str) -> float:
    value = _field(fields, name)
    if not isinstance(value, int | float) or isinstance(value, bool) or not value >= 0:
        raise UserError(f"config.json: {name} is {value!r}; it has to be a number, 0 or more")
    return float(value)


def _thetas(fields: Mapping) -> tuple[float, float]:
    """Theta of global and of local layers; where both generations of fields stand, they have to agree.

    `local_rope_theta: null` means "the same as the global one", as in 4.x. A `rope_parameters` entry without theta
    falls back to the old field, as in 5.x.
    """
    scaling = fields.get("rope_scaling")
    if scaling:
        raise UserError(
            f"config.json: rope_scaling is {scaling!r}; only unscaled RoPE is supported"
        )
    old_global = _field(fields, "global_rope_theta")
    old_local = _field(fields, "local_rope_theta")
    old = {GLOBAL: old_global, LOCAL: old_global if old_local is None else old_local}
    spelled_out = {GLOBAL: "global_rope_theta" in fields, LOCAL: "local_rope_theta" in fields}
    new = fields.get("rope_parameters") or {}
    entries = new.items() if isinstance(new, Mapping) else [("", new)]
    if any(kind not in old or not isinstance(entry, Mapping | None) for kind, entry in entries):
        raise UserError(
            f"config.json: rope_parameters is {new!r}; it has to have an entry for each of {GLOBAL} and {LOCAL}, with"
            " rope_theta"
        )
    thetas = []
    for kind in (GLOBAL, LOCAL):
        parameters = new.get(kind) or {}
        rope_type = parameters.get("rope_type", parameters.get("type", "default"))
        if rope_type != "default":
            raise UserError(
                f"config.json: rope_parameters.{kind}.rope_type is {rope_type!r};"
                " only unscaled RoPE ('default') is supported"
            )
        theta = parameters.get("rope_theta", old[kind])
        if spelled_out[kind] and theta != old[kind]:
            raise UserError(
                f"config.json: rope_parameters.{kind}.rope_theta is {theta} but the older field says {old[kind]};"
                " make them agree, or remove the wrong one"
            )
        name = f"rope_parameters.{kind}.rope_theta"
        thetas.append(_number({name: theta}, name))
    return thetas[0], thetas[1]


def _global_every(fields: Mapping, num_layers: int) -> int:
    """Every how many layers one attends globally, from `layer_types` or the older integer field."""
    every = _size(fields, "global_attn_every_n_layers")
    types = fields.get("layer_types")
    if types is None:
        return every
    if not isinstance(types, list) or len(types) != num_layers or types[0] != GLOBAL:
        raise UserError(
            f"config.json: layer_types wants {num_layers} entries, of which the first is {GLOBAL!r}"
        )
    if "global_attn_every_n_layers" not in fields:
        every = types.index(GLOBAL, 1) if GLOBAL in types[1:] else num_layers
    if list(types) != [LOCAL if i % every else GLOBAL for i in range(num_layers)]:
        raise UserError(
            f"config.json: layer_types does not have {GLOBAL!r} exactly at every {every}th layer"
        )
    return every
