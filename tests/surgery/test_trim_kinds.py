"""Trimming tokenisers of ModernBERT's and XLM-R's kind, and the real Gemma 2 tokeniser."""

import functools
import gzip
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from other_tokenizers import byte_level, unigram, write_by_transformers
from shared_data import shared_file
from tiny import tiny_config

from mmbert_jax.checkpoint import save_params
from mmbert_jax.data.cldr_text import documents
from mmbert_jax.data.prepare import prepare_corpus
from mmbert_jax.data.prepare.settings import Settings
from mmbert_jax.data.sources import Fields, find_inputs
from mmbert_jax.data.tokenizer import load_tokenizer
from mmbert_jax.hf.config import to_hf
from mmbert_jax.hf.imported import import_meta
from mmbert_jax.hf.load import load_hf, load_model
from mmbert_jax.hf.names import to_theirs
from mmbert_jax.hf.weights import save_weights
from mmbert_jax.metrics import read_metrics
from mmbert_jax.model.config import ModelConfig
from mmbert_jax.model.heads import encode, init_params
from mmbert_jax.surgery.trim import trim_vocabulary
from mmbert_jax.surgery.vocabulary import ids_to_keep, trim_description
from mmbert_jax.train import train

KEPT = ("de", "el")
LANGUAGES = (*KEPT, "en", "th", "ja")
ODD = (
    "",
    " ",
    "   two  spaces ",
    "\n\n\ta\n",
    "𒀀𒁀 🜁",
    "naïve café e\u0301",
    "<s> [CLS] <0x41>",
    "１２ ㎏ 각",
)


@functools.cache
def texts(language: str) -> list[str]:
    return list(documents(language, 60))


def write_model(folder: Path, vocab_size: int, special_ids=None) -> None:
    """A model of one layer with random weights."""
    config = ModelConfig(
        vocab_size=vocab_size, hidden_size=32, num_layers=2, num_heads=2, intermediate_size=48
    )
    params = jax.tree.map(np.asarray, init_params(config, 0))
    save_weights(folder, to_theirs(params, config), 10**9)
    fields = to_hf(config, 128, "float32") | (special_ids or {})
    (folder / "config.json").write_text(json.dumps(fields))


@pytest.fixture(scope="module", params=["byte_level", "unigram"])
def whole(request, tmp_path_factory):
    """A Hugging Face folder with a tokeniser of another family, whose padding and post-processor name ids, too."""
    folder = tmp_path_factory.mktemp(request.param) / "whole"
    sample = [text for language in LANGUAGES for text in texts(language)[:40]]
    made = {"byte_level": byte_level, "unigram": unigram}[request.param](sample, 2000)
    write_by_transformers(request.param, folder, made)
    path = folder / "tokenizer.json"
    description = json.loads(path.read_text(encoding="utf-8"))
    ids = {token["content"]: token["id"] for token in description["added_tokens"]}
    bos, eos, pad = ("<s>", "</s>", "<pad>") if "<s>" in ids else ("[CLS]", "[SEP]", "[PAD]")
    description["padding"] = {
        "strategy": "BatchLongest",
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": ids[pad],
        "pad_type_id": 0,
        "pad_token": pad,
    }
    description["post_processor"] = {
        "type": "RobertaProcessing",
        "sep": [eos, ids[eos]],
        "cls": [bos, ids[bos]],
        "trim_offsets": True,
        "add_prefix_space": False,
    }
    path.write_text(json.dumps(description), encoding="utf-8")
    special = {"pad": pad, "bos": bos, "cls": bos, "eos": eos, "sep": eos}
    write_model(folder, 2100, {f"{name}_token_id": ids[piece] for name, piece in special.items()})
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for language in LANGUAGES:
            for text in texts(language)[:40]:
                file.write(json.dumps({"language": language, "text": text}) + "\n")
    return path


def trim(source, output, path, languages):
    return trim_vocabulary(
        source, output, find_inputs([str(path)], None)[0], Fields(), languages=languages
    )


@pytest.fixture(scope="module")
def trimmed(whole, corpus):
    folder = whole.parent / "small"
    report = trim(whole, folder, corpus, KEPT)
    for language, cost in report["languages"].items():
        assert (cost["same"] == cost["documents"] == 40) == (language in KEPT)
    assert report["vocabulary"]["after"] < 0.75 * report["vocabulary"]["before"]
    assert report["rows"]["after"] % 64 == 0
    return folder, report["kept_ids"]


@functools.cache
def load(folder: Path) -> tokenizers.Tokenizer:
    """As `tokenizers` reads it, without anything of this project's."""
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    return tokenizer


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_any_text_of_kept_tokens_is_split_alike(whole, trimmed, data):
    """Texts put together from pieces of real ones, cut anywhere; of others nothing becomes unknown that was not."""
    folder, keep = trimmed
    before, after, new_id = load(whole), load(folder), {old: new for new, old in enumerate(keep)}
    sentences = [text for language in (*KEPT, "en", "ja") for text in texts(language)[40:48]]
    pieces = data.draw(st.lists(st.sampled_from((*sentences, *ODD)), min_size=1, max_size=4))
    cuts = [data.draw(st.tuples(st.integers(0, len(p)), st.integers(0, len(p)))) for p in pieces]
    text = "".join(p[min(cut) : max(cut)] for p, cut in zip(pieces, cuts, strict=True))
    ids, found = before.encode(text), after.encode(text)
    expected = [new_id.get(i) for i in ids.ids]
    if None not in expected:
        assert found.ids == expected
    assert found.tokens.count("<unk>") == ids.tokens.count("<unk>")
    assert after.decode(found.ids) == before.decode(ids.ids)


def test_the_same_hidden_states_and_special_tokens(whole, trimmed):
    folder, keep = trimmed
    new_id = {old: new for new, old in enumerate(keep)}
    before, after = load_tokenizer(whole), load_tokenizer(folder)
    special = before.special
    for role in ("pad", "bos", "eos", "unk", "mask"):
        assert getattr(after.special, role) == new_id[getattr(special, role)]
    (full, config, _), (small, small_config, _) = load_hf(whole), load_hf(folder)
    rows, small_rows = [], []
    for text in texts("de")[:40]:
        ids = load(whole).encode(text).ids
        assert (ids[0], ids[-1]) == (special.bos, special.eos)
        if len(ids) >= 12:
            rows.append(ids[:12])
            small_rows.append(load(folder).encode(text).ids[:12])
    assert len(rows) >= 8
    segments = np.ones((8, 12), np.int32)
    positions = np.broadcast_to(np.arange(12, dtype=np.int32), segments.shape)
    hidden = encode(full, config, np.array(rows[:8]), segments, positions)
    found = encode(small, small_config, np.array(small_rows[:8]), segments, positions)
    np.testing.assert_array_equal(found, hidden)


def test_transformers_reads_the_tokeniser_and_the_same_ids(whole, trimmed):
    transformers = pytest.importorskip("transformers")
    folder, keep = trimmed
    before, after = (transformers.AutoTokenizer.from_pretrained(path) for path in (whole, folder))
    batch = [*texts("el")[:3], f"a {before.mask_token} b"]
    ids, found = (t(batch, padding=True)["input_ids"] for t in (before, after))
    for a, b in zip(ids[:3], found[:3], strict=True):
        assert [keep[i] for i in b] == a
    assert found[3].count(after.mask_token_id) == 1
    fields = json.loads((folder / "config.json").read_text())
    assert fields["pad_token_id"] == after.pad_token_id
    assert fields["cls_token_id"] == fields["bos_token_id"] == after.cls_token_id
    assert fields["sep_token_id"] == fields["eos_token_id"] == after.sep_token_id


def test_the_price_of_an_unknown_character_stays():
    """By hand: it is 10 below the lowest score, -200 of "zz". At -60 one more unknown in "abcde" would cost less."""
    vocabulary = [["<unk>", 0.0], ["ab", -50.0], ["de", -50.0], ["bcd", -1.0], ["zz", -200.0]]
    vocabulary += [["yy", -100.0]]
    model = {"type": "Unigram", "unk_id": 0, "vocab": vocabulary, "byte_fallback": False}
    description = json.loads(tokenizers.Tokenizer(tokenizers.models.Unigram()).to_str())
    description |= {"added_tokens": [], "model": model}
    keep = ids_to_keep(description, [1, 2, 3])
    assert keep == [0, 1, 2, 3, 4]

    def split(ids):
        small = trim_description(description, ids)
        assert small["model"]["vocab"] == [vocabulary[i] for i in ids]
        return tokenizers.Tokenizer.from_str(json.dumps(small)).encode("abcde").tokens

    assert split(range(6)) == split(keep) == ["ab", "c", "de"]
    assert split([0, 1, 2, 3]) == ["a", "bcd", "e"]


# --- the real one ---


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    """A model of two narrow layers with Gemma 2's 256,000 tokens, help pages of three languages, trimmed to two."""
    folder = tmp_path_factory.mktemp("gemma")
    (folder / "whole").mkdir()
    packed = shared_file("gemma2_tokenizer.json.gz").read_bytes()
    (folder / "whole" / "tokenizer.json").write_bytes(gzip.decompress(packed))
    write_model(folder / "whole", 256_000)
    pages: dict[str, list[str]] = {"fin": [], "tur": [], "jpn": []}
    with gzip.open(shared_file("help.jsonl.gz"), "rt", encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            of_language = pages.get(record["language"], ())
            if len(of_language) < 40 and record["language"] in pages:
                of_language.append(record["text"][:3000])
                if min(map(len, pages.values())) == 40:
                    break
    records = [
        json.dumps({"language": language, "text": text})
        for language, of_language in pages.items()
        for text in of_language
    ]
    (folder / "text.jsonl").write_text("\n".join(records))
    report = trim(folder / "whole", folder / "small", folder / "text.jsonl", ("fin", "tur"))
    return folder, report, pages


def test_gemmas_own_tokeniser_is_trimmed(gemma):
    """Kept texts keep their tokens and hidden states; all texts, tabs, spaces, newlines and bytes come back."""
    folder, report, pages = gemma
    keep = report["kept_ids"]
    costs = report["languages"]
    assert {name for name, cost in costs.items() if cost["same"] == 40} == {"fin", "tur"}
    assert costs["jpn"]["tokens_after"] > 1.3 * costs["jpn"]["tokens_before"]
    assert 2000 < len(keep) < 10_000
    assert report["rows"]["after"] % 64 == 0
    before, after = load(folder / "whole"), load(folder / "small")
    ids = [x.ids for x in before.encode_batch(pages["fin"], add_special_tokens=False)]
    found = [x.ids for x in after.encode_batch(pages["fin"], add_special_tokens=False)]
    assert [[keep[i] for i in of_text] for of_text in found] == ids

    odd = ["\t", "\ta\t\t\tb", " " * 40 + "x" + " " * 7, "\n" * 35, "\r\n <b></b>\v\f"]
    odd += ["".join(map(chr, range(1, 256))), "".join(map(chr, range(0x400, 0x3000, 7)))]
    odd += [chr(c) for c in (0, 0x7F, 0x10FFFF)]
    for text in (*odd, *pages["jpn"][:10]):
        tokens = after.encode(text, add_special_tokens=False).ids
        assert 3 not in tokens
        assert after.decode(tokens, skip_special_tokens=False) == text
    for byte in range(256):
        piece = "\t" if byte == 9 else f"<0x{byte:02X}>"
        assert keep[after.token_to_id(piece)] == before.token_to_id(piece)

    (full, config, _), (small, small_config, _) = (
        load_hf(folder / "whole"),
        load_hf(folder / "small"),
    )
    rows = np.array([x[:64] for x in ids if len(x) >= 64][:8])
    small_rows = np.array([x[:64] for x in found if len(x) >= 64][:8])
    segments = np.ones_like(rows)
    positions = np.broadcast_to(np.arange(64, dtype=np.int32), rows.shape)
    np.testing.assert_array_equal(
        encode(small, small_config, small_rows, segments, positions),
        encode(full, config, rows, segments, positions),
    )


def test_the_trimmed_model_goes_on_training(gemma, tmp_path, monkeypatch):
    """Text, corpus, three steps; random tokens are the tokeniser's, not rows of the embedding that no token has."""
    from mmbert_jax import step

    folder, report, _ = gemma
    small, masks = folder / "small", []
    model = load_model(small)
    save_params(tmp_path / "start", model.params, import_meta(small, model.config))
    inputs, _ = find_inputs([str(folder / "text.jsonl")], None)
    settings_ = Settings(small, Fields(), row_lengths=(64,), held_out=0.1)
    prepare_corpus(inputs, settings_, tmp_path / "corpus", engine=1, source="text")
    config = tiny_config(
        data__corpus=str(tmp_path / "corpus"),
        init_from=str(tmp_path / "start"),
        train__tokens=64 * 16 * 3,
        train__batch_warmup_tokens=0,
        train__loss_chunk=1000,
        optimizer__warmup_tokens=0,
        mesh__data=4,
        mesh__tensor=2,
        eval__groups={"all": ("fin", "tur")},
    )
    config.model.update(import_meta(small, model.config)["config"]["model"])
    real = step.mask_tokens

    def mask_tokens(*arguments, vocabulary, **options):
        masks.append(vocabulary)
        return real(*arguments, vocabulary=vocabulary, **options)

    monkeypatch.setattr(step, "mask_tokens", mask_tokens)
    train(config, tmp_path / "run")
    losses = [record["loss"] for record in read_metrics(tmp_path / "run") if "loss" in record]
    assert len(losses) == 3
    assert np.isfinite(losses).all()
    assert set(masks) == {report["vocabulary"]["after"]} != {report["rows"]["after"]}
