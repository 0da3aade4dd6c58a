"""ProLong's kind of MDS, another tokeniser's tokens: the corpus is that of the texts."""

import json

import other_tokenizers
import pytest
from mds_writer import folder as to_write
from mds_writer import write_mds
from prepared import OPTIONS, content

from mmbert_jax.data.prepare import Settings, prepare_corpus
from mmbert_jax.data.sources import Fields, find_inputs, pieces

ROW = 700
FOR_BOTH = ("--language", "xx", "--deduplicate", "exact", "--normalise", *OPTIONS)


@pytest.fixture(scope="module")
def prolong(records, tmp_path_factory):
    """A folder: mds, documents in full rows, cut at a row's end; tokenizer.json; text.jsonl, what is left of them."""
    folder = tmp_path_factory.mktemp("prolong")
    documents = [text for _, text in records if text]
    llama = other_tokenizers.llama(documents)
    llama.save(str(folder / "tokenizer.json"))
    bos, eos = map(llama.token_to_id, ("<|begin_of_text|>", "<|end_of_text|>"))
    samples, texts = [], []
    row, indices = [], []

    def end_row():
        sample = {"input_ids": row[:], "indices": indices[:], "domain": "x", "length": len(row)}
        samples.append(sample)
        row.clear()
        indices.clear()

    for document in documents:
        data, ids = document.encode(), [bos, *llama.encode(document).ids[1:], eos]
        sizes = [
            len(llama.id_to_token(i)) if i not in (bos, eos) else 0 for i in ids
        ]  # byte-level pieces spell a byte by a character
        assert sum(sizes) == len(data)
        at = byte = 0
        while at < len(ids):
            n = min(ROW - len(row), len(ids) - at)
            indices.append([len(row), len(row) + n])
            row += ids[at : at + n]
            size = sum(sizes[at : at + n])
            if size:
                texts.append(data[byte : byte + size].decode("utf-8", "ignore"))
            at, byte = at + n, byte + size
            if len(row) == ROW:
                end_row()
    end_row()
    columns = {"input_ids": "ndarray:uint32", "indices": "ndarray:uint32"}
    columns |= {"domain": "str", "length": "int"}
    write_mds(folder / "recipe.json", [to_write(folder / "mds", columns, samples)])
    lines = (json.dumps({"text": text}) for text in texts)
    (folder / "text.jsonl").write_text("\n".join(lines))
    assert "".join(texts) != "".join(documents)  # characters were cut
    return folder


@pytest.fixture(scope="module")
def from_texts(prolong, prepare, tmp_path_factory):
    output = tmp_path_factory.mktemp("texts") / "c"
    done = prepare(output, "--input", prolong / "text.jsonl", *FOR_BOTH)
    assert done.returncode == 0, done.stderr
    return output


def test_the_corpus_is_that_of_the_texts(prolong, from_texts, prepare, tmp_path):
    folder = prolong
    options = ("--input", folder / "mds", "--tokens_of", folder, *FOR_BOTH, "--keep_parts")
    done = prepare(tmp_path / "c", *options)
    assert done.returncode == 0, done.stderr
    files, manifest = content(tmp_path / "c")
    assert set(manifest.pop("tokens_of")) == {"sha256", "ends"}
    assert (files, manifest) == content(from_texts)
    assert manifest["documents"] > 200
    assert manifest["dropped_documents"]["duplicate"] >= 4
    # Finished parts are of this tokeniser's reading, and of no other's.
    again = prepare(tmp_path / "c", *options, "--overwrite")
    assert "1 of 1 parts are finished already" in again.stderr
    (tmp_path / "other.json").write_text((folder / "tokenizer.json").read_text() + "\n")
    options = [tmp_path / "other.json" if x == folder else x for x in options]
    again = prepare(tmp_path / "c", *options, "--overwrite")
    assert again.returncode == 0
    assert "finished already" not in again.stderr


def test_documents_are_numbered_on_through_a_shard_s_pieces(prolong, model, tmp_path, monkeypatch):
    folder = prolong
    found = []
    for largest in (pieces.LARGEST, 1 << 14):
        monkeypatch.setattr(pieces, "LARGEST", largest)
        monkeypatch.setattr(pieces, "LEAST", 1 << 10)
        inputs, _ = find_inputs([folder / "mds"], "xx")
        settings = Settings(model, Fields(language="xx"), (64,), 0.25, 0, tokens_of=folder)
        output = tmp_path / str(largest)
        prepare_corpus(inputs, settings, output, 1, "test", keep_parts=True)
        found.append(content(output))
        parts = len([*output.with_name(f"{largest}.parts").glob("*.index")])
        assert parts == (1 if len(found) == 1 else -(-inputs[0].size // largest))
    assert parts > 3
    assert found[0] == found[1]


def test_what_it_cannot_read_is_said(prolong, prepare, tmp_path):
    folder = prolong
    of = ("--tokens_of", folder, *OPTIONS)
    done = prepare(tmp_path / "c", "--input", folder / "text.jsonl", "--language", "xx", *of)
    assert (done.returncode, "--tokens_of: the inputs have no MDS" in done.stderr) == (2, True)
    done = prepare(tmp_path / "c", "--input", folder / "mds", *of)
    assert "do not say what their language is; name it with --language" in done.stderr
    sample = {"input_ids": [100_000], "indices": [[0, 1]]}
    good = {"input_ids": [60, 61], "indices": [[0, 2]]}
    columns = {"input_ids": "ndarray:uint32", "indices": "ndarray:int64"}
    write_mds(tmp_path / "recipe.json", [to_write(tmp_path / "mds", columns, [sample, good])])
    of = (*of, "--input", tmp_path / "mds", "--language", "xx")
    done = prepare(tmp_path / "c", *of)
    assert done.returncode == 2
    assert "shard.00000.mds, sample 1: has an id that --tokens_of does not have" in done.stderr
    done = prepare(tmp_path / "c", *of, "--on_error", "skip")
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "c" / "manifest.json").read_text())
    assert manifest["documents"] == 1
    assert manifest["faulty_records"] == {"an id that --tokens_of does not have": 1}
