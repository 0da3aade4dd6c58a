"""The configs hold the published values, and every one of them is a valid config."""

from pathlib import Path

import jax
import numpy as np
import pytest

from mmbert_jax.checkpoint import save_params
from mmbert_jax.checks import check_start
from mmbert_jax.config import validate
from mmbert_jax.config_file import load
from mmbert_jax.data.pipeline import find_corpora
from mmbert_jax.errors import UserError
from mmbert_jax.recipe import settings
from mmbert_jax.recipe.settings import PHASES

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
# Written down from the published configurations and the paper, not read from ours:
# (phase, size): row length, RoPE base, tokens, mask ratio, temperature, learning rate, weight decay, tokens of the
# learning rate's and of the batch size's warm-up, schedule, last learning rate as a share of the first.
STABLE = ("stable", 1.0)
PHASE_VALUES = {
    ("phase1", "base"): (1024, 1e4, 2.3e12, 0.30, 0.7, 8e-4, 8e-5, 3e9, 60e9, *STABLE),
    ("phase1", "small"): (1024, 1e4, 2.3e12, 0.30, 0.7, 8e-4, 8e-5, 4e9, 100e9, *STABLE),
    ("phase2", "base"): (8192, 1.6e5, 6e11, 0.15, 0.5, 8e-4, 8e-5, 0, 0, *STABLE),
    ("phase2", "small"): (8192, 1.6e5, 6e11, 0.15, 0.5, 4e-4, 4e-5, 0, 0, *STABLE),
    **{
        (decay, size): (8192, 1.6e5, 1e11, 0.05, 0.3, rate, rate / 10, 0, 0, *schedule)
        for decay in ("decay_english", "decay_110", "decay_all")
        for size, rate, schedule in (
            ("base", 8e-4, ("one_minus_sqrt", 0.02)),
            ("small", 4e-4, ("linear", 0.04)),
        )
    },
}


@pytest.mark.parametrize(("phase", "size"), PHASE_VALUES)
def test_published_values(phase, size):
    config = load(f"{CONFIGS}/{phase}.py:{size}")
    validate(config)
    optimizer = config.optimizer
    assert PHASE_VALUES[phase, size] == (
        config.data.row_length,
        config.model.global_rope_theta,
        config.train.tokens,
        config.mask.ratio,
        config.data.temperature,
        optimizer.peak_lr,
        pytest.approx(optimizer.weight_decay),
        optimizer.warmup_tokens,
        config.train.batch_warmup_tokens,
        optimizer.schedule,
        optimizer.final_lr_fraction,
    )
    assert config.model.local_rope_theta == config.model.global_rope_theta
    assert config.train.batch_rows == 4608
    assert config.train.batch_warmup_from_rows == (384 if phase == "phase1" else 4608)
    # A microbatch of the 8 GPUs that it was published for, on whatever it runs here.
    assert config.train.batch_warmup_stage_rows * config.data.row_length == 8 * 49_152
    assert (optimizer.b1, optimizer.b2, optimizer.eps) == (0.9, 0.95, 1e-8)
    assert (config.mask.mask_share, config.mask.random_share) == (0.8, 0.1)
    assert config.seed == (12345 if size == "small" and phase != "phase1" else 21)


@pytest.mark.parametrize(
    ("size", "shape", "parameters"),
    [("small", (384, 6), 140_897_536), ("base", (768, 12), 307_786_240)],
)
def test_size_is_the_published_model(size, shape, parameters):
    """The same architecture in every phase, with the published count of parameters."""
    from mmbert_jax.model.config import ModelConfig
    from mmbert_jax.model.heads import init_params

    for phase in PHASES:
        model = load(f"{CONFIGS}/{phase}.py:{size}").model
        assert (model.hidden_size, model.num_heads) == shape
        assert (model.num_layers, model.intermediate_size, model.vocab_size) == (22, 1152, 256_000)
        assert (model.attention_window, model.global_every, model.norm_eps) == (128, 3, 1e-5)
        assert model.attention_output_dropout == 0.1
        tree = jax.eval_shape(lambda model=model: init_params(ModelConfig.from_config(model), 0))
        assert sum(leaf.size for leaf in jax.tree.leaves(tree)) == parameters


@pytest.mark.parametrize("phase", PHASES)
def test_default_size_is_base(phase):
    assert load(f"{CONFIGS}/{phase}.py") == load(f"{CONFIGS}/{phase}.py:base")


def test_unknown_size_is_refused():
    with pytest.raises(UserError, match="'large'.*:small or :base"):
        load(f"{CONFIGS}/phase2.py:large")


@pytest.mark.parametrize("languages", ["cldr", "published"])
@pytest.mark.parametrize("phase", PHASES)
def test_demo_follows_the_published_curriculum(phase, languages):
    """Same phases, mask ratios, temperatures and RoPE bases; the later the phase, the more languages."""
    config = load(f"{CONFIGS}/demo.py:{phase},{languages}")
    validate(config)
    published = load(f"{CONFIGS}/{phase}.py:base")
    assert config.phase == published.phase
    assert config.mask == published.mask
    assert config.data.temperature == published.data.temperature
    assert config.model.global_rope_theta == published.model.global_rope_theta
    assert config.optimizer.schedule == published.optimizer.schedule

    sampled = {language for source in config.data.sources.values() for language in source.languages}
    first, second, last = (set(config.eval.groups[group]) for group in ("phase1", "phase2", "last"))
    assert first <= sampled
    assert bool(second & sampled) == (phase != "phase1")
    assert bool(last & sampled) == (phase == "decay_all")
    assert not first & second
    assert not (first | second) & last


@pytest.mark.parametrize(
    ("argument", "message"), [("phase3", "no demo phase 'phase3'"), ("phase1,udhr", "'udhr'")]
)
def test_unknown_demo_argument_is_refused(argument, message):
    with pytest.raises(UserError, match=message):
        load(f"{CONFIGS}/demo.py:{argument}")


@pytest.mark.parametrize("size", ["base", "small"])
def test_phases_follow_each_other_without_a_word(size):
    """Run folders, corpora and the run to start from, as each phase's command takes them when typed as it stands."""
    suffix = "" if size == "base" else "-small"
    starts_from = {"phase1": None, "phase2": "phase1"}
    for phase in PHASES:
        config = load(f"{CONFIGS}/{phase}.py:{size}")
        assert (config.workdir, config.data.corpus) == (f"runs/{phase}{suffix}", "corpora")
        before = starts_from.get(phase, "phase2")
        assert config.init_from == (f"runs/{before}{suffix}" if before else "")
        argument = ":small" if suffix else ""
        command = f"python -m mmbert_jax.train --config configs/{phase}.py{argument}"
        assert settings.command(config.workdir) == command
    assert settings.command("runs/mine") is None


def test_what_is_missing_is_named_with_the_command_that_makes_it(tmp_path, monkeypatch):
    config = load(f"{CONFIGS}/phase2.py:small")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match=r"tools/prepare_corpus.py .*--row_length 8192 --output corpora"
    ):
        find_corpora(config.data)
    with pytest.raises(
        UserError,
        match=r"no checkpoint at runs/phase1-small.*\(python -m mmbert_jax.train --config configs/phase1.py:small\)",
    ):
        check_start(config, None, None)


def test_a_users_own_configs_package_is_not_in_the_way(tmp_path, monkeypatch):
    """A folder `configs` in the working directory, from which Python imports first."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "__init__.py").write_text("raise ImportError('a package of the user')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    config = load(f"{CONFIGS}/demo.py", ["--config.train.tokens=7"])
    assert (config.phase, config.train.tokens) == ("phase1", 7)


def test_own_language_goes_on_from_a_stable_rate(tmp_path):
    """Of a run with a stable rate it takes a quarter of that; for models that were imported or decayed, less."""
    model = {**load(f"{CONFIGS}/phase1.py").model}
    for name, optimizer, rate in (
        ("stable", {"optimizer": {"peak_lr": 2e-3, "schedule": "stable"}}, 5e-4),
        ("decayed", {"optimizer": {"peak_lr": 2e-3, "schedule": "linear"}}, 1e-4),
        ("imported", {}, 1e-4),
    ):
        config = {"model": model} | optimizer
        if optimizer:
            config["data"] = {"row_length": 8192}
        save_params(tmp_path / name, {"x": np.zeros(1)}, {"step": 0, "config": config})
        found = load(f"{CONFIGS}/own_language.py:{tmp_path / name}")
        validate(found)
        assert (found.optimizer.peak_lr, found.data.row_length) == (rate, 1024)
        assert found.init_from == str(tmp_path / name)
