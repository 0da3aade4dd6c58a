"""A model in the hands of a user: what it takes and gives, whatever its head."""

import dataclasses
import functools
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from tiny_model import CONFIG, TEXTS

import mmbert_jax
from mmbert_jax.checkpoint import save_params
from mmbert_jax.errors import UserError
from mmbert_jax.hf.export import export_hf
from mmbert_jax.inference.tokenise import tokenise
from mmbert_jax.model.heads import SEQUENCES, SPANS, TOKENS, HeadConfig, init_params

load = functools.partial(mmbert_jax.load, devices=jax.devices()[:1])

LABELS = ("no", "yes", "perhaps")
HEADS = {
    "classes": HeadConfig(SEQUENCES, LABELS, pooling="cls"),
    "several": HeadConfig(SEQUENCES, LABELS, problem_type="multi_label_classification"),
    "number": HeadConfig(SEQUENCES, ("score",), problem_type="regression"),
    "tokens": HeadConfig(TOKENS, LABELS),
    "spans": HeadConfig(SPANS, ("start", "end")),
}
PAIRS = [("is the end here", "a long way from here " * 4), ("the cat", "and the dog")]


@pytest.fixture(scope="module")
def folders(meta, tokenizer, tmp_path_factory):
    """Models with task heads, as checkpoints and as Hugging Face folders."""
    made = tmp_path_factory.mktemp("heads")
    for seed, (name, head) in enumerate(HEADS.items()):
        params = init_params(CONFIG, seed, head)
        params = jax.tree.map(lambda x: np.asarray(x) * (10 if x.ndim > 1 else 1), params)
        config = meta["config"] | {"head": dataclasses.asdict(head)}
        save_params(made / name / "run", params, meta | {"config": config})
        export_hf(made / name / "hf", params, meta | {"config": config}, tokenizer)
    return made


# --- what goes in, and what comes out ---


def test_one_text_gives_one_vector(model):
    several = model.encode(TEXTS)
    alone = model.encode(TEXTS[0])
    assert (several.shape, alone.shape) == ((len(TEXTS), CONFIG.hidden_size), (CONFIG.hidden_size,))
    np.testing.assert_allclose(alone, several[0], rtol=0, atol=1e-5)
    assert model.encode(TEXTS[0], "tokens").shape[1] == CONFIG.hidden_size
    assert model.encode([]).shape == (0, CONFIG.hidden_size)


def test_a_prompt_stands_in_front(model):
    prompted = model.encode(TEXTS, prompt="the ")
    np.testing.assert_array_equal(prompted, model.encode(["the " + text for text in TEXTS]))


def test_truncated_before_they_are_normalised(model):
    whole = model.encode(TEXTS)
    part = model.encode(TEXTS, truncate_dim=24, normalise=True)
    expected = whole[:, :24] / np.linalg.norm(whole[:, :24], axis=1, keepdims=True)
    np.testing.assert_allclose(part, expected, rtol=0, atol=1e-6)
    with pytest.raises(UserError, match="truncate_dim is 65"):
        model.encode(TEXTS, truncate_dim=65)


def test_progress_is_told(model, capsys):
    model.encode(TEXTS, progress=True)
    assert "texts/s" in capsys.readouterr().err


def test_ten_thousand_texts_of_mixed_lengths(model):
    rng = np.random.default_rng(0)
    texts = [" ".join(["the cat"] * n) for n in rng.integers(0, 12, 10_000)]
    vectors = model.encode(texts)
    first = {text: i for i, text in reversed(list(enumerate(texts)))}
    np.testing.assert_allclose(vectors, vectors[[first[text] for text in texts]], atol=2e-5)
    assert len(np.unique(vectors.round(3), axis=0)) == len(first)


# --- any head ---


@pytest.mark.parametrize("kind", ["run", "hf"])
@pytest.mark.parametrize("name", HEADS)
def test_every_head_encodes_as_transformers_does(name, kind, folders):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = load(folders / name / kind)
    theirs = transformers.AutoModel.from_pretrained(folders / name / "hf").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders / name / "hf")
    for text, vectors in zip(TEXTS[:3], model.encode(TEXTS[:3], "tokens"), strict=True):
        with torch.no_grad():
            hidden = theirs(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].numpy()
        np.testing.assert_allclose(vectors, hidden, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["classes", "several", "number"])
def test_classes_are_those_of_transformers_pipeline(name, folders):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = load(folders / name / "run")
    pipeline = transformers.pipeline(
        "text-classification", model=str(folders / name / "hf"), top_k=None, device="cpu"
    )
    texts = [text for text in TEXTS if text]
    expected, found = pipeline(texts, truncation=True), model.predict(texts)
    for ours, theirs in zip(found, expected, strict=True):
        assert [x.label for x in ours] == [x["label"] for x in theirs]
        scores = [[x.score for x in ours], [x["score"] for x in theirs]]
        np.testing.assert_allclose(*scores, rtol=1e-4, atol=1e-5)
    pairs = [{"text": one, "text_pair": other} for one, other in PAIRS]
    for ours, theirs in zip(model.predict(PAIRS), pipeline(pairs), strict=True):
        np.testing.assert_allclose(ours[0].score, theirs[0]["score"], rtol=1e-4, atol=1e-5)
    assert model.predict(PAIRS[0])[0].label == model.predict(PAIRS)[0][0].label
    assert model.predict([]) == []


def test_tokens_are_classified_as_by_transformers(folders):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = load(folders / "tokens" / "hf")
    pipeline = transformers.pipeline(
        "token-classification",
        model=str(folders / "tokens" / "hf"),
        ignore_labels=[],
        device="cpu",
    )
    texts = [text for text in TEXTS if 0 < len(tokenise(model, [text])[0][0]) < model.max_length]
    for ours, theirs in zip(model.predict(texts), pipeline(texts), strict=True):
        assert [x.label for x in ours] == [x["entity"] for x in theirs]
        scores = [[x.score for x in ours], [x["score"] for x in theirs]]
        np.testing.assert_allclose(*scores, rtol=1e-4, atol=1e-5)


def test_answers_are_the_likeliest_spans(folders):
    """By the definition of it, from the logits of `transformers`."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = load(folders / "spans" / "run")
    theirs = transformers.AutoModelForQuestionAnswering.from_pretrained(folders / "spans" / "hf")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders / "spans" / "hf")
    found = model.predict(PAIRS)
    for (question, context), ours in zip(PAIRS, found, strict=True):
        begin = len(tokenizer(question)["input_ids"])
        ids = tokenizer(context)["input_ids"][1:-1]
        row = [*tokenizer(question)["input_ids"], *ids, tokenizer.sep_token_id]
        with torch.no_grad():
            out = theirs.eval()(torch.tensor([row]))
        start, stop = (
            torch.softmax(logits[0, begin:-1].double(), -1)
            for logits in (out.start_logits, out.end_logits)
        )
        scores = {
            (a, b + 1): float(start[a] * stop[b])
            for a in range(len(ids))
            for b in range(a, min(a + 15, len(ids)))
        }
        best = max(scores, key=scores.get)
        assert (ours.start, ours.stop) == best
        assert ours.score == pytest.approx(scores[best], rel=1e-4)
        assert ours.answer == tokenizer.decode(ids[best[0] : best[1]]).strip()
    with pytest.raises(UserError, match="pairs of a question"):
        model.predict(["no question"])


def test_what_a_head_cannot_do_is_refused(model, folders):
    with pytest.raises(UserError, match="the model's head is 'mlm'"):
        model.predict(TEXTS)
    with pytest.raises(UserError, match="masks are filled by a masked LM"):
        load(folders / "classes" / "run").fill_mask(["the <mask>"])


# --- several devices ---


def test_eight_devices_are_as_one(hf_folder, folders):
    eight, one = mmbert_jax.load(hf_folder), load(hf_folder)
    assert (eight.mesh.size, one.mesh.size) == (8, 1)
    texts = [" ".join(["the cat"] * n) for n in (*range(20), 30, 40)]
    for pooling in ("mean", "cls"):
        there, here = (model.encode(texts, pooling, batch_tokens=256) for model in (eight, one))
        np.testing.assert_allclose(there, here, rtol=0, atol=1e-5)
    masked = [text + "<mask> end<mask>" for text in texts]
    for there, here in zip(eight.fill_mask(masked), one.fill_mask(masked), strict=True):
        assert [[p.token_id for p in mask] for mask in there] == [
            [p.token_id for p in mask] for mask in here
        ]
    for name in ("classes", "tokens"):
        pair = [m(folders / name / "hf").predict(texts) for m in (mmbert_jax.load, load)]
        for there, here in zip(*pair, strict=True):
            assert [x.label for x in there] == [x.label for x in here]
            np.testing.assert_allclose([x.score for x in there], [x.score for x in here], atol=1e-5)


# --- the command line ---


@pytest.mark.parametrize("name", ["classes", "tokens", "spans"])
def test_the_command_line_says_the_same(name, folders, environment, tmp_path):
    model = load(folders / name / "run")
    given = PAIRS if name == "spans" else [text for text in TEXTS if text][:3]
    records = [
        {"id": f"r{i}", "one": text[0], "two": text[1]}
        if name == "spans"
        else {"id": f"r{i}", "one": text}
        for i, text in enumerate(given)
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    command = [sys.executable, "-m", "mmbert_jax.inference.predict", "--checkpoint"]
    command += [str(folders / name / "run"), "--input", str(tmp_path / "in.jsonl"), "--output"]
    command += [str(tmp_path / "out.jsonl"), "--text_field", "one"]
    if name == "spans":
        command += ["--pair_field", "two"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line.pop("id") for line in written] == [r["id"] for r in records]
    for line, found in zip(written, model.predict(given), strict=True):
        fields = [dataclasses.asdict(x) for x in (found if isinstance(found, list) else [found])]
        expected = fields[0] if name == "spans" else {name: fields}
        assert line == json.loads(json.dumps(expected))
