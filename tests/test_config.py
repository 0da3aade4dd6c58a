"""Every field is checked in one place, and the message names it."""

import pytest
from tiny import tiny_config

from mmbert_jax.config import claim_run, validate
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
    ],
)
def test_bad_values_are_named(overrides, message):
    config = tiny_config()
    for name, value in overrides.items():
        section, field = name.split("__")
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
    del config.mesh.fsdp
    with pytest.raises(UserError, match=r"config.mesh.fsdp is missing"):
        validate(config)


def test_a_run_folder_belongs_to_one_run(tmp_path):
    run = tmp_path / "run"
    claim_run(tiny_config(), run)
    claim_run(
        tiny_config(mesh__data=8, eval__every_steps=5, train__microbatch_rows=32), run
    )  # how fast, what is reported: free to change
    with pytest.raises(UserError, match=r"config.mask.ratio=0.3, not 0.15"):
        claim_run(tiny_config(mask__ratio=0.15), run)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="not empty and is no run folder"):
        claim_run(tiny_config(), other)
    assert [path.name for path in other.iterdir()] == ["thesis.tex"]
