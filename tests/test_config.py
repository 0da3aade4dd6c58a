"""Every field is checked in one place, and the message names it."""

import json

import pytest
from ml_collections import ConfigDict
from tiny import tiny_config

from mmbert_jax.config import FIELDS, claim_run, complete, flatten, is_free_on_resume, validate
from mmbert_jax.config_file import load, split_overrides
from mmbert_jax.errors import UserError


def test_a_good_config_passes():
    validate(tiny_config())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"mask__ratio": 1.0}, "config.mask.ratio=1.0 .* between 0 and 1"),
        ({"data__temperature": -0.1}, "config.data.temperature"),
        (
            {"optimizer__schedule": "cosine"},
            "config.optimizer.schedule='cosine' .* 'one_minus_sqrt'",
        ),
        ({"optimizer__name": "adam"}, "config.optimizer.name='adam' .* 'muon', 'normuon'"),
        ({"optimizer__momentum": 1.0}, "config.optimizer.momentum=1.0 .* below 1"),
        ({"train__tokens": 0}, "config.train.tokens=0 .* above 0"),
        (
            {"train__batch_warmup_stage_rows": 0},
            "config.train.batch_warmup_stage_rows=0 .* above 0",
        ),
        ({"mask__ratio": 0.0078}, "config.mask.ratio=0.0078 masks no token .* above 0.0078125"),
        ({"eval__mask_ratio": 0.001}, "config.eval.mask_ratio=0.001 masks no token of a row of"),
        ({"train__batch_warmup_from_rows": 32}, "config.train.batch_warmup_from_rows=32 is above"),
        ({"train__tokens": 100}, "config.train.tokens=100 is less than one step"),
        ({"model__num_heads": 5}, "config.model.num_heads=5 must divide"),
        ({"mask__mask_share": 0.95}, "add up to more than 1"),
        ({"model__attention_window": 15}, "config.model.attention_window=15 .* even"),
        ({"data__sources": {}}, "config.data.sources is empty"),
        (
            {"data__sources": {"a": {"share": -1.0, "languages": ()}}},
            "config.data.sources.a.share=-1.0",
        ),
        (
            {"data__sources": {"a": {"share": 1.0, "languages": "en"}}},
            "config.data.sources.a.languages='en'",
        ),
        (
            {"data__sources": {"a": {"share": 1.0, "language": ()}}},
            "config.data.sources.a.language is no field",
        ),
        ({"eval__groups": {"late": "fo"}}, "config.eval.groups.late='fo'"),
        ({"eval__groups": 3}, "config.eval.groups=3 .* a section"),
        ({"data__sources": {"a": 3}}, "config.data.sources.a=3 .* a section"),
        ({"data__sources_typo": 3}, "config.data.sources_typo is no field"),
        ({"eval__groups_x": {"late": ("fo",)}}, "config.eval.groups_x.late is no field"),
        ({"checkpoint__keep_every_steps": 6}, "keep_every_steps=6 must be a multiple of"),
    ],
)
def test_bad_values_are_named(overrides, message):
    config = tiny_config()
    for name, value in overrides.items():
        section, field = name.split("__")
        with config.ignore_type():
            config[section][field] = value
    with pytest.raises(UserError, match=message):
        validate(config)


def test_unknown_and_missing_fields_are_named():
    config = tiny_config()
    with config.unlocked():
        config.optimizer.peek_lr = 1.0
    with pytest.raises(
        UserError, match=r"peek_lr is no field .* did you mean config.optimizer.peak_lr"
    ):
        validate(config)
    config = tiny_config()
    del config.train.tokens
    with pytest.raises(UserError, match=r"config.train.tokens is missing: it must be a whole"):
        validate(config)
    config = tiny_config()
    with config.ignore_type():
        config.train = 3
    with pytest.raises(UserError, match=r"config.train=3 is not allowed: it must be a section"):
        validate(config)


def test_what_a_config_leaves_out_has_its_default():
    """In every section; those that depend on other fields follow them."""
    given = dict(flatten(tiny_config().to_dict()))
    fields = {"data": {"sources": {"a": {"share": 1.0, "languages": ()}}}}
    for name, field in FIELDS.items():
        if field.default is None:
            section, _, key = name.rpartition(".")
            (fields.setdefault(section, {}) if section else fields)[key] = given[name]
    config = ConfigDict(fields)
    validate(config)
    full = complete(config)
    assert (full.mesh.data, full.optimizer.schedule, full.init_moments) == (-1, "stable", True)
    assert full.eval.groups.to_dict() == {}
    assert full.workdir == "runs/tiny"
    assert full.train.batch_warmup_from_rows == full.train.batch_rows == 16
    assert full.data.mixture_tokens == full.train.tokens
    assert complete(full) == full


def test_a_run_folder_belongs_to_one_run(tmp_path):
    run = tmp_path / "run"
    claim_run(tiny_config(), run)
    claim_run(
        tiny_config(mesh__data=8, eval__every_steps=5, train__microbatch_rows=32), run
    )  # how fast, what is reported: free to change
    with pytest.raises(UserError, match=r"config.mask.ratio=0.3, not 0.15"):
        claim_run(tiny_config(mask__ratio=0.15), run)
    # No prefix of a free field's name is free.
    assert [is_free_on_resume(name) for name in ("mesh.data", "data.corpus", "data.corpus_x")] == [
        1,
        1,
        0,
    ]
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="not empty and is no run folder"):
        claim_run(tiny_config(), other)
    assert [path.name for path in other.iterdir()] == ["thesis.tex"]


def test_a_run_goes_on_under_a_config_with_newer_fields(tmp_path):
    """What an older version wrote: what it did not have yet has its default, what went is left out."""
    run = tmp_path / "run"
    claim_run(tiny_config(), run)
    old = json.loads((run / "config.json").read_text())
    del old["init_moments"], old["data"]["mixture_tokens"], old["train"]["batch_warmup_stage_rows"]
    old["eval"]["rows_at_a_time"], old["gone"] = 8, {"field": 1}
    (run / "config.json").write_text(json.dumps(old))
    config = tiny_config(train__microbatch_rows=16)  # another number of devices
    del config.train.batch_warmup_stage_rows
    lines = claim_run(complete(config, run), run)
    assert [line.split(": ")[1] for line in lines] == [
        "config.eval.rows_at_a_time is no longer a field",
        "config.gone.field is no longer a field",
    ]
    new = json.loads((run / "config.json").read_text())
    assert new["train"]["batch_warmup_stage_rows"] == 8  # of its own microbatches, as before
    assert "gone" not in new
    with pytest.raises(UserError, match="config.init_moments=True, not False"):
        claim_run(tiny_config(init_moments=False), run)


@pytest.mark.parametrize(
    ("schedule", "tokens", "message"),
    [
        ("stable", 2, None),
        ("stable", 0.5, "config.train.tokens=12288, not 6144"),
        ("linear", 2, "config.train.tokens=12288, not 24576"),
    ],
)
def test_only_a_stable_phase_is_extended(tmp_path, schedule, tokens, message):
    before = tiny_config(optimizer__schedule=schedule)
    claim_run(before, tmp_path / "run")
    longer = tiny_config(
        optimizer__schedule=schedule, train__tokens=int(before.train.tokens * tokens)
    )
    del longer.data.mixture_tokens
    longer = complete(longer, tmp_path / "run")
    assert longer.data.mixture_tokens == before.train.tokens
    if message:
        with pytest.raises(UserError, match=message):
            claim_run(longer, tmp_path / "run")
    else:
        (line,) = claim_run(longer, tmp_path / "run")
        assert "is extended from 12,288 to 24,576 tokens" in line


FILE = """
from ml_collections import ConfigDict

def get_config(size="8"):
    return ConfigDict({"train": {"tokens": 5, "batch_rows": int(size)}, "phase": "own"})
"""


def test_a_file_is_loaded_by_its_path(tmp_path, monkeypatch):
    """With overrides, also of fields that it leaves out; defaults follow what was overridden."""
    folder = tmp_path / "the: folder"
    folder.mkdir()
    (folder / "own.py").write_text(FILE)
    name = f"{folder}/own.py"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load("~/the: folder/own.py:4").train.batch_rows == 4
    assert load(name).workdir == "runs/own"
    config = load(
        f"{name}:4",
        ["--config.train.tokens=7", "--config.mesh.fsdp", "2", "--config.init_moments=False"],
    )
    assert (config.train.tokens, config.data.mixture_tokens) == (7, 7)
    assert (config.train.batch_rows, config.train.batch_warmup_from_rows) == (4, 4)
    assert (config.mesh.fsdp, config.init_moments) == (2, False)


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        (None, [], "there is no file"),
        ("x = 1", [], r"has no attribute 'get_config'"),
        ("def get_config():\n    return 1 / 0", [], r"ZeroDivisionError.*own.py, line 2\)"),
        ("def get_config():\n    return {}", [], "must return a ConfigDict"),
        (FILE, ["--config.optimizer.peek_lr=1"], "no field 'peek_lr'.*peak_lr"),
        (FILE, ["--config.train.tokens=many"], "--config.train.tokens=many: invalid literal"),
        (FILE, ["more"], "unexpected argument 'more'"),
        (FILE, ["--dryrun"], "Unknown command line flag 'dryrun'"),
    ],
)
def test_what_is_wrong_with_a_file_or_an_override_is_named(tmp_path, text, overrides, message):
    if text:
        (tmp_path / "own.py").write_text(text)
    with pytest.raises(UserError, match=message):
        load(f"{tmp_path}/own.py", overrides)


def test_overrides_are_told_from_other_words():
    words = ["train", "--config", "a.py", "--config.a=1", "-config.b.c", "2", "--dry_run"]
    overrides, others = split_overrides(words)
    assert overrides == ["--config.a=1", "-config.b.c", "2"]
    assert others == ["train", "--config", "a.py", "--dry_run"]
    assert split_overrides(["--config.a", "-1"])[0] == ["--config.a", "-1"]
