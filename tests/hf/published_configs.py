"""config.json after those of published ModernBERTs, with the fields that public sources show, at sizes for a test.

Smaller are widths, numbers of layers and of tokens; and special ids that lie at the end of a vocabulary of 50,368 are
50,000 less, so that they lie at the end of one of 368.
"""

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 2,
    "num_hidden_layers": 4,
}
OLMO_IDS = {
    "bos_token_id": 281,
    "cls_token_id": 281,
    "eos_token_id": 282,
    "pad_token_id": 283,
    "sep_token_id": 282,
    "vocab_size": 368,
}
# What they all say alike.
COMMON = SIZES | {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "classifier_activation": "gelu",
    "classifier_bias": False,
    "classifier_dropout": 0.0,
    "decoder_bias": True,
    "deterministic_flash_attn": False,
    "embedding_dropout": 0.0,
    "global_attn_every_n_layers": 3,
    "hidden_activation": "gelu",
    "initializer_cutoff_factor": 2.0,
    "initializer_range": 0.02,
    "local_attention": 128,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "mlp_dropout": 0.0,
    "model_type": "modernbert",
    "norm_bias": False,
    "norm_eps": 1e-05,
}
CONFIGS = {
    "ModernBERT-base": COMMON
    | OLMO_IDS
    | {
        "architectures": ["ModernBertForMaskedLM"],
        "classifier_pooling": "mean",
        "global_rope_theta": 160000.0,
        "gradient_checkpointing": False,
        "layer_norm_eps": 1e-05,
        "local_rope_theta": 10000.0,
        "position_embedding_type": "absolute",
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "transformers_version": "4.47.0.dev0",
    },
    "Ettin": COMMON
    | OLMO_IDS
    | {
        "architectures": ["ModernBertForMaskedLM"],
        "causal_mask": False,
        "classifier_pooling": "mean",
        "global_rope_theta": 160000.0,
        "gradient_checkpointing": False,
        "is_causal": False,
        "layer_norm_eps": 1e-05,
        "local_rope_theta": 160000.0,
        "position_embedding_type": "sans_pos",
        "repad_logits_with_grad": False,
        "sparse_pred_ignore_index": -100,
        "sparse_prediction": False,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "transformers_version": "4.48.0",
    },
    "Granite-embedding-R2": COMMON
    | OLMO_IDS
    | {
        "architectures": ["ModernBertModel"],
        "classifier_pooling": "mean",
        "global_rope_theta": 80000.0,
        "gradient_checkpointing": False,
        "layer_norm_eps": 1e-05,
        "local_rope_theta": 10000.0,
        "position_embedding_type": "absolute",
        "reference_compile": True,
        "repad_logits_with_grad": False,
        "sparse_pred_ignore_index": -100,
        "sparse_prediction": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.49.0",
    },
    "gte-modernbert": COMMON
    | OLMO_IDS
    | {
        "architectures": ["ModernBertModel"],
        "classifier_pooling": "mean",
        "global_rope_theta": 160000.0,
        "gradient_checkpointing": False,
        "layer_norm_eps": 1e-05,
        "local_rope_theta": 10000.0,
        "position_embedding_type": "absolute",
        "reference_compile": None,
        "repad_logits_with_grad": False,
        "sparse_pred_ignore_index": -100,
        "sparse_prediction": False,
        "torch_dtype": "float16",
        "transformers_version": "4.48.0",
    },
    "mmBERT": COMMON
    | {
        "architectures": ["ModernBertForMaskedLM"],
        "bos_token_id": 2,
        "classifier_pooling": "mean",
        "cls_token_id": 1,
        "eos_token_id": 1,
        "global_rope_theta": 160000,
        "gradient_checkpointing": False,
        "layer_norm_eps": 1e-05,
        "local_rope_theta": 160000,
        "mask_token_id": 4,
        "pad_token_id": 0,
        "position_embedding_type": "sans_pos",
        "repad_logits_with_grad": False,
        "sep_token_id": 1,
        "sparse_pred_ignore_index": -100,
        "sparse_prediction": False,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "transformers_version": "4.48.0",
        "unk_token_id": 3,
        "vocab_size": 368,
    },
}
