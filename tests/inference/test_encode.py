"""Vectors of packed texts: those that `transformers` computes for each text alone."""

import dataclasses
import json
import pwd
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from tiny_model import CONFIG, ROW_LENGTH, TEXTS

from mmbert_jax.errors import UserError
from mmbert_jax.inference.compile_cache import use_compile_cache
from mmbert_jax.inference.load import load
from mmbert_jax.inference.quantise import quantise
from mmbert_jax.inference.tokenise import tokenise
from mmbert_jax.inference.vectors import POOLINGS, encode, run
from mmbert_jax.model import heads


@pytest.fixture(scope="module")
def theirs(hf_folder):
    """(tokeniser, hidden states [tokens, D] of each text alone) of `transformers`."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(hf_folder)
    encoder = transformers.ModernBertModel.from_pretrained(hf_folder).eval()
    hidden = []
    for text in TEXTS:
        ids = tokenizer(text, truncation=True, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            hidden.append(encoder(ids).last_hidden_state[0].numpy())
    return tokenizer, hidden


@pytest.mark.parametrize("batch_tokens", [64, 2048])
def test_equals_transformers_text_by_text(model, theirs, batch_tokens):
    _, hidden = theirs
    assert max(map(len, hidden)) == ROW_LENGTH, "no text is cut"
    ours = {
        pooling: encode(model, TEXTS, pooling, batch_tokens=batch_tokens) for pooling in POOLINGS
    }
    for i, expected in enumerate(hidden):
        np.testing.assert_allclose(ours["tokens"][i], expected, atol=1e-4)
        np.testing.assert_allclose(ours["mean"][i], expected.mean(0), atol=1e-4)
        np.testing.assert_allclose(ours["cls"][i], expected[0], atol=1e-4)
    spread = np.abs(ours["mean"][:, None] - ours["mean"][None]).max(-1)
    assert (spread + np.eye(len(TEXTS)) > 0.1).all(), "the texts are too alike to tell apart"


def test_packed_equals_alone(model):
    for pooling in POOLINGS:
        together = encode(model, TEXTS, pooling)
        for text, vector in zip(TEXTS, together, strict=True):
            np.testing.assert_allclose(vector, encode(model, [text], pooling)[0], atol=1e-5)


def test_checkpoint_and_hugging_face_folder_are_the_same_model(model, run_folder):
    other = load(run_folder)
    assert (other.config, other.max_length) == (model.config, model.max_length)
    np.testing.assert_array_equal(encode(other, TEXTS), encode(model, TEXTS))


@pytest.mark.parametrize("max_length", [2, 3, 16])
def test_cuts_like_transformers(model, theirs, max_length):
    tokenizer, _ = theirs
    ids, cut = tokenise(dataclasses.replace(model, max_length=max_length), TEXTS)
    assert ids == tokenizer(TEXTS, truncation=True, max_length=max_length)["input_ids"]
    assert cut == [len(i) > max_length for i in tokenizer(TEXTS)["input_ids"]]


def test_normalised(model):
    plain, normalised = encode(model, TEXTS), encode(model, TEXTS, normalise=True)
    lengths = np.linalg.norm(plain, axis=-1, keepdims=True)
    np.testing.assert_allclose(normalised, plain / lengths, atol=1e-6)
    for vectors in encode(model, TEXTS[:3], "tokens", normalise=True):
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 1, atol=1e-6)


def test_bfloat16_points_the_same_way(hf_folder, model):
    half = encode(load(hf_folder, dtype="bfloat16"), TEXTS, normalise=True)
    assert half.dtype == np.float32
    cosines = (half * encode(model, TEXTS, normalise=True)).sum(-1)
    assert (cosines > 0.99).all(), cosines
    assert (cosines < 1 - 1e-7).any(), "computed in float32"


def test_few_programs_for_all_lengths(model):
    """Texts of 2 to 600 tokens, a few and many at a time: three row lengths need at most two shapes each."""
    before = heads._encode._cache_size()
    rng = np.random.default_rng(0)
    for longest in (5, 40, 130, 131, 300, 513, 600):
        for count in (1, 3, 40):
            sequences = [[2, *[7] * int(n), 1] for n in rng.integers(0, longest - 1, count)]
            for _ in run(model, sequences, "cls", batch_tokens=1024):
                pass
    assert heads._encode._cache_size() - before <= 6


def test_no_texts(model):
    assert encode(model, []).shape == (0, CONFIG.hidden_size)
    assert encode(model, [], "tokens") == []


def test_refuses_what_it_cannot_do(model, hf_folder, tmp_path):
    with pytest.raises(UserError, match="pooling is 'max'"):
        encode(model, ["a"], "max")
    with pytest.raises(UserError, match="dtype is 'float64'"):
        load(hf_folder, dtype="float64")
    with pytest.raises(UserError, match="max_length is 1"):
        load(hf_folder, max_length=1)
    with pytest.raises(UserError, match="name a run folder"):
        load(tmp_path)
    shutil.copytree(hf_folder, tmp_path / "lost")
    (tmp_path / "lost" / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="tokenizer.json"):
        load(tmp_path / "lost")
    assert load(tmp_path / "lost", tokenizer=hf_folder).fingerprint == model.fingerprint


def test_a_user_without_a_home_does_without_a_cache(tmp_path, monkeypatch):
    """A container's user number often has neither HOME nor an entry in passwd; a folder that is given needs none."""
    kept = []
    monkeypatch.setattr(jax.config, "update", lambda name, value: kept.append(value))
    for name in ("HOME", "XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)

    def nobody(_):
        raise KeyError("uid not found")

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    assert use_compile_cache() is None
    assert kept == []
    assert use_compile_cache(tmp_path) == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path))
    assert use_compile_cache() == tmp_path / ".cache" / "mmbert_jax" / "compiled"


def test_types_and_sizes_from_the_command_line(hf_folder, model, environment, tmp_path):
    """What the file holds is what `encode` gives, with a prompt, of fewer dimensions, in bytes and in bits."""
    texts = [text for text in TEXTS if text]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    plain = encode(model, texts, prompt="the ", truncate_dim=32)
    np.save(tmp_path / "ranges.npy", np.stack([plain.min(axis=0), plain.max(axis=0)]))
    command = [sys.executable, "-m", "mmbert_jax.inference.encode", "--checkpoint", str(hf_folder)]
    command += ["--input", str(tmp_path / "in.jsonl"), "--prompt", "the ", "--truncate_dim", "32"]

    def ends(output, *more):
        into = ["--output_dtype", output, "--output", str(tmp_path / f"{output}.npy")]
        return subprocess.run(
            [*command, *into, *more], env=environment, capture_output=True, text=True, check=False
        )

    for output, more in (("int8", ["--ranges", str(tmp_path / "ranges.npy")]), ("ubinary", [])):
        result = ends(output, *more)
        assert result.returncode == 0, result.stderr
        found = np.load(tmp_path / f"{output}.npy")
        expected = quantise(plain, output)
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        # Packed otherwise, a value may fall into the next step.
        assert (found != expected).mean() < 0.01
    assert "--output_dtype uint8 needs --ranges" in ends("uint8").stderr
