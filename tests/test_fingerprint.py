"""What decides a phase's data has one fingerprint, and what differs between two is named."""

import json
import shutil

import numpy as np
import pytest
from data.tiny_corpus import write_corpus
from tiny import tiny_config

from mmbert_jax.agreement import differences, job_account
from mmbert_jax.data.corpus import MANIFEST
from mmbert_jax.data.mixture import build_mixture
from mmbert_jax.data.order import RowOrder
from mmbert_jax.data.pipeline import PhaseData, open_data
from mmbert_jax.fingerprint import difference, fingerprint, held_out_digests
from mmbert_jax.optim.schedules import phase_rows
from mmbert_jax.step import phase_seed

ROWS = {"l0": 200, "l1": 90}


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """A function to a corpus of these rows, written once."""
    folder = tmp_path_factory.mktemp("corpora")

    def corpus(name, rows=ROWS, **options):
        if not (folder / name).exists():
            options = {"row_length": 64, "held_out": {"l0": 2}, "rows_per_shard": 50} | options
            write_corpus(folder / name, rows, **options)
        return folder / name

    corpus("a")
    shutil.copytree(folder / "a", folder / "copy")
    shutil.copytree(folder / "a", folder / "undigested")
    manifest = json.loads((folder / "a" / MANIFEST).read_text())
    for shard in manifest["row_lengths"]["64"]["train"]["shards"]:
        del shard["digest"]
    (folder / "undigested" / MANIFEST).write_text(json.dumps(manifest))
    # Text that was changed under a manifest that was not.
    shutil.copytree(corpus("filled", filling=8), folder / "in place")
    shutil.copy(folder / "undigested" / MANIFEST, folder / "in place" / MANIFEST)
    return corpus


def seen(folder, row=0, **overrides):
    config = tiny_config(data__corpus=str(folder), **overrides)
    data = open_data(config.data, phase_rows(config.train, 64), phase_seed(config))
    return fingerprint(config, data, row)


def test_copied_elsewhere_it_is_the_same(corpora):
    account = seen(corpora("a"), row=24)
    copy = seen(corpora("copy"), row=24)
    assert copy == account
    assert difference(account, copy) is None
    assert difference(json.loads(json.dumps(account)), copy) is None  # as a checkpoint keeps it
    assert len(account["digest"]) == 16
    assert seen(corpora("a"), row=32)["digest"] != account["digest"]


@pytest.mark.parametrize(
    ("corpus", "options", "named"),
    [
        (
            "other",
            {"rows": {"l0": 50, "zz": 400}},
            "l0 (200 rows before, 50 now), l1 (90 rows before, 0 now), zz (0 rows before, 400 now)",
        ),
        ("longer", {"rows": ROWS | {"l1": 91}}, "l1 (90 rows before, 91 now)"),
        ("tokens", {"tokenizer": "b"}, "another tokeniser (a before, b now)"),
        ("filled", {}, "with other text: shards train_64-00000, train_64-00001,"),
        ("resharded", {"rows_per_shard": 100}, "divided into other shards"),
    ],
)
def test_a_corpus_that_was_changed_is_named(corpora, corpus, options, named):
    found = difference(seen(corpora("a"), 24), seen(corpora(corpus, **options), 24))
    assert named in found


def test_old_corpora_without_digests_are_told_apart_by_the_next_rows(corpora):
    before, now = (seen(corpora(name), 24) for name in ("undigested", "in place"))
    assert difference(before, now) == (
        "global row 24 of the phase has another text: a shard was changed in place"
    )
    assert difference(before, seen(corpora("undigested"), 24)) is None


def test_the_first_row_of_another_order_is_named(corpora):
    account = seen(corpora("a"), 24)
    assert "global row 24 of the phase" in difference(account, seen(corpora("a"), 24, seed=2))
    config = tiny_config(data__corpus=str(corpora("a")))
    data = open_data(config.data, phase_rows(config.train, 64), phase_seed(config))
    entry, pass_number, row = data.order._of_block(0)
    swapped = np.stack([entry, pass_number, row])
    swapped[:, [500, 501]] = swapped[:, [501, 500]]
    data.order._cached = (0, swapped)
    first = 500 if (entry[500], row[500]) != (entry[501], row[501]) else None
    assert f"from global row {first} of the phase on" in difference(
        account, fingerprint(config, data, 24)
    )


def test_a_stable_phase_that_is_extended_reads_on(corpora):
    # As `complete` has it, which takes mixture_tokens from the run folder.
    longer = {"train__tokens": 64 * 16 * 40, "data__mixture_tokens": 64 * 16 * 12}
    account = seen(corpora("a"), 24)
    assert seen(corpora("a"), 24, **longer) == account
    # A cap on passes binds the longer phase alone, so that it has other shares.
    capped = {"data__max_passes": 1.0}
    before = seen(corpora("a"), 24, **capped, train__tokens=64 * 8 * 25)
    now = seen(corpora("a"), 24, **capped, train__tokens=64 * 8 * 36)
    assert "other shares of the phase's rows: l0 (59." in difference(before, now)
    decay = {"optimizer__schedule": "linear"}
    assert (
        seen(corpora("a"), 24, **decay)["digest"]
        != seen(corpora("a"), 24, **decay, **longer)["digest"]
    )


def test_a_checkpoint_s_account_is_small_at_1833_languages_and_60000_shards():
    config = tiny_config()
    languages, first = {}, 0
    for i in range(1833):
        languages[f"x{i:04}"[-4:]] = {"first_row": first, "rows": 10**6 + i, "tokens": 10**10 + i}
        first += 10**6 + i
    shards = [{"file": f"{i}", "rows": 30_000, "digest": "0" * 16} for i in range(60_000)]
    manifest = {
        "source": "all",
        "tokenizer": {"sha256": "a" * 64, "content": "c" * 32, "vocab_size": 256_000},
        "row_lengths": {"64": {"train": {"languages": languages, "shards": shards}}},
    }
    mixture = build_mixture(config.data, 10**9, [manifest])
    order = RowOrder([e.share for e in mixture.entries], [e.rows for e in mixture.entries], 1)

    class Rows:
        def __getitem__(self, row):
            return str(row).encode()

    data = PhaseData(mixture, order, 64, (manifest,), (Rows(),))
    account = fingerprint(config, data, 10**8)
    assert len(json.dumps(account)) < 100_000
    shards[59_000]["digest"] = "1" * 16
    found = difference(account, fingerprint(config, data, 10**8))
    assert "with other text: shards train_64-59000 to 59058" in found


def test_held_out_text_has_a_digest_of_its_own(corpora):
    data = {"row_length": 64, "sources": {"text": {}}}
    digests = {
        name: held_out_digests(data | {"corpus": str(corpora(name))}) for name in ("a", "filled")
    }
    assert set(digests["a"]) == {"a"}
    assert digests["a"]["a"] != digests["filled"]["filled"]
    assert held_out_digests(data | {"corpus": str(corpora("copy"))}) == digests["a"]


# --- processes of one job ---


def account_of(corpora, corpus="a", **overrides):
    config = tiny_config(data__corpus=str(corpora(corpus)), **overrides)
    return job_account(config, rollback=None) | {"data": seen(corpora(corpus), **overrides)}


def changed(account, section, name, value):
    return account | {section: account[section] | {name: value}}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            lambda c, a: account_of(c, optimizer__peak_lr=0.005),
            "config.optimizer.peak_lr is 0.002 in processes 0, 1, 0.005 in process 2",
        ),
        (lambda c, a: account_of(c, seed=7), "config.seed is 1 in processes 0, 1, 7 in process 2"),
        (lambda c, a: account_of(c, mesh__fsdp=2), "config.mesh.fsdp is 1 in"),
        (lambda c, a: account_of(c, checkpoint__every_steps=9), "config.checkpoint.every_steps is"),
        (
            lambda c, a: account_of(c, "longer"),
            "l1 (90 rows in process 0, 91 in process 2)",
        ),
        (
            lambda c, a: account_of(c, "tokens"),
            "another tokeniser (a in process 0, b in process 2)",
        ),
        (
            lambda c, a: changed(a, "file mmbert_jax/", "train.py", "0"),
            "file mmbert_jax/train.py is ",
        ),
        (lambda c, a: changed(a, "package ", "jax", "0.1"), "package jax is "),
        (lambda c, a: changed(a, "--", "rollback", "(3, 0)"), "--rollback is None in"),
    ],
)
def test_a_process_that_is_not_like_the_others_is_named(corpora, change, named):
    corpora("longer", rows=ROWS | {"l1": 91})
    corpora("tokens", tokenizer="b")
    one = account_of(corpora)
    found = differences([one, one, change(corpora, one)])
    assert named in found
    assert "in process 2" in found


def test_processes_may_differ_in_where_and_how_they_read(corpora):
    ours = account_of(corpora)
    theirs = account_of(corpora, "copy", data__loader_workers=3, data__prefetch=8)
    assert differences([ours, theirs]) is None
    assert {"train.py", "data/corpus.py"} <= ours["file mmbert_jax/"].keys()
    assert all(version[0].isdigit() for version in ours["package "].values())
