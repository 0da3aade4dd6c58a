"""The same text through every format gives the same corpus; tokenised text is taken as it is."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tokenizers
from mds_writer import folder as to_write
from mds_writer import write_mds
from peers import run_under
from prepared import BOS, EOS, OPTIONS, content, read_rows
from tfds_writer import write_tfds

from mmbert_jax.data.sources import Fields, find_inputs, read_slice
from mmbert_jax.data.sources.chunks import CHUNK_TOKENS
from mmbert_jax.data.sources.pieces import Slice
from mmbert_jax.places import filesystem, place

# --- text ---


def write_parquet(folder, records):
    """Small row groups; texts as a dictionary of large strings; the language in a struct, beside other columns."""
    languages = pa.array([{"code": language, "n": i} for i, (language, _) in enumerate(records)])
    texts = pa.array([text for _, text in records], pa.large_string()).dictionary_encode()
    table = pa.table({"url": texts, "meta": languages, "body": texts})
    pq.write_table(table, folder / "a.parquet", row_group_size=17, compression="zstd")
    return folder / "a.parquet", "--text_field", "body", "--language_field", "meta.code"


def write_by_datasets(folder, records):
    (folder / "records.json").write_text(json.dumps(records))
    script = folder / "write.py"
    script.write_text(
        "import json, sys\n"
        "from datasets import Dataset\n"
        "records = json.load(open(sys.argv[1]))\n"
        "columns = zip(*records)\n"
        "Dataset.from_dict(dict(zip(('language', 'text'), columns))).to_parquet(sys.argv[2])\n"
    )
    run_under(
        "sentence-transformers", script, folder / "records.json", folder / "text" / "0.parquet"
    )
    return (folder / "text",)


def write_text_mds(folder, records):
    samples = [{"text": text, "language": language} for language, text in records]
    columns = {"text": "str", "language": "str"}
    write_mds(folder / "recipe.json", [to_write(folder / "mds", columns, samples, "zstd")])
    return (folder / "mds",)


def write_tfds_data_set(folder, records):
    written = write_tfds(folder, {"train": records, "test": records[:3]})
    return written, "--language_field", "meta.language"


def write_nested_jsonl(folder, records):
    lines = [
        json.dumps({"passage": {"text": text, "of": {"lang": language}}})
        for language, text in records
    ]
    (folder / "a.jsonl").write_text("\n".join(lines))
    return (
        folder / "a.jsonl",
        "--text_field",
        "passage.text",
        "--language_field",
        "passage.of.lang",
    )


def write_two_language_fields(folder, records):
    split = [(language[:1], language[1:], text) for language, text in records]
    lines = [json.dumps({"a": a, "b.c": b, "text": text}) for a, b, text in split]
    (folder / "a.jsonl").write_text("\n".join(lines))
    return folder / "a.jsonl", "--language_field", "a,b.c"


@pytest.mark.parametrize(
    "write",
    [
        write_parquet,
        write_by_datasets,
        write_text_mds,
        write_tfds_data_set,
        write_nested_jsonl,
    ],
)
def test_every_format_gives_the_same_corpus(tmp_path, corpus, records, prepare, write):
    path, *options = write(tmp_path, records)
    done = prepare(tmp_path / "c", "--input", path, *options, *OPTIONS, workers=2)
    assert done.returncode == 0, done.stderr
    assert content(tmp_path / "c") == content(corpus[0])


@pytest.mark.parametrize("write", [write_parquet, write_text_mds, write_tfds_data_set])
def test_every_format_is_read_from_a_bucket(request, tmp_path, corpus, records, prepare, write):
    """Parquet and MDS from both kinds; TFDS, whose own library reads it, is refused where it cannot be read."""
    path, *options = write(tmp_path, records)
    path = Path(path)  # from TFDS' own kind
    for store in ("gs_bucket", "s3_bucket"):
        bucket = place(request.getfixturevalue(store))
        system = filesystem(bucket)
        for file in [path] if path.is_file() else path.rglob("*"):
            if file.is_file():
                system.put_file(str(file), str(bucket / file.relative_to(path.parent).as_posix()))
        output = tmp_path / store
        done = prepare(output, "--input", bucket / path.name, *options, *OPTIONS)
        if write is write_tfds_data_set:
            assert done.returncode == 2
            assert (
                f"{bucket / path.name}: array_record reads TFDS data sets from disks" in done.stderr
            )
            continue
        assert done.returncode == 0, done.stderr
        assert content(output) == content(corpus[0])


def test_a_language_of_two_fields(tmp_path, records, prepare):
    path, *options = write_two_language_fields(tmp_path, records)
    done = prepare(tmp_path / "c", "--input", path, *options, *OPTIONS)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "c" / "manifest.json").read_text())
    found = manifest["row_lengths"]["64"]["train"]["languages"]
    assert set(found) == {"d_e", "k_a", "s_w", "j_a", "a_a"}


def test_the_language_from_the_path(tmp_path, corpus, records, prepare):
    """As FineWeb2 lies on disk: a folder a language and script, and beside it what was removed."""
    for language in {language for language, _ in records}:
        texts = [text for code, text in records if code == language]
        for folder in (f"data/{language}/train", f"data/{language}_removed/train"):
            (tmp_path / folder).mkdir(parents=True)
            table = pa.table({"text": texts, "language": ["wrong"] * len(texts)})
            pq.write_table(table, tmp_path / folder / "000.parquet")
    pattern = ("--language_from_path", "data/{language}/train")
    done = prepare(tmp_path / "c", "--input", tmp_path / "data", *pattern, *OPTIONS)
    assert done.returncode == 0, done.stderr
    assert "5 folders of what was removed (" in done.stderr
    assert content(tmp_path / "c")[1] == content(corpus[0])[1]


# --- tokens ---


@pytest.fixture(scope="module")
def tokenised(trained, records, tmp_path_factory):
    """(folder, its texts in order): documents of 1 to some 40,000 tokens, cut by mmBERT's rule, in small shards."""
    draw = np.random.default_rng(0)
    encode = tokenizers.Tokenizer.from_file(str(trained / "tokenizer.json")).encode
    texts = [text for _, text in records if text.strip()]
    for n in (60, 150, 300):
        texts.insert(int(draw.integers(len(texts))), "\n".join(texts[:n] * 3))
    samples, kept = [], []
    for i, text in enumerate(texts):
        ids = [*encode(text, add_special_tokens=False).ids, EOS]
        rows = [ids[at : at + CHUNK_TOKENS] for at in range(0, len(ids), CHUNK_TOKENS)]
        if len(rows) > 1 and len(rows[-1]) < 32:
            rows.pop()
        elif len(rows) > 1 and len(rows[-1]) < 512:
            moved = int(draw.integers(1, CHUNK_TOKENS - len(rows[-1])))
            rows[-2:] = [rows[-2][:-moved], rows[-2][-moved:] + rows[-1]]
        samples += [{"input_ids": [BOS, *row], "id": f"doc {i}"} for row in rows]
        kept.append(text)
    folder = tmp_path_factory.mktemp("tokens")
    columns = {"input_ids": "ndarray:uint32", "id": "str"}
    half = len(samples) // 2
    while samples[half]["id"] == samples[half - 1]["id"]:
        half += 1
    folders = [
        to_write(folder / "train/x/split_0", columns, samples[:half], None, 20_000),
        to_write(folder / "train/x/split_1-dup", columns, samples[half:], "zstd", 20_000),
    ]
    write_mds(folder / "recipe.json", folders, merge=[folder / "train/x"])
    assert max(len(s["input_ids"]) for s in samples) > 8000
    return folder / "train", kept


@pytest.mark.parametrize("stripes", [1, 2, 5])
def test_documents_are_found_once_wherever_shards_are_cut(tokenised, trained, stripes):
    folder, texts = tokenised
    inputs, notes = find_inputs([folder], "xx")
    assert len(inputs) > 10
    assert notes == []
    decode = tokenizers.Tokenizer.from_file(str(trained / "tokenizer.json")).decode
    found = []
    for i, source in enumerate(inputs):
        for stripe in range(stripes):
            part = Slice(i, source, 0, source.size, source.size, stripe, stripes)
            for batch in read_slice(part, Fields(language="xx", ends=(BOS, EOS))):
                found += [decode(d.tokens.tolist(), skip_special_tokens=False) for d in batch[0]]
    assert found == texts


def test_tokens_are_packed_as_they_are(tokenised, trained, prepare, tmp_path):
    folder, texts = tokenised
    options = ("--language", "xx", "--row_length", 16384, "--held_out", 0)
    done = prepare(tmp_path / "c", "--input", folder, *options, workers=2)
    assert done.returncode == 0, done.stderr
    decode = tokenizers.Tokenizer.from_file(str(trained / "tokenizer.json")).decode
    pieces = {}
    for tokens, ids in read_rows(tmp_path / "c", 16384, "train"):
        for segment, document in zip(tokens, ids, strict=True):
            assert segment[0] == BOS
            pieces.setdefault(document, []).append(segment[1:])
    found = []
    for parts in pieces.values():
        (end,) = [part for part in parts if part[-1] == EOS]
        if len(parts) == 1:
            found.append(decode(end[:-1], skip_special_tokens=False))
    short = [text for text in texts if text in set(found)]
    assert len(found) > 150
    assert sorted(found) == sorted(short)
    manifest = json.loads((tmp_path / "c" / "manifest.json").read_text())
    assert manifest["documents"] == len(texts)
    assert manifest["bytes"] == 0


def test_tokens_of_another_tokeniser_are_refused(tokenised, prepare, tmp_path):
    folder = tmp_path / "mds"
    shutil.copytree(tokenised[0] / "x" / "split_0", folder)
    shard = sorted(folder.glob("*.mds"))[0]
    data = shard.read_bytes()
    at = data.rindex(np.array([EOS], "<u4").tobytes())
    shard.write_bytes(data[: at - 4] + np.array([300_000], "<u4").tobytes() + data[at:])
    done = prepare(tmp_path / "c", "--input", folder, "--language", "xx", *OPTIONS)
    assert done.returncode == 2
    assert f"{shard}, sample" in done.stderr
    assert "has the id 300000 within the text" in done.stderr
    done = prepare(tmp_path / "c", "--input", folder, *OPTIONS)
    assert "rows of tokens do not say what their language is; name it with" in done.stderr
