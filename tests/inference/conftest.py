"""One tiny model, as a checkpoint and as a Hugging Face folder."""

import dataclasses
import os

import jax
import numpy as np
import pytest
from small_tokenizer import write_small_tokenizer
from tiny_model import CONFIG, ROW_LENGTH

from mmbert_jax.checkpoint import save_params
from mmbert_jax.data.tokenizer import load_tokenizer
from mmbert_jax.hf.export import export_hf
from mmbert_jax.inference.load import load
from mmbert_jax.model.heads import init_params


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    return load_tokenizer(write_small_tokenizer(tmp_path_factory.mktemp("corpus") / "tokenizer"))


@pytest.fixture(scope="session")
def params():
    """Weights ten times those of the initialisation, so that tokens get clearly different probabilities."""
    return jax.tree.map(lambda x: np.asarray(x) * (10 if x.ndim > 1 else 1), init_params(CONFIG, 0))


@pytest.fixture(scope="session")
def meta(tokenizer):
    data = {"corpus": str(tokenizer.path.parents[1]), "row_length": ROW_LENGTH, "sources": {}}
    config = {"model": dataclasses.asdict(CONFIG), "data": data}
    return {
        "phase": "demo",
        "step": 3,
        "tokens": 5,
        "tokenizer": {"sha256": tokenizer.sha256},
        "config": config,
    }


@pytest.fixture(scope="session")
def run_folder(params, meta, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    save_params(folder, params, meta)
    return folder


@pytest.fixture(scope="session")
def hf_folder(params, meta, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hf") / "model"
    export_hf(folder, params, meta, tokenizer)
    return folder


@pytest.fixture(scope="session")
def model(hf_folder):
    return load(hf_folder, devices=jax.devices()[:1])


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """For the programs that tests start: one device, and compiled programs kept for each other."""
    cache = str(tmp_path_factory.mktemp("compiled"))
    return os.environ | {"JAX_NUM_CPU_DEVICES": "1", "JAX_COMPILATION_CACHE_DIR": cache}
