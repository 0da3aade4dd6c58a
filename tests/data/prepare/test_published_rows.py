"""mmBERT's published form of data, made of real pages with the real Gemma 2 tokeniser, by other libraries than ours."""

import gzip
import itertools
import json
from collections import Counter

import pytest
from mds_writer import folder as to_write
from mds_writer import write_mds
from prepared import BOS, EOS, read_rows
from shared_data import shared_file

# As jhu-clsp cut their documents, see data/sources/chunks.py.
CHUNK, SHORTEST, FILLED_UP = 8190, 32, 512
# Pages of a document, of which there are so many a language; real pages are at most 4000 characters long.
DOCUMENTS = [1] * 10 + [25, 45, 70]
# All of a document in one piece.
ROW = 1 << 18
OPTIONS = ("--row_length", ROW, "--held_out", 0)


def cut(ids):
    """Chunks of a document that ends in EOS, and what became of the last one."""
    chunks, became = [ids[at : at + CHUNK] for at in range(0, len(ids), CHUNK)], "kept"
    tail = len(chunks[-1])
    if len(chunks) > 1 and tail < SHORTEST:
        chunks, became = chunks[:-1], "dropped"
    elif len(chunks) > 1 and tail < FILLED_UP:
        chunks[-2:] = [chunks[-2][: tail - CHUNK], chunks[-2][tail - CHUNK :] + chunks[-1]]
        became = "filled up"
    return [[BOS, *chunk] for chunk in chunks], became


def read_documents():
    """language -> documents."""
    pages: dict[str, list[str]] = {}
    with gzip.open(shared_file("help.jsonl.gz"), "rt", encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            of_language = pages.setdefault(record["language"], [])
            if len(of_language) < sum(DOCUMENTS):
                of_language.append(record["text"])
    documents: dict[str, list[str]] = {language: [] for language in pages}
    for language, texts in pages.items():
        left = iter(texts)
        for n in DOCUMENTS:
            if of_document := list(itertools.islice(left, n)):
                documents[language].append("\n".join(of_document))
    return documents


def segments(folder):
    """How often each document is in the corpus, as the tokens of its only piece."""
    rows = read_rows(folder, ROW, "train")
    found = Counter(tuple(segment) for row, _ in rows for segment in row)
    assert all(x[0] == BOS and x[-1] == EOS for x in found)
    return found


@pytest.mark.slow
def test_published_rows_give_the_texts_and_the_tokens_that_are_made_of_them(tmp_path, prepare):
    """`transformers` decodes what was packed without tokenising; the same texts, tokenised, give the same tokens."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    packed = shared_file("gemma2_tokenizer.json.gz").read_bytes()
    (folder / "tokenizer.json").write_bytes(gzip.decompress(packed))
    gemma = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        bos_token="<bos>",
        eos_token="<eos>",
        clean_up_tokenization_spaces=False,
    )
    documents = read_documents()
    assert len(documents) == 30
    folders, chunks, tails = [], 0, Counter()
    every: Counter[str] = Counter()
    shortened = {}  # the tokens of documents of which the published form has no end
    for language, texts in documents.items():
        samples = []
        for i, ids in enumerate(gemma(texts, add_special_tokens=False).input_ids):
            rows, became = cut([*ids, EOS])
            tails[became] += 1
            chunks += len(rows)
            text = texts[i]
            if became == "dropped":
                left = ids[: CHUNK * len(rows)]
                shortened[BOS, *ids, EOS] = (BOS, *left, EOS)
                text = gemma.decode(left)
                assert texts[i].startswith(text)
            every[text] += 1
            samples += [{"input_ids": row, "id": f"{language}-{i}"} for row in rows]
        columns = {"input_ids": "ndarray:uint32", "id": "str"}
        out = tmp_path / "train" / language / "split_0"
        folders.append(to_write(out, columns, samples, None, 100_000))
    write_mds(tmp_path / "recipe.json", folders)
    print(f"{every.total()} documents in {chunks} chunks; their tails: {dict(tails)}")
    assert chunks > every.total() + 50
    assert min(tails[became] for became in ("dropped", "filled up")) > 0

    path = ("--language_from_path", "train/{language}")
    done = prepare(
        *(tmp_path / "given", "--input", tmp_path / "train", *path, *OPTIONS), tokenizer=folder
    )
    assert done.returncode == 0, done.stderr
    given = segments(tmp_path / "given")
    decoded: Counter[str] = Counter()
    for tokens, count in given.items():
        decoded[gemma.decode(list(tokens), skip_special_tokens=True)] += count
    assert decoded == every

    lines = [
        json.dumps({"text": text, "language": language})
        for language, texts in documents.items()
        for text in texts
    ]
    (tmp_path / "text.jsonl").write_text("\n".join(lines))
    done = prepare(
        *(tmp_path / "made", "--input", tmp_path / "text.jsonl", *OPTIONS), tokenizer=folder
    )
    assert done.returncode == 0, done.stderr
    made: Counter[tuple[int, ...]] = Counter()
    for tokens, count in segments(tmp_path / "made").items():
        made[shortened.get(tokens, tokens)] += count
    assert made == given
    counts = []
    for name in ("given", "made"):
        manifest = json.loads((tmp_path / name / "manifest.json").read_text())
        languages = manifest["row_lengths"][str(ROW)]["train"]["languages"]
        counts.append({x: y["documents"] for x, y in languages.items()})
        print(f"{name}: {manifest['documents']} documents, {manifest['tokens']} tokens")
    assert counts == [{x: len(y) for x, y in documents.items()}] * 2
