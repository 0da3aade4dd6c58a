"""Near-duplicates: clusters that are planted, and all pairs of texts compared by brute force."""

import itertools
import json
import os
import random
import subprocess
import sys
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from prepared import OPTIONS, ROOT, to_jsonl

from mmbert_jax.data.prepare import Rules
from mmbert_jax.data.sources import Fields, find_inputs

pytest.importorskip("datatrove")
from mmbert_jax.data.prepare import near_duplicates

SCRIPTS = {"en": (0x61, 0x7A, " "), "zh": (0x4E00, 0x9FFF, ""), "th": (0x0E01, 0x0E2E, "")}


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """(folder, clusters of texts): files of two formats with texts of which some are others with a word changed."""
    draw = random.Random(0)
    clusters, records = [], []
    for language, (first, last, joint) in SCRIPTS.items():
        vocabulary = [
            "".join(chr(draw.randint(first, last)) for _ in range(draw.randint(2, 5)))
            for _ in range(300)
        ]
        for i in range(25):
            words = draw.choices(vocabulary, k=200)
            cluster = [joint.join(words)]
            for copy in range(i // 5):
                changed = list(words)
                # Exact copies, one more word at an end, other punctuation; two words in other languages' 200 changed.
                if copy == 1:
                    changed.append(vocabulary[0])
                elif copy == 2:
                    changed[100] = vocabulary[1]
                elif copy == 3:
                    changed[20] += "!"
                cluster.append(joint.join(changed))
            clusters.append(cluster)
            records += [(language, text) for text in cluster]
    records += [("en", "short"), ("en", "short"), ("en", " ")]
    draw.shuffle(records)
    folder = tmp_path_factory.mktemp("near")
    (folder / "a.jsonl").write_bytes(to_jsonl(records[:80]))
    (folder / "b.jsonl.zst").write_bytes(zstandard.compress(to_jsonl(records[80:120])))
    languages, texts = zip(*records[120:], strict=True)
    pq.write_table(pa.table({"language": languages, "text": texts}), folder / "c.parquet")
    return folder, clusters


def written(folder):
    """Name -> records of the files of a folder."""
    found = {}
    for path in sorted(folder.iterdir()):
        with zstandard.open(path, "rt", encoding="utf-8") as file:
            found[path.name] = [json.loads(line) for line in file]
    return found


@pytest.fixture(scope="module")
def kept(planted, run_tool, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept")
    done = run_tool(
        *("deduplicate", "--input", planted[0], "--output", folder / "text", "--workers", 2)
    )
    assert done.returncode == 0, done.stderr
    assert [path.name for path in folder.iterdir()] == ["text"]
    return folder / "text", done.stdout


def test_one_of_each_cluster_is_kept_with_its_size(planted, kept):
    clusters = planted[1]
    records = [record for of_file in written(kept[0]).values() for record in of_file]
    found = {record["text"]: record["minhash_cluster_size"] for record in records}
    number = sum(map(len, clusters)) + 2
    assert len(records) == len(clusters) + 2
    assert f"{len(records)} of {number} documents" in kept[1]
    assert Counter(record["text"] for record in records)["short"] == 2  # too short to be compared
    for cluster in clusters:
        (size,) = [found[text] for text in dict.fromkeys(cluster) if text in found]
        assert size == len(cluster)
    languages = Counter(record["language"] for record in records)
    assert languages == {"en": 27, "zh": 25, "th": 25}


def shingles(text):
    points = [ord(c) for c in text if c.isalpha()]
    if points[0] < 0x0E00:
        words, n = "".join(c if c.isalpha() else " " for c in text).split(), 5
    else:
        words, n = points, 15 if points[0] >= 0x3000 else 25
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}


def test_what_is_kept_is_unlike_all_else_that_is(kept):
    """By all pairs: of the texts that are kept no two have more than half of their sequences in common."""
    records = [record for of_file in written(kept[0]).values() for record in of_file]
    sets = [shingles(record["text"]) for record in records if record["text"] != "short"]
    for a, b in itertools.combinations(sets, 2):
        assert len(a & b) < 0.5 * len(a | b)


def test_workers_and_interruptions_change_no_byte(planted, kept, tmp_path, monkeypatch):
    """What is signed is not signed again."""
    inputs, _ = find_inputs([planted[0]], None)

    def run():
        return near_duplicates.drop_near_duplicates(inputs, Fields(), Rules(), tmp_path / "text", 1)

    signed = []

    class Signature(near_duplicates.MinhashDedupSignature):
        def run(self, documents, rank):
            signed.append(rank)
            super().run(documents, rank)

    def interrupted(job):
        raise KeyboardInterrupt

    monkeypatch.setattr(near_duplicates, "MinhashDedupSignature", Signature)
    with monkeypatch.context() as patch:
        patch.setattr(near_duplicates, "_compare", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run()
    assert signed == [0]
    assert [path.name for path in tmp_path.iterdir()] == ["text.minhash"]
    run()
    assert signed == [0]
    assert [path.name for path in tmp_path.iterdir()] == ["text"]
    assert written(tmp_path / "text") == written(kept[0])


def test_clusters_across_pieces_have_their_sizes(planted, kept, tmp_path, monkeypatch):
    """Also where a piece has none that is dropped, of which datatrove by itself says nothing."""
    monkeypatch.setattr("mmbert_jax.data.sources.pieces.LEAST", 1)
    inputs, _ = find_inputs([planted[0]], None)
    near_duplicates.drop_near_duplicates(inputs, Fields(), Rules(), tmp_path / "text", 1)
    found, expected = written(tmp_path / "text"), written(kept[0])
    assert len(found) > 60
    sizes = [
        Counter(
            (record["language"], record["minhash_cluster_size"])
            for of_file in files.values()
            for record in of_file
        )
        for files in (found, expected)
    ]
    assert sizes[0] == sizes[1]


def test_the_corpus_is_prepared_from_what_is_kept(kept, prepare, tmp_path):
    done = prepare(tmp_path / "c", "--input", kept[0], *OPTIONS)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "c" / "manifest.json").read_text())
    assert manifest["documents"] == 77


def test_faults_are_one_line(planted, run_tool, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(to_jsonl([("en", "good text")]) + b"{\n")
    text, output = ("--input", tmp_path / "a.jsonl"), ("--output", tmp_path / "text")
    for options, message in (
        ((*text, *output), f"{tmp_path}/a.jsonl, line 2: invalid JSON"),
        ((*text, "--output", tmp_path), f"{tmp_path} is not empty"),
        ((*text, "--output", "gs://bucket/text"), "gs://bucket/text: datatrove's stages work on a"),
        ((*text, *output, "--workers", 0), "--workers is 0; it has to be at least 1"),
    ):
        done = run_tool("deduplicate", *options)
        assert done.returncode == 2
        assert done.stderr.startswith(f"error: {message}"), done.stderr
        assert done.stderr.count("\n") == 1


def test_without_datatrove_the_user_is_told_how_to_get_it(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(to_jsonl([("en", "good text")]))
    (tmp_path / "datatrove.py").write_text("raise ImportError('none here')")
    tool = ROOT / "tools" / "deduplicate.py"
    done = subprocess.run(
        [sys.executable, tool, "--input", tmp_path / "a.jsonl", "--output", tmp_path / "text"],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.endswith("install it with `bash tools/setup_env.sh dedup`\n")
