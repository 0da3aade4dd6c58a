"""Trimming the vocabulary: the same tokens and hidden states where tokens were kept, and every text still readable."""

import copy
import functools
import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import ROOT, run_tool
from shared_data import shared_file
from small_tokenizer import write_small_tokenizer

from mmbert_jax.checkpoint import save_params
from mmbert_jax.data.cldr_text import documents
from mmbert_jax.data.sources import Fields, find_inputs
from mmbert_jax.data.tokenizer import load_tokenizer
from mmbert_jax.data.train_tokenizer import train
from mmbert_jax.errors import UserError
from mmbert_jax.hf.config import to_hf
from mmbert_jax.hf.load import load_hf
from mmbert_jax.hf.names import to_theirs
from mmbert_jax.hf.tokenizer import to_hf_files
from mmbert_jax.hf.weights import save_weights
from mmbert_jax.model.config import ModelConfig
from mmbert_jax.model.heads import encode, init_params, outputs
from mmbert_jax.surgery.trim import trim_vocabulary
from mmbert_jax.surgery.vocabulary import check_supported, ids_to_keep, trim_description

KEPT = ("de", "el")
LANGUAGES = (*KEPT, "nl", "en", "ru", "th", "hi", "ja", "ar", "sw")


def train_tokenizer(sample: dict[str, list[str]], vocab_size: int, folder: Path) -> Path:
    """A tokenizer.json as tools/train_tokenizer.py makes it."""
    folder.mkdir(exist_ok=True)
    model = folder.with_suffix(".model")
    model.write_bytes(train(sample, vocab_size, 0.9995))
    to_hf_files(load_tokenizer(model), folder, 128)
    return folder


def texts(language: str, count: int, first: int = 0) -> list[str]:
    """Documents `first` to `first + count` of a language; made once, since CLDR's patterns take their time."""
    return _documents(language)[first : first + count]


@functools.cache
def _documents(language: str) -> list[str]:
    return list(documents(language, 85))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A Hugging Face folder: a random model with a vocabulary of ten languages in seven scripts, with spare rows."""
    folder = tmp_path_factory.mktemp("model") / "whole"
    train_tokenizer({language: texts(language, 60) for language in LANGUAGES}, 3000, folder)
    config = ModelConfig(
        vocab_size=3010, hidden_size=64, num_layers=2, num_heads=1, intermediate_size=48
    )
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: (np.asarray(x) + 0.1 * rng.normal(size=x.shape)).astype(np.float32),
        init_params(config, 0),
    )
    save_weights(folder, to_theirs(params, config), 200_000)
    (folder / "config.json").write_text(json.dumps(to_hf(config, 128, "float32")))
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Text of all languages, JSONL."""
    path = tmp_path_factory.mktemp("text") / "text.jsonl.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        for language in LANGUAGES:
            for text in texts(language, 40):
                file.write(json.dumps({"language": language, "text": text}) + "\n")
    return path


@pytest.fixture(scope="module")
def trimmed(whole, corpus, tmp_path_factory):
    """What the command line makes of it, and what it prints."""
    output = tmp_path_factory.mktemp("trimmed") / "small"
    arguments = ("--model", whole, "--input", corpus, "--languages", *KEPT, "--output", output)
    result = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "trim_vocabulary.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert [path.name for path in output.parent.iterdir()] == ["small"]
    return output, result.stdout


def new_texts():
    """Texts that no vocabulary was made from, of every language, and what no language has."""
    for language in LANGUAGES:
        yield from texts(language, 15, first=60)
    yield from (
        "",
        " ",
        "   two  spaces ",
        "\n\n\ta\n",
        "▁",
        "𒀀𒁀 🜁 ￾",
        "naïve café",
        "e\u0301",
        "1234 % §",
    )


def test_the_folder_is_complete_and_says_what_it_costs(whole, trimmed):
    folder, printed = trimmed
    assert sorted(path.name for path in folder.iterdir()) == [
        *("README.md", "config.json", "mmbert_jax_export.json", "model.safetensors"),
        *("tokenizer.json", "tokenizer_config.json", "trim.json"),
    ]
    params, config, _ = load_hf(folder)
    report = json.loads((folder / "trim.json").read_text())
    keep = report["kept_ids"]
    n = len(keep)
    assert n == load_tokenizer(folder).vocab_size < 1800
    assert n <= config.vocab_size < n + 64
    assert config.vocab_size % 64 == 0
    assert keep[:5] == [0, 1, 2, 3, 4]
    full, _, _ = load_hf(whole)
    np.testing.assert_array_equal(
        params["embeddings"]["tokens"][:n], full["embeddings"]["tokens"][keep]
    )
    assert not params["embeddings"]["tokens"][n:].any()
    np.testing.assert_array_equal(params["head"]["bias"][:n], full["head"]["bias"][keep])
    saved = report["parameters"]["before"] - report["parameters"]["after"]
    assert saved == (3010 - config.vocab_size) * 65
    assert report["rows"] == {"before": 3010, "after": config.vocab_size}
    costs = report["languages"]
    assert set(costs) == set(LANGUAGES)
    assert [name for name, cost in costs.items() if cost["kept"]] == list(KEPT)
    for language in LANGUAGES:
        cost = costs[language]
        assert cost["documents"] == 40
        assert cost["characters"] == sum(map(len, texts(language, 40)))
        unchanged = cost["tokens_after"] == cost["tokens_before"]
        assert unchanged == (cost["same"] == 40) == (language in KEPT)
    assert costs["th"]["tokens_after"] > 2 * costs["th"]["tokens_before"]
    lines = printed.splitlines()
    (line,) = (line.split() for line in lines if line.startswith("th "))
    per_character = [
        costs["th"][f"tokens_{when}"] / costs["th"]["characters"] for when in ("before", "after")
    ]
    assert [float(cell) for cell in line[-2:]] == pytest.approx(per_character, abs=1e-3)


def test_hidden_states_and_logits_are_the_same_where_all_tokens_were_kept(whole, trimmed):
    folder, _ = trimmed
    keep = json.loads((folder / "trim.json").read_text())["kept_ids"]
    new_id = {old: new for new, old in enumerate(keep)}
    (full, config, _), (small, small_config, _) = load_hf(whole), load_hf(folder)
    before, after = load_tokenizer(whole), load_tokenizer(folder)
    rows, small_rows, segments = [], [], []
    for text in new_texts():
        ids = before.encode(text)[:62]
        if all(i in new_id for i in before.encode(text)):
            assert after.encode(text)[:62] == [new_id[i] for i in ids], text
            padding = [0] * (62 - len(ids))
            rows.append([2, *ids, 1, *padding])
            small_rows.append([2, *after.encode(text)[:62], 1, *padding])
            segments.append([1] * (len(ids) + 2) + padding)
    assert len(rows) > 20
    tokens, small_tokens, segments = (np.array(x, np.int32) for x in (rows, small_rows, segments))
    positions = np.broadcast_to(np.arange(64, dtype=np.int32), tokens.shape)
    hidden = encode(full, config, tokens, segments, positions)
    np.testing.assert_array_equal(
        encode(small, small_config, small_tokens, segments, positions), hidden
    )
    logits = outputs(full, config, tokens[:8], segments[:8], positions[:8])
    found = outputs(small, small_config, small_tokens[:8], segments[:8], positions[:8])
    n = len(keep)
    np.testing.assert_allclose(found[..., :n], np.asarray(logits)[..., keep], rtol=0, atol=1e-5)
    assert not np.exp(found[..., n:] - found.max(axis=-1, keepdims=True)).any()  # never predicted


def test_every_text_can_be_read_and_written_back(trimmed):
    tokenizer = load_tokenizer(trimmed[0])
    seen = set()
    for text in new_texts():
        ids = tokenizer.encode(text)
        assert 3 not in ids
        assert tokenizer.decode(ids) == text.replace("▁", " ")
        seen.update(ids)
    assert max(seen) < tokenizer.vocab_size


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_any_text_of_kept_tokens_is_split_alike(whole, trimmed, data):
    """Texts put together from pieces of real ones, cut anywhere: what is kept depends on the whole span of a token."""
    folder, _ = trimmed
    before, after = load(whole), load(folder)
    keep = json.loads((folder / "trim.json").read_text())["kept_ids"]
    new_id = {old: new for new, old in enumerate(keep)}
    sentences = [text for language in (*KEPT, "nl", "en") for text in texts(language, 8, first=75)]
    pieces = data.draw(st.lists(st.sampled_from(sentences), min_size=1, max_size=4))
    cuts = [data.draw(st.tuples(st.integers(0, len(p)), st.integers(0, len(p)))) for p in pieces]
    text = "".join(p[min(cut) : max(cut)] for p, cut in zip(pieces, cuts, strict=True))
    expected = [new_id.get(i) for i in before.encode(text, add_special_tokens=False).ids]
    found = after.encode(text, add_special_tokens=False).ids
    if None in expected:
        # Spelled otherwise, from the first lost token's neighbourhood on; never lost.
        assert after.decode(found) == text
    else:
        assert found == expected


LOADED: dict[Path, tokenizers.Tokenizer] = {}


def load(folder: Path) -> tokenizers.Tokenizer:
    if folder not in LOADED:
        LOADED[folder] = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    return LOADED[folder]


def test_nothing_is_kept_for_nothing(whole):
    """Without any one of the pieces that a token is built from, the token does not come out any more."""
    description = json.loads((whole / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer = load(whole)
    always = set(ids_to_keep(description, []))
    used = set(tokenizer.encode("Donnerstag, 3. Juni", add_special_tokens=False).ids)
    keep = ids_to_keep(description, used)
    on_the_way = sorted(set(keep) - used - always)
    assert len(on_the_way) > 5

    def split(ids):
        small = tokenizers.Tokenizer.from_str(json.dumps(trim_description(description, ids)))
        return small.encode("Donnerstag, 3. Juni", add_special_tokens=False).tokens

    expected = split(keep)
    assert expected == tokenizer.encode("Donnerstag, 3. Juni", add_special_tokens=False).tokens
    for i in on_the_way:
        assert split([k for k in keep if k != i]) != expected, tokenizer.id_to_token(i)


def test_small_tokenizer_by_hand(tmp_path):
    """ "▁the" is made of "▁t" and "he", "and" of "an" and "d"; "is", "▁a" and the other letters go."""
    path = write_small_tokenizer(tmp_path / "small") / "tokenizer.json"
    description = json.loads(path.read_text())
    before = copy.deepcopy(description)
    vocabulary = description["model"]["vocab"]
    keep = ids_to_keep(description, [vocabulary["▁the"], vocabulary["and"]])
    small = trim_description(description, keep)
    assert description == before
    pieces = [piece for piece in small["model"]["vocab"] if not piece.startswith("<")]
    assert sorted(pieces) == sorted(
        ["▁", "t", "h", "e", "a", "n", "d", "▁t", "he", "▁the", "an", "and"]
    )
    assert small["model"]["merges"] == [
        ["▁", "t"],
        ["h", "e"],
        ["▁t", "he"],
        ["a", "n"],
        ["an", "d"],
    ]
    assert sorted(small["model"]["vocab"].values()) == list(range(261 + 12))


def test_transformers_loads_the_folder(whole, trimmed):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder, _ = trimmed
    keep = json.loads((folder / "trim.json").read_text())["kept_ids"]
    text = texts("el", 1)[0] + " <mask>"
    logits, ids = [], []
    for path in (whole, folder):
        model = transformers.AutoModelForMaskedLM.from_pretrained(path).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(path)
        inputs = tokenizer(text, return_tensors="pt")
        ids.append(inputs.input_ids[0].tolist())
        assert tokenizer.mask_token_id == 4
        with torch.no_grad():
            logits.append(model(**inputs).logits[0].numpy())
    assert [keep[i] for i in ids[1]] == ids[0]
    np.testing.assert_allclose(logits[1][:, : len(keep)], logits[0][:, keep], rtol=0, atol=1e-4)


def test_real_text_in_hundreds_of_languages(tmp_path):
    """The Universal Declaration of Human Rights: three languages kept, all of them read back exactly."""
    by_language: dict[str, list[str]] = {}
    with gzip.open(shared_file("udhr.jsonl.gz"), "rt", encoding="utf-8") as file:
        for line in file:
            record = json.loads(line)
            by_language.setdefault(record["language"], []).append(record["text"])
    assert len(by_language) > 400
    sample = {k: [t[:2000] for t in v[:4]] for k, v in sorted(by_language.items())[::8]}
    kept = sorted(sample)[::20]
    folder = train_tokenizer(sample, 8000, tmp_path / "tokenizer")
    description = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    before = load_tokenizer(folder)
    used = {i for language in kept for text in by_language[language] for i in before.encode(text)}
    keep = ids_to_keep(description, used)
    new_id = {old: new for new, old in enumerate(keep)}
    assert len(keep) < 4000
    (tmp_path / "small").mkdir()
    path = tmp_path / "small" / "tokenizer.json"
    path.write_text(json.dumps(trim_description(description, keep)), encoding="utf-8")
    after = load_tokenizer(path)
    unchanged = 0
    for language, of_language in by_language.items():
        pairs = zip(before.encode_batch(of_language), after.encode_batch(of_language), strict=True)
        for text, (ids, found) in zip(of_language, pairs, strict=True):
            expected = [new_id.get(i) for i in ids]
            if None not in expected:
                assert found == expected
                unchanged += 1
            else:
                assert language not in kept
            assert after.decode(found) == text
    assert unchanged >= sum(len(by_language[language]) for language in kept)


def test_a_checkpoint_is_trimmed_like_its_export(
    whole, corpus, trimmed, tmp_path, monkeypatch, capsys
):
    params, config, _ = load_hf(whole)
    meta = {
        "phase": "decay_all",
        "step": 3,
        "tokens": 30,
        "tokenizer": {"sha256": load_tokenizer(whole).sha256, "path": str(whole)},
        "config": {
            "model": {name: getattr(config, name) for name in config.__dataclass_fields__},
            "data": {"row_length": 128},
        },
    }
    save_params(tmp_path / "run", params, meta)
    output = tmp_path / "small"
    arguments = ("--input", corpus, "--languages", *KEPT, "--output", output)
    status, printed = run_tool(
        "trim_vocabulary", monkeypatch, capsys, "--model", tmp_path / "run", *arguments
    )
    assert status == 0, printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "small"]
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (output / name).read_bytes() == (trimmed[0] / name).read_bytes(), name


def test_refuses(whole, corpus, tmp_path, monkeypatch, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "mine.txt").write_text("")
    arguments = ("--model", whole, "--input", corpus)
    for given_, message in (
        (
            ("--languages", "de", "xx", "--output", tmp_path / "out"),
            "--languages xx: no text in it",
        ),
        (("--output", tmp_path / "mine"), "no export wrote"),
        (("--output", tmp_path / "out", "--multiple_of", 0), "--multiple_of 0: it has to be 1"),
    ):
        status, printed = run_tool("trim_vocabulary", monkeypatch, capsys, *arguments, *given_)
        assert status == 2, printed
        assert message in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine"]
    description = json.loads((whole / "tokenizer.json").read_text(encoding="utf-8"))
    without = {p: i for p, i in description["model"]["vocab"].items() if p != "<0x41>"}
    check_supported(with_model(description, vocab=without | {"A": 9000}), "x")
    for change, message in (
        ({"type": "WordPiece"}, "it is a WordPiece"),
        ({"byte_fallback": False}, "without byte fallback"),
        ({"ignore_merges": True}, "whole words"),
        ({"dropout": 0.1}, "at random"),
        ({"vocab": {p: i for p, i in without.items() if p != "A"}}, "255 of the 256 bytes"),
    ):
        with pytest.raises(UserError, match=message):
            check_supported(with_model(description, **change), "x")


def with_model(description, **changes):
    return description | {"model": description["model"] | changes}


DAMAGES = {
    "tokenizer.json": [
        (b"{", "not a tokenizer.json"),
        (b"[]", "not a tokenizer.json"),
        (b'{"model": {}}', "not a tokenizer.json"),
    ],
    "config.json": [
        (b"{", "config.json is damaged"),
        (b"[]", "does not hold a JSON object"),
        (b"{}", "vocab_size is None"),
        (b'{"vocab_size": 3010, "pad_token_id": 3005}', "no piece with the id 3005"),
        (b'{"vocab_size": 99, "pad_token_id": 0}', "vocab_size is 99"),
    ],
    "tokenizer_config.json": [
        (b"{", "is damaged"),
        (b'{"added_tokens_decoder": []}', "does not go from ids to tokens"),
        (b'{"added_tokens_decoder": {"a": {}}}', "does not go from ids to tokens"),
        (b'{"added_tokens_decoder": {"4000": {}}}', "no piece with the id 4000"),
    ],
}


@pytest.mark.parametrize("file", DAMAGES)
def test_a_damaged_folder_is_refused_in_one_line(file, whole, corpus, tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json", "model.safetensors"):
        if (whole / name).exists():
            (tmp_path / name).write_bytes((whole / name).read_bytes())
    inputs, _ = find_inputs([str(corpus)], None)
    for data, message in DAMAGES[file]:
        (tmp_path / file).write_bytes(data)
        with pytest.raises(UserError, match=message) as error:
            trim_vocabulary(tmp_path, tmp_path / "o", inputs, Fields(), languages=["sw"])
        assert str(tmp_path) in str(error.value)
        assert not (tmp_path / "o").exists()
