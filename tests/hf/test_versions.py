"""Exported folders under `transformers` 4.48, 4.57 and the newest: every head, and the tokeniser.

Each version runs once, in a process of its own (scripts/read_folders.py), on all of them.
"""

import ast
import dataclasses
import gzip
import json
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
import sentencepiece
from peers import NEWEST, ROOT, run_under
from shared_data import SHARED_DATA, shared_file
from small_tokenizer import write_small_tokenizer

from mmbert_jax.checkpoint import restore_params, save_params
from mmbert_jax.data.tokenizer import load_tokenizer
from mmbert_jax.data.train_tokenizer import train
from mmbert_jax.hf.export import export_hf
from mmbert_jax.hf.imported import import_meta
from mmbert_jax.hf.load import load_model
from mmbert_jax.hf.tokenizer import to_hf_files
from mmbert_jax.model.config import ModelConfig
from mmbert_jax.model.heads import (
    ENCODER,
    SEQUENCES,
    SPANS,
    TOKENS,
    HeadConfig,
    init_params,
    outputs,
)

pytest.importorskip("torch")
pytest.importorskip("transformers")

TOLERANCE = 1e-4
VERSIONS = {"transformers-4.48": "4.48.", "transformers-4.57": "4.57.", NEWEST: "5."}
CONFIG = ModelConfig(
    vocab_size=340,
    hidden_size=64,
    num_layers=4,
    num_heads=2,
    intermediate_size=56,
    global_rope_theta=10_000.0,
    local_rope_theta=700.0,
    norm_eps=3e-4,
)
LABELS = ("negativ", "neither", "好")
HEADS = {
    "mlm": HeadConfig(),
    "mlm_bfloat16": HeadConfig(),
    "encoder": HeadConfig(ENCODER),
    "classes_mean": HeadConfig(SEQUENCES, LABELS, problem_type="single_label_classification"),
    "classes_cls": HeadConfig(
        SEQUENCES, LABELS[:2], pooling="cls", activation="tanh", dense_bias=True, dropout=0.1
    ),
    "tokens": HeadConfig(TOKENS, (*LABELS, "B-PER", "I-PER"), activation="silu"),
    "spans": HeadConfig(SPANS, ("start", "end")),
}
# In 20 scripts.
LANGUAGES = (
    "amh arb ben bul ces cmn deu ell eng fin fra guj hau heb hin hun hye ind jpn kat khm kin kor lao mal mya nld pes"
    " pol por rus sin spa swh tam tel tha tur vie yor"
).split()
# Around half the window and the whole one, and well beyond it.
LENGTHS = (5, 65, 129, 300)
LONGEST = 8192


def random_params(head: HeadConfig, seed: int) -> dict:
    """A model in which every tensor matters: norm weights away from 1, biases away from 0, attention not uniform."""
    rng = np.random.default_rng(seed)

    def draw(path, x):
        name = path[-1].key
        if "norm" in name:
            return rng.uniform(0.5, 1.5, x.shape).astype(np.float32)
        if x.ndim == 1:
            return rng.normal(0, 0.5, x.shape).astype(np.float32)
        return rng.normal(0, CONFIG.hidden_size**-0.5, x.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, init_params(CONFIG, 0, head))


def meta_of(head: HeadConfig) -> dict:
    model = dataclasses.asdict(CONFIG)
    config = {"model": model, "data": {"row_length": LONGEST}, "head": dataclasses.asdict(head)}
    return {
        "phase": "imported",
        "step": 0,
        "tokens": 0,
        "import": {"model": "x/y"},
        "config": config,
    }


def write_tokenizer_and_texts(folder: Path) -> None:
    """A tokeniser of 6,000 pieces trained on texts in 40 languages, as sentencepiece and as exported; those texts."""
    with gzip.open(SHARED_DATA / "udhr.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    texts = [row["text"] for row in rows if row["language"] in LANGUAGES and row["section"] < 3]
    assert {row["language"] for row in rows} >= set(LANGUAGES)
    sample = {"": [line for text in texts for line in text.splitlines()]}
    (folder / "sentencepiece.model").write_bytes(train(sample, 6000, 0.995))
    (folder / "tokenizer").mkdir()
    to_hf_files(load_tokenizer(folder / "sentencepiece.model"), folder / "tokenizer", LONGEST)
    awkward = ["  two  spaces ", " ", "\n\n x\t", "naïve 🙂 𓀀 e\u0301 12345"]
    (folder / "texts.json").write_text(json.dumps(texts + awkward))


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Folders with every head, and batches to put through them."""
    folder = tmp_path_factory.mktemp("versions")
    tokenizer = load_tokenizer(write_small_tokenizer(folder / "small"))
    for seed, (name, head) in enumerate(HEADS.items()):
        dtype = "bfloat16" if name.endswith("bfloat16") else "float32"
        said = export_hf(
            folder / "models" / name,
            random_params(head, seed),
            meta_of(head),
            tokenizer,
            dtype=dtype,
        )
        assert "outputs equal those of transformers" in said
    if (SHARED_DATA / "udhr.jsonl.gz").exists():
        write_tokenizer_and_texts(folder)
    rng = np.random.default_rng(0)
    ids = rng.integers(5, CONFIG.vocab_size, (len(LENGTHS), max(LENGTHS)))
    mask = (np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]).astype(np.int64)
    longest = rng.integers(5, CONFIG.vocab_size, (1, LONGEST))
    np.savez(
        folder / "batches.npz",
        padded=ids * mask,
        padded_mask=mask,
        longest=longest,
        longest_mask=np.ones_like(longest),
    )
    return folder


@pytest.fixture(scope="module", params=VERSIONS)
def read(request, work):
    """(version, where its results lie)."""
    output = work / f"by_{request.param}"
    version = run_under(request.param, ROOT / "tests/hf/scripts/read_folders.py", work, output)
    assert version.startswith(VERSIONS[request.param])
    return request.param, output


def ours(name: str, batches, batch: str) -> np.ndarray:
    head, dtype = HEADS[name], np.float32
    params = random_params(head, list(HEADS).index(name))
    if name.endswith("bfloat16"):
        params = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16).astype(dtype), params)
    mask = batches[f"{batch}_mask"].astype(np.int32)
    positions = np.broadcast_to(np.arange(mask.shape[1], dtype=np.int32), mask.shape) * mask
    tokens = batches[batch].astype(np.int32)
    return np.asarray(outputs(params, CONFIG, tokens, mask, positions, head))


def test_logits_of_every_head(read, work):
    """In float32, at all positions that are not padding, and for one text of 8192 tokens."""
    version, output = read
    batches = np.load(work / "batches.npz")
    present = set(HEADS) - (
        {"spans"} if version == "transformers-4.48" else set()
    )  # has no such class
    assert {path.stem for path in output.glob("*.npz")} == present
    for name in sorted(present):
        theirs = np.load(output / f"{name}.npz")
        expected = "torch.bfloat16" if name.endswith("bfloat16") else "torch.float32"
        assert theirs["stored_as"] == expected
        for batch in ("padded", "longest") if HEADS[name].kind == "mlm" else ("padded",):
            mine = ours(name, batches, batch)
            if HEADS[name].kind == SEQUENCES:
                mine, valid = mine[:, 0], np.ones(len(mine), bool)
            else:
                valid = batches[f"{batch}_mask"] > 0
            difference = np.abs(mine - theirs[batch])[valid].max()
            size = np.abs(mine[valid]).max()
            print(
                f"{version} {name} {batch}: largest difference {difference:.1e} at values up to {size:.1f}"
            )
            assert size > 0.5, "the outputs are too flat to compare"
            assert difference < TOLERANCE, (name, batch)


def test_what_this_version_saves_comes_back_bit_for_bit(read, work):
    """Its config.json, its generation of RoPE fields included, and its tensors' names."""
    version, output = read
    for folder in sorted((output / "saved").iterdir()):
        head = HEADS[folder.name]
        before, after = load_model(work / "models" / folder.name), load_model(folder)
        jax.tree.map(np.testing.assert_array_equal, after.params, before.params)
        model = after.config.model
        if (
            version == NEWEST
        ):  # saves the new fields alone, which its elders misread: nothing is lost here
            assert "local_rope_theta" not in json.loads((folder / "config.json").read_text())
        assert dataclasses.replace(model, attention_output_dropout=0.1) == CONFIG
        assert after.config.head == head
        assert after.config.special_ids == before.config.special_ids


@pytest.mark.parametrize("name", HEADS)
def test_round_trip_through_a_checkpoint(name, work, tmp_path):
    """Folder -> checkpoint -> folder: the same bytes, whatever the head."""
    folder = work / "models" / name
    model = load_model(folder)
    save_params(tmp_path / "run", model.params, import_meta(folder, model.config))
    params, meta = restore_params(tmp_path / "run")
    dtype = json.loads((folder / "config.json").read_text())["torch_dtype"]
    export_hf(tmp_path / name, params, meta, load_tokenizer(folder), dtype=dtype)
    for file in ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name / file).read_bytes() == (folder / file).read_bytes(), file


def expected_offsets(text: str, processor, ids: list[int]) -> list[tuple[int, int]]:
    """Where each piece stands in the text, from the pieces' own letters; a character's bytes share its place."""
    offsets, at, i = [], 0, 0
    while i < len(ids):
        if processor.is_byte(ids[i]):
            width = len(text[at].encode())
            offsets += [(at, at + 1)] * width
            at, i = at + 1, i + width
        else:
            size = len(processor.id_to_piece(ids[i]))
            offsets.append((at, at + size))
            at, i = at + size, i + 1
    assert at == len(text)
    return offsets


def test_tokens_and_offsets_in_40_languages(read, work):
    """AutoTokenizer's ids are our tokeniser's in all versions, and its offsets are where the pieces stand."""
    shared_file("udhr.jsonl.gz")
    version, output = read
    ours = load_tokenizer(work / "sentencepiece.model")
    processor = sentencepiece.SentencePieceProcessor(model_file=str(work / "sentencepiece.model"))
    texts = json.loads((work / "texts.json").read_text())
    ids = ours.encode_batch(texts)
    assert load_tokenizer(work / "tokenizer").encode_batch(texts) == ids
    theirs = json.loads((output / "tokens.json").read_text())
    assert theirs["ids"] == [[2, *row, 1] for row in ids]
    assert theirs["pair"] == [2, *ids[0], 1, *ids[1], 1]
    assert theirs["model_max_length"] == LONGEST
    some_bytes = False
    for text, row, offsets in zip(texts, ids, theirs["offsets"], strict=True):
        assert offsets[0] == offsets[-1] == [0, 0]
        some_bytes |= any(map(processor.is_byte, row))
        expected = expected_offsets(text, processor, row)
        assert [tuple(place) for place in offsets[1:-1]] == expected, (version, text[:80])
    assert some_bytes, "no text has a character that is spelled in bytes"


def test_the_announced_way_to_fill_masks(read, work):
    """Five predictions for each text, and they are the ones that our own logits rank highest."""
    folder = work / "models" / "mlm"
    lines = [ast.literal_eval(x) for x in (read[1] / "filled.txt").read_text().splitlines()]
    tokenizer, params = load_tokenizer(folder), random_params(HEADS["mlm"], 0)
    texts = (
        "The capital of France is <mask>.",
        "La capital de España es <mask>.",
        "Die Hauptstadt von Deutschland ist <mask>.",
    )
    for text, predictions in zip(texts, lines, strict=True):
        tokens = np.array([[2, *tokenizer.encode(text), 1]], np.int32)
        (at,) = np.flatnonzero(tokens[0] == 4)
        row = (tokens, np.ones_like(tokens), np.arange(tokens.size, dtype=np.int32)[None])
        logits = np.asarray(outputs(params, CONFIG, *row))[0, at]
        pieces = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
        names = {i: piece for piece, i in pieces.items()}
        assert len(predictions) == 5
        best = [names.get(int(i), "") for i in np.argsort(-logits)[:5]]
        for name, prediction in zip(best, predictions, strict=True):
            if not name.startswith("<0x"):  # a lone byte is no text
                assert prediction == name.replace("▁", " ")
