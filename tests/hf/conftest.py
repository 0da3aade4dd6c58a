"""A run, what it was trained with, and its export."""

import jax
import numpy as np
import pytest
from exported_model import CONFIG, run_tool
from small_tokenizer import write_small_tokenizer

from mmbert_jax.checkpoint import save_params
from mmbert_jax.data.tokenizer import load_tokenizer
from mmbert_jax.model.heads import init_params


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory):
    return write_small_tokenizer(tmp_path_factory.mktemp("corpus") / "tokenizer")


@pytest.fixture(scope="session")
def params():
    """Random values in every tensor, also in those that start as ones or zeros."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: (np.asarray(x) + 0.1 * rng.normal(size=x.shape)).astype(np.float32),
        init_params(CONFIG, 0),
    )


@pytest.fixture(scope="session")
def meta(tokenizer_folder):
    """What a training run records, as far as exporting looks at it."""
    model = {field: getattr(CONFIG, field) for field in CONFIG.__dataclass_fields__}
    return {
        "phase": "decay_all",
        "step": 12,
        "row": 48,
        "tokens": 12_288,
        "languages": ["eng", "kin", "swa"],
        "history": [{"phase": "phase1", "step": 3000, "tokens": 4_000_000}],
        "tokenizer": {"sha256": load_tokenizer(tokenizer_folder).sha256, "vocab_size": 332},
        "held_out_groups": {"added last": {"loss": 4.5678, "accuracy": 0.3456, "languages": 2}},
        "config": {
            "model": model,
            "data": {
                "corpus": str(tokenizer_folder.parent),
                "row_length": 256,
                "temperature": 0.3,
                "sources": {},
            },
            "train": {"batch_rows": 4},
            "mask": {"ratio": 0.05},
            "optimizer": {"peak_lr": 8e-4, "schedule": "one_minus_sqrt", "weight_decay": 8e-5},
            "dtype": "bfloat16",
            "seed": 21,
        },
    }


@pytest.fixture(scope="session")
def run(params, meta, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "decay_all"
    save_params(folder, params, meta)
    return folder


@pytest.fixture(scope="session")
def exported(run, tmp_path_factory):
    """The folder that the command line writes."""
    folder = tmp_path_factory.mktemp("exported") / "model"
    result = run_tool("export_hf", "--checkpoint", run, "--output", folder)
    assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in folder.parent.iterdir()) == ["model"]
    return folder
