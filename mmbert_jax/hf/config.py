"""config.json of a ModernBERT, written so that every `transformers` from 4.48 on reads it alike, read in any form.

RoPE's theta has two generations of fields. 4.x knows `global_rope_theta` and `local_rope_theta` and takes 10,000 for
local layers, silently, when it finds only the newer `layer_types` and `rope_parameters`. So both are written.
"""

from collections.abc import Mapping

from mmbert_jax.errors import UserError
from mmbert_jax.model.config import ModelConfig

ARCHITECTURE = "ModernBertForMaskedLM"
GLOBAL, LOCAL = "full_attention", "sliding_attention"

# What this model is, beyond its sizes: written as it stands, and a model that differs is refused.
FIXED = {
    "model_type": "modernbert",
    "hidden_activation": "gelu",
    "classifier_activation": "gelu",  # also the masked-LM head's
    "attention_bias": False,
    "mlp_bias": False,
    "norm_bias": False,
    "classifier_bias": False,  # also the masked-LM head's dense layer's
    "decoder_bias": True,
    "tie_word_embeddings": True,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}

# Fields of which only training or other heads take notice, and what other versions want to see.
WRITTEN = {
    # What stands at position 0 is <bos>. The released mmBERT-small says 1 here; nothing in `transformers` reads it.
    "cls_token_id": 2,
    "sep_token_id": 1,
    "attention_dropout": 0.0,
    "embedding_dropout": 0.0,
    "mlp_dropout": 0.0,
    "classifier_dropout": 0.0,
    "classifier_pooling": "mean",
    "initializer_range": 0.02,
    "initializer_cutoff_factor": 2.0,
    "position_embedding_type": "sans_pos",
    "sparse_prediction": False,
    "sparse_pred_ignore_index": -100,
    "deterministic_flash_attn": False,
    "reference_compile": False,  # 4.x would otherwise try to compile the model wherever it finds Triton
}

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
    "norm_eps": 1e-5,
    "local_attention": 128,
    "global_attn_every_n_layers": 3,
    "max_position_embeddings": 8192,
    "global_rope_theta": 160_000.0,
    "local_rope_theta": 10_000.0,
    "attention_dropout": 0.0,
}


def to_hf(config: ModelConfig, max_position_embeddings: int, dtype: str) -> dict:
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
    return {"architectures": [ARCHITECTURE]} | dict(
        sorted((FIXED | WRITTEN | sizes | rope).items())
    )


def from_hf(fields: Mapping) -> tuple[ModelConfig, int]:
    """The model's shape and `max_position_embeddings`, from the content of a config.json of any generation.

    Raises:
      UserError: another architecture, or a field whose value this model does not have.
    """
    if list(fields.get("architectures") or []) != [ARCHITECTURE]:
        raise UserError(
            f"config.json: architectures is {fields.get('architectures')}; only [{ARCHITECTURE!r}] can be imported"
        )
    for field, value in FIXED.items():
        found = _field(fields, field)
        if found != value:
            hint = (
                " (the special ids of this project's tokenisers)"
                if field.endswith("token_id")
                else ""
            )
            raise UserError(f"config.json: {field} is {found!r}; only {value!r}{hint} is supported")
    num_layers = _field(fields, "num_hidden_layers")
    global_theta, local_theta = _thetas(fields)
    config = ModelConfig(
        vocab_size=_field(fields, "vocab_size"),
        hidden_size=_field(fields, "hidden_size"),
        num_layers=num_layers,
        num_heads=_field(fields, "num_attention_heads"),
        intermediate_size=_field(fields, "intermediate_size"),
        attention_window=_field(fields, "local_attention"),
        global_every=_global_every(fields, num_layers),
        global_rope_theta=global_theta,
        local_rope_theta=local_theta,
        norm_eps=float(_field(fields, "norm_eps")),
        attention_output_dropout=float(_field(fields, "attention_dropout")),
    )
    if config.hidden_size % config.num_heads:
        raise UserError(
            f"config.json: hidden_size {config.hidden_size} is not a multiple of"
            f" num_attention_heads {config.num_heads}"
        )
    return config, int(_field(fields, "max_position_embeddings"))


def _field(fields: Mapping, name: str):
    """A field, or what `transformers` takes where it is left out."""
    if name in fields:
        return fields[name]
    if name in DEFAULTS:
        return DEFAULTS[name]
    raise UserError(f"config.json: {name} is missing; is this the config.json of a ModernBERT?")


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
    thetas = []
    for kind in (GLOBAL, LOCAL):
        parameters = new.get(kind) or {}
        if parameters.get("rope_type", "default") != "default":
            raise UserError(
                f"config.json: rope_parameters.{kind}.rope_type is {parameters['rope_type']!r};"
                " only unscaled RoPE ('default') is supported"
            )
        theta = parameters.get("rope_theta", old[kind])
        if spelled_out[kind] and theta != old[kind]:
            raise UserError(
                f"config.json: rope_parameters.{kind}.rope_theta is {theta} but the older field says {old[kind]};"
                " make them agree, or remove the wrong one"
            )
        thetas.append(float(theta))
    return thetas[0], thetas[1]


def _global_every(fields: Mapping, num_layers: int) -> int:
    """Every how many layers one attends globally, from `layer_types` or the older integer field."""
    every = _field(fields, "global_attn_every_n_layers")
    types = fields.get("layer_types")
    if types is None:
        return every
    if len(types) != num_layers or types[0] != GLOBAL:
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
