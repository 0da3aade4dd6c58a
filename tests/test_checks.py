"""Where a model meets a corpus or a tokeniser: the same one by content is taken, another of the same size refused."""

import contextlib
import io
import json
import shutil
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from data.tiny_corpus import write_corpus
from small_tokenizer import write_small_tokenizer
from tiny import tiny_config

from mmbert_jax.checkpoint import read_meta, save_params
from mmbert_jax.checks import check_documents, check_resume, check_start
from mmbert_jax.config import to_json
from mmbert_jax.data.pipeline import find_corpora, open_data
from mmbert_jax.data.tokenizer import load_tokenizer
from mmbert_jax.data.tokenizer_identity import describe_tokenizer
from mmbert_jax.dry_run import dry_run
from mmbert_jax.errors import UserError
from mmbert_jax.evaluate import heldout
from mmbert_jax.fingerprint import fingerprint
from mmbert_jax.hf.tokenizer import copied_tokenizer, to_hf_files
from mmbert_jax.inference.checkpoint_tokenizer import checkpoint_tokenizer
from mmbert_jax.merge import sweep
from mmbert_jax.merge.checks import check_alike
from mmbert_jax.merge.models import open_model
from mmbert_jax.model.config import ModelConfig
from mmbert_jax.model.heads import init_params
from mmbert_jax.optim.schedules import phase_rows
from mmbert_jax.parallel.mesh import make_mesh
from mmbert_jax.run import CONFIG
from mmbert_jax.step import abstract_state, phase_seed
from mmbert_jax.train import train

TRAINED_WITH = {"sha256": "a" * 64, "content": "c" * 32, "vocab_size": 512}
# Tokenisers of corpora, and whether a model that was trained with the one above may meet them.
CORPORA = {
    "its own": (TRAINED_WITH, True),
    "its own, written otherwise": (TRAINED_WITH | {"sha256": "b" * 64}, True),
    "its own, before content was kept": ({"sha256": "a" * 64, "vocab_size": 512}, True),
    "another": (TRAINED_WITH | {"sha256": "b" * 64, "content": "d" * 32}, False),
    "another, before content was kept": ({"sha256": "b" * 64, "vocab_size": 512}, False),
}
ROWS, HELD_OUT = {"l0": 200, "l1": 90}, {"l0": 2}


class Accepted(Exception):
    """Raised where the work would begin."""


def accept(*_):
    raise Accepted


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Corpora by name, and `run`: a run folder with a checkpoint at step 3, trained on the first of them."""
    folder = tmp_path_factory.mktemp("met")
    for name, (tokenizer, _) in CORPORA.items():
        options = {"row_length": 64, "held_out": HELD_OUT, "tokenizer": tokenizer}
        write_corpus(folder / name, ROWS, **options)
    config, data = opened(folder / "its own")
    params = jax.tree.map(np.asarray, init_params(ModelConfig.from_config(config.model), 0))
    meta = {"phase": "tiny", "step": 3, "row": 24, "tokens": 24 * 64, "config": config.to_dict()}
    meta |= {"tokenizer": data.tokenizer, "fingerprint": fingerprint(config, data, 24)}
    save_params(folder / "run", params, meta)
    (folder / "run" / CONFIG).write_text(to_json(config))
    meta["tokenizer"] = {"sha256": "a" * 64, "vocab_size": 512}
    save_params(folder / "old", params, {k: v for k, v in meta.items() if k != "fingerprint"})
    (folder / "old" / CONFIG).write_text(to_json(config))
    return folder


def opened(corpus, **overrides):
    config = tiny_config(data__corpus=str(corpus), mesh__data=-1, **overrides)
    return config, open_data(config.data, phase_rows(config.train, 64), phase_seed(config))


# --- one check for each place where a model meets a corpus ---


def several_corpora_of_a_phase(place, corpus, monkeypatch):
    folder = place / f"with {corpus}"
    if not folder.exists():
        shutil.copytree(place / "its own", folder / "a")
        shutil.copytree(place / corpus, folder / "b")
    find_corpora({"corpus": str(folder), "sources": {"a": {}, "b": {}}})


def a_phase_that_starts_from_a_run(place, corpus, monkeypatch):
    config, data = opened(place / corpus, init_from=str(place / "run"))
    check_start(config, data, abstract_state(config, make_mesh(config.mesh)))


def a_resumed_run(place, corpus, monkeypatch):
    check_resume(*opened(place / corpus), place / "run")


def the_program_that_resumes_it(place, corpus, monkeypatch):
    monkeypatch.setattr("mmbert_jax.train.claim_run", accept)
    config, _ = opened(place / corpus)
    train(config, place / "run")


def check_dry_run(config, workdir):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        fine = dry_run(config, workdir)
    if not fine:
        raise UserError(printed.getvalue())


def a_dry_run_of_that(place, corpus, monkeypatch):
    monkeypatch.setattr("mmbert_jax.dry_run._step", lambda *_: (True, ""))
    config, _ = opened(place / corpus)
    check_dry_run(config, place / "run")


def a_dry_run_of_a_phase(place, corpus, monkeypatch):
    monkeypatch.setattr("mmbert_jax.dry_run._step", lambda *_: (True, ""))
    config, _ = opened(place / corpus, init_from=str(place / "run"))
    check_dry_run(config, place / "new")


def held_out_evaluation(place, corpus, monkeypatch):
    monkeypatch.setattr(heldout, "evaluate", accept)
    words = ["heldout", "--checkpoint", str(place / "run"), "--corpus", str(place / corpus)]
    monkeypatch.setattr(sys, "argv", words)
    heldout.main()


def a_merge_sweep(place, corpus, monkeypatch):
    monkeypatch.setattr(sweep, "evaluate", accept)
    sweep.make_score(opened(place / corpus)[0], open_model(place / "run"))


def documents_of_a_step(place, corpus, monkeypatch):
    check_documents(place / "run", *opened(place / corpus))


def models_that_are_merged(place, corpus, monkeypatch):
    model = SimpleNamespace(**vars(open_model(place / "run")))
    other = SimpleNamespace(**vars(model) | {"tokenizer": CORPORA[corpus][0]})
    check_alike(model, [other])


PLACES = (
    several_corpora_of_a_phase,
    a_phase_that_starts_from_a_run,
    a_resumed_run,
    the_program_that_resumes_it,
    a_dry_run_of_that,
    a_dry_run_of_a_phase,
    held_out_evaluation,
    a_merge_sweep,
    documents_of_a_step,
    models_that_are_merged,
)


@pytest.mark.parametrize("corpus", CORPORA)
@pytest.mark.parametrize("meet", PLACES, ids=lambda meet: meet.__name__)
def test_a_tokeniser_is_known_by_its_content(place, monkeypatch, meet, corpus):
    _, fits = CORPORA[corpus]
    if fits:
        with contextlib.suppress(Accepted):
            meet(place, corpus, monkeypatch)
        return
    with pytest.raises(UserError, match="another tokeniser"):
        meet(place, corpus, monkeypatch)


def test_a_vocabulary_beyond_the_model_s_is_refused_in_an_evaluation(place, tmp_path):
    """Of an imported model, say, that has no tokeniser to compare."""
    meta = read_meta(place / "run") | {"tokenizer": None}
    large = write_corpus(tmp_path / "large", ROWS, row_length=64, held_out=HELD_OUT)
    with pytest.raises(UserError, match="token ids up to 2047, but the model has 512 classes"):
        heldout.check_corpus(meta, opened(large)[0].data)


# --- the tokeniser's own file, beside a checkpoint ---


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A tokeniser, its export, one whose pieces were exchanged, and a checkpoint's meta for the first."""
    folder = tmp_path_factory.mktemp("tokenizers")
    ours = write_small_tokenizer(folder / "ours")
    (folder / "export").mkdir()
    to_hf_files(load_tokenizer(ours), folder / "export", 64)
    description = json.loads((ours / "tokenizer.json").read_text())
    vocabulary = description["model"]["vocab"]
    vocabulary["x"], vocabulary["y"] = vocabulary["y"], vocabulary["x"]
    (folder / "exchanged").mkdir()
    (folder / "exchanged" / "tokenizer.json").write_text(json.dumps(description))
    return folder, {"tokenizer": describe_tokenizer(load_tokenizer(ours)), "config": {}}


@pytest.mark.parametrize("find", [checkpoint_tokenizer, copied_tokenizer])
def test_the_tokeniser_of_a_checkpoint(files, find):
    """For inference, export and trimming: its export is the same tokeniser, and is written as it stands."""
    folder, meta = files
    assert find(meta, folder / "ours").sha256 == meta["tokenizer"]["sha256"]
    assert find(meta, folder / "export").sha256 != meta["tokenizer"]["sha256"]
    with pytest.raises(UserError, match="is not the one that"):
        find(meta, folder / "exchanged")
    # What a checkpoint from before said of its tokeniser.
    meta = {"tokenizer": {"sha256": meta["tokenizer"]["sha256"]}, "config": {}}
    find(meta, folder / "ours")
    with pytest.raises(UserError, match="is not the one that"):
        find(meta, folder / "export")


# --- a run and its corpus ---


def test_a_resumed_run_says_what_it_reads(place):
    row, text = check_resume(*opened(place / "its own"), place / "run")
    digest = read_meta(place / "run")["fingerprint"]["digest"]
    assert row == 24
    assert (
        text
        == f"data fingerprint {digest} at row 24, the same data as in {place / 'run' / 'checkpoints' / '3'}"
    )
    assert check_resume(*opened(place / "its own"), place / "nowhere")[0] == 0


def test_a_run_from_before_fingerprints_goes_on_and_says_that_it_could_not_be_checked(place):
    _, text = check_resume(*opened(place / "its own"), place / "old")
    assert "could not be checked" in text
    with pytest.raises(UserError, match="another tokeniser"):
        check_resume(*opened(place / "another"), place / "old")


def test_a_corpus_swapped_under_a_run_is_refused_by_name_and_nothing_changes(
    place, tmp_path, capsys, monkeypatch
):
    other = write_corpus(
        tmp_path / "other",
        {"l0": 50, "zz": 400},
        row_length=64,
        tokenizer=TRAINED_WITH,
        held_out=HELD_OUT,
    )
    config, data = opened(other)
    before = {path: path.read_bytes() for path in (place / "run").rglob("*") if path.is_file()}
    with pytest.raises(UserError) as refused:
        train(config, place / "run")
    for part in (
        f"config.data.corpus={other} is not what {place / 'run'} was trained on until step 3",
        "l0 (200 rows before, 50 now), l1 (90 rows before, 0 now), zz (0 rows before, 400 now)",
        "Point --config.data.corpus at the former corpus, or start a new phase from the run",
        f"--config.init_from={place / 'run'}",
    ):
        assert part in str(refused.value)
    monkeypatch.setattr("mmbert_jax.dry_run._step", lambda *_: (True, ""))
    assert not dry_run(config, place / "run")
    assert "FAILED same data" in capsys.readouterr().out
    with pytest.raises(UserError, match="Name a copy of that corpus with --corpus"):
        check_documents(place / "run", config, data)
    after = {path: path.read_bytes() for path in (place / "run").rglob("*") if path.is_file()}
    assert after == before
