"""Sentence Transformers and PyLate load an exported folder, train on it, and embed as this project does."""

import gzip
import json

import jax.numpy as jnp
import numpy as np
import pytest
from peers import ROOT, run_under
from safetensors.numpy import load_file
from small_tokenizer import write_small_tokenizer
from test_versions import CONFIG, LONGEST, meta_of, random_params

from mmbert_jax.data.tokenizer import load_tokenizer
from mmbert_jax.hf.export import export_hf
from mmbert_jax.hf.load import load_model
from mmbert_jax.model.heads import ENCODER, HeadConfig, outputs, pool

pytest.importorskip("torch")
pytest.importorskip("transformers")

SCRIPT = ROOT / "tests/hf/scripts/train_a_step.py"
READ = ROOT / "tests/hf/scripts/read_records.py"
WORDS = "the cat and a dog is in this house that he and she have seen there".split()


def phrase(rng, words: int) -> str:
    return " ".join(rng.choice(WORDS, words))


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipes")
    tokenizer = load_tokenizer(write_small_tokenizer(folder / "tokenizer"))
    export_hf(folder / "model", random_params(HeadConfig(), 0), meta_of(HeadConfig()), tokenizer)
    rng = np.random.default_rng(0)
    texts = [phrase(rng, n) for n in (1, 7, 60, 150)]
    (folder / "texts.json").write_text(json.dumps(texts))
    scored = [
        {
            "query": phrase(rng, 3),
            "documents": [phrase(rng, 8) for _ in range(3)],
            "scores": [0.9, 0.5, 0.1],
        }
        for _ in range(12)
    ]
    data = {
        "dense": [
            {key: phrase(rng, 5) for key in ("query", "positive", "negative")} for _ in range(12)
        ],
        "sparse": [{key: phrase(rng, 5) for key in ("query", "answer")} for _ in range(12)],
        "cross_encoder": [
            {"query": phrase(rng, 3), "document": phrase(rng, 8), "label": int(i % 3 == 0)}
            for i in range(12)
        ],
        "multi_vector": scored,
        "multi_vector_pylate": scored,
    }
    for name, rows in data.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def changed_tensors(work, name: str) -> set[str]:
    """The tensors of the encoder that training moved; all of them are finite."""
    before = load_file(work / "model" / "model.safetensors")
    files = sorted((work / "trained" / name).rglob("model.safetensors"))
    after = load_file(next(file for file in files if "Dense" not in file.parent.name))
    assert all(np.isfinite(x).all() for x in after.values())
    names = {key: key if key in after else key.removeprefix("model.") for key in before}
    return {
        key
        for key, other in names.items()
        if other in after and not np.array_equal(before[key], after[other])
    }


def test_sentence_transformers(work):
    """Dense, sparse, cross-encoder and multi-vector: loaded, trained, saved; embeddings are ours."""
    run_under(
        "sentence-transformers", SCRIPT, work, "dense", "sparse", "cross_encoder", "multi_vector"
    )
    for name in ("dense", "sparse", "cross_encoder", "multi_vector"):
        changed = changed_tensors(work, name)
        assert "model.layers.0.attn.Wqkv.weight" in changed, name
        assert "model.embeddings.tok_embeddings.weight" in changed, name

    texts = json.loads((work / "texts.json").read_text())
    encoder = HeadConfig(ENCODER)
    for stage, folder in (("before", work / "model"), ("after", work / "trained" / "dense")):
        model, tokenizer = load_model(folder), load_tokenizer(folder)
        theirs = np.load(work / f"{stage}.npy")
        for text, vector in zip(texts, theirs, strict=True):
            tokens = np.array([[2, *tokenizer.encode(text), 1]], np.int32)
            row = (tokens, np.ones_like(tokens), np.arange(tokens.size, dtype=np.int32)[None])
            hidden = outputs(model.params, model.config.model, *row, encoder)
            mean = np.asarray(pool(hidden, jnp.asarray(row[1]), 1))[0, 0]
            np.testing.assert_allclose(mean, vector, rtol=0, atol=1e-4)
    assert model.config.head == encoder  # what Sentence Transformers saves is a bare encoder
    assert model.config.model.local_rope_theta == CONFIG.local_rope_theta
    assert model.config.max_positions == LONGEST


def test_pylate(work):
    run_under("pylate", SCRIPT, work, "multi_vector_pylate")
    changed = changed_tensors(work, "multi_vector_pylate")
    assert "model.layers.0.attn.Wqkv.weight" in changed


def test_bad_data_is_named(tmp_path):
    """A wrong line ends the recipe before a model is loaded, with the file and the line named."""
    (tmp_path / "dense.jsonl").write_text('{"query": "a"}\n')
    (tmp_path / "model").mkdir()
    with pytest.raises(AssertionError, match=r"dense\.jsonl, line 1"):
        run_under("sentence-transformers", SCRIPT, tmp_path, "dense")


def test_records_are_read_as_by_all_programs(tmp_path):
    """One reader: what it takes and refuses is what preparation does; by a script under the recipes' own packages."""
    good = b'{"query": "a", "positive": "b"}\n'
    files = {
        "plain": good * 3,
        "blank": good * 2 + b"\n",
        "mark": b"\xef\xbb\xbf" + good,
        "lines": good.replace(b"\n", b"\r\n") * 2,
        "null": good + b'{"query": null, "positive": "b"}\n',
        "number": good + b'{"query": 3, "positive": "b"}\n',
        "list": good + b'{"query": ["x"], "positive": "b"}\n',
        "latin": good + '{"query": "café", "positive": "b"}\n'.encode("latin-1"),
        "surrogate": good + b'{"query": "\\ud83d", "positive": "b"}\n',
        "packed": gzip.compress(good),
    }
    for name, data in files.items():
        (tmp_path / (f"{name}.jsonl.gz" if name == "packed" else f"{name}.jsonl")).write_bytes(data)
    said = json.loads(run_under("sentence-transformers", READ, tmp_path))
    for name, count in {"plain": 3, "blank": 2, "mark": 1, "lines": 2, "packed": 1}.items():
        assert said.pop(name) == count, name
    for name, why in {
        "null": "field 'query' is a NoneType",
        "number": "field 'query' is a int",
        "list": "field 'query' is a list",
        "latin": "invalid UTF-8 at byte 14",
        "surrogate": "half a surrogate pair",
    }.items():
        where, rest = said.pop(name).split(", line 2: ")
        assert where == f"error: {tmp_path / name}.jsonl"
        assert rest.startswith(why) or why in rest, rest
    assert not said
