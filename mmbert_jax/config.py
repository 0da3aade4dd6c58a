"""What a config must hold. Every field is checked here, once, before anything else happens."""

import dataclasses
import difflib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mmbert_jax.errors import UserError
from mmbert_jax.files import visible, write_text
from mmbert_jax.run import CONFIG


@dataclasses.dataclass(frozen=True)
class Field:
    """A field's type, the rule that its value must meet, and that rule in words."""

    type: type
    holds: Callable[[Any], bool]
    rule: str


def _choice(*allowed: str) -> Field:
    return Field(
        str, lambda value: value in allowed, "one of " + ", ".join(repr(a) for a in allowed)
    )


_text = Field(str, bool, "not empty")
_any_text = Field(str, lambda value: True, "text")
_positive = Field(int, lambda value: value > 0, "a whole number above 0")
_count = Field(int, lambda value: value >= 0, "a whole number, 0 or more")
_axis = Field(
    int,
    lambda value: value > 0 or value == -1,
    "a whole number above 0, or -1 for all devices that are left",
)
_above_zero = Field(float, lambda value: value > 0, "above 0")
_not_negative = Field(float, lambda value: value >= 0, "0 or more")
_share = Field(float, lambda value: 0 <= value <= 1, "between 0 and 1")
_below_one = Field(float, lambda value: 0 <= value < 1, "at least 0 and below 1")
_ratio = Field(float, lambda value: 0 < value < 1, "between 0 and 1, neither of them")

FIELDS = {
    # Seed of initialisation, masking, dropout and, with the phase's name, of the order of the data.
    "seed": _count,
    # Name of the phase, which also enters the order of the data: two phases over one corpus read it differently.
    "phase": _text,
    # Run folder or checkpoint that the phase starts from; empty: from scratch.
    "init_from": _any_text,
    # Compute dtype. Parameters, moments, norms and the loss are float32 in any case.
    "dtype": _choice("bfloat16", "float32"),
    "log_every_steps": _positive,
    "model.vocab_size": _positive,
    "model.hidden_size": _positive,
    "model.num_layers": _positive,
    "model.num_heads": _positive,
    "model.intermediate_size": _positive,
    # Keys that a local layer sees besides the query's own: 128 means |i - j| <= 64.
    "model.attention_window": Field(
        int, lambda value: value > 0 and value % 2 == 0, "an even number above 0"
    ),
    "model.global_every": _positive,
    "model.global_rope_theta": _above_zero,
    "model.local_rope_theta": _above_zero,
    "model.norm_eps": _above_zero,
    "model.attention_output_dropout": _below_one,
    # Folder of a corpus, or of one corpus for each source, named like the source.
    "data.corpus": _any_text,
    "data.row_length": Field(int, lambda value: value >= 8, "a whole number, 8 or more"),
    # A language's share of its source is proportional to (its tokens)^temperature.
    "data.temperature": Field(
        float, lambda value: 0 <= value <= 1, "between 0 (all languages alike) and 1 (as they are)"
    ),
    # Most passes over one language during the phase; what is cut off goes to the other languages of the source.
    "data.max_passes": _above_zero,
    # Processes that read rows; 0 reads in threads of the training process.
    "data.loader_workers": _count,
    # Microbatches read ahead.
    "data.prefetch": _positive,
    # A run that waits for longer than this for a batch ends, to be started again.
    "data.stall_minutes": _above_zero,
    # Share of a row's tokens that are targets.
    "mask.ratio": _ratio,
    "mask.mask_share": _share,
    "mask.random_share": _share,
    # Length of the phase in tokens, padding not subtracted.
    "train.tokens": _positive,
    "train.batch_rows": _positive,
    # Rows that go through the model at a time on all devices together; the batch is accumulated from them.
    "train.microbatch_rows": _positive,
    # The batch grows from this many rows to batch_rows during the first batch_warmup_tokens tokens.
    "train.batch_warmup_from_rows": _positive,
    "train.batch_warmup_tokens": _count,
    # Classes whose logits are held at a time in the loss.
    "train.loss_chunk": _positive,
    # A step with a loss or gradient that is not finite changes nothing. After this many in a row the run goes back to
    # the checkpoint before them and on behind their rows.
    "train.max_skipped_steps": _positive,
    "optimizer.peak_lr": _above_zero,
    # Fully decoupled: what a weight loses in a step at the peak learning rate.
    "optimizer.weight_decay": _not_negative,
    "optimizer.b1": _below_one,
    "optimizer.b2": _below_one,
    "optimizer.eps": _above_zero,
    "optimizer.warmup_tokens": _count,
    "optimizer.schedule": _choice("stable", "one_minus_sqrt", "linear"),
    # Learning rate at the end of a decay, as a share of the peak.
    "optimizer.final_lr_fraction": _share,
    "mesh.data": _axis,
    "mesh.fsdp": _axis,
    "mesh.tensor": _axis,
    "checkpoint.every_steps": _positive,
    # A step that is logged also saves when the last save was started this long ago; 0: by steps alone.
    "checkpoint.every_minutes": _not_negative,
    # Checkpoints that are kept, the newest ones.
    "checkpoint.keep": _positive,
    # Steps between evaluations on held-out rows; 0 evaluates at the end only.
    "eval.every_steps": _count,
    # The same in every phase, so that losses of different phases can be compared.
    "eval.mask_ratio": _ratio,
    "eval.rows_per_language": _positive,
    "eval.batch_rows": _positive,
}

# Sections whose entries the user names. A source has these fields and its languages; a group has languages alone.
SOURCE_FIELDS = {"share": _above_zero}
OPEN_SECTIONS = ("data.sources", "eval.groups")


def validate(config: ConfigDict) -> None:
    """Checks every field of a training config.

    Raises:
      UserError: a field is missing, unknown, of the wrong type or out of range, or two fields contradict each other.
    """
    given = {
        name: value
        for name, value in flatten(config.to_dict())
        if not name.startswith(OPEN_SECTIONS)
    }
    for name in given.keys() - FIELDS.keys():
        close = difflib.get_close_matches(name, FIELDS, n=1)
        hint = (
            f"did you mean config.{close[0]}?" if close else "mmbert_jax/config.py lists the fields"
        )
        raise UserError(f"config.{name} is no field of a training config: {hint}")
    for name, field in FIELDS.items():
        if name not in given:
            raise UserError(f"config.{name} is missing: it must be {field.rule}")
        _check(name, given[name], field)
    _check_sources(config)
    _check_groups(config)
    _check_together(config)


def to_json(config: ConfigDict) -> str:
    """The config as it stands after all overrides, for the run folder and the checkpoints."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True)


# Fields that a run may change when it is resumed: they decide how fast it goes and what it reports, not what it learns.
FREE_ON_RESUME = (
    "mesh.",
    "checkpoint.",
    "eval.",
    "log_every_steps",
    "data.corpus",
    "data.loader_workers",
    "data.prefetch",
    "data.stall_minutes",
    "train.max_skipped_steps",
)


def check_run(config: ConfigDict, run: Path) -> None:
    """Checks that a folder is free, or belongs to the same run.

    Raises:
      UserError: the folder holds something else, or a run whose config differs in a field that decides the result.
    """
    path = run / CONFIG
    if not path.exists():
        if run.is_dir() and visible(run):
            raise UserError(
                f"{run} is not empty and is no run folder (it has no config.json): choose another --workdir"
            )
        return
    before, now = (
        dict(flatten(json.loads(path.read_text()))),
        dict(flatten(json.loads(to_json(config)))),
    )
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name) and not name.startswith(FREE_ON_RESUME):
            raise UserError(
                f"{run} holds a run with config.{name}={before.get(name)!r}, not {now.get(name)!r}: resume it with"
                " the config that it was started with, or choose another --workdir"
            )


def claim_run(config: ConfigDict, run: Path) -> None:
    """Makes the run folder and writes its config.json, after `check_run`."""
    check_run(config, run)
    run.mkdir(parents=True, exist_ok=True)
    path = run / CONFIG
    write_text(path, to_json(config))


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _check(name: str, value: Any, field: Field) -> None:
    numeric = field.type is float and isinstance(value, int)
    if (
        isinstance(value, bool)
        or not (isinstance(value, field.type) or numeric)
        or not field.holds(value)
    ):
        raise UserError(f"config.{name}={value!r} is not allowed: it must be {field.rule}")


def _check_sources(config: ConfigDict) -> None:
    sources = config.data.get("sources")
    if not sources:
        raise UserError(
            "config.data.sources is empty: name at least one source with its share and languages"
        )
    for source, entry in sources.items():
        name = f"data.sources.{source}"
        for field in entry:
            if field not in (*SOURCE_FIELDS, "languages"):
                raise UserError(
                    f"config.{name}.{field} is no field of a source: it has 'share' and 'languages'"
                )
        for field, check in SOURCE_FIELDS.items():
            if field not in entry:
                raise UserError(f"config.{name}.{field} is missing: it must be {check.rule}")
            _check(f"{name}.{field}", entry[field], check)
        _check_languages(f"{name}.languages", entry.get("languages"))


def _check_groups(config: ConfigDict) -> None:
    for group, languages in config.eval.get("groups", {}).items():
        _check_languages(f"eval.groups.{group}", languages)


def _check_languages(name: str, languages: Any) -> None:
    if not isinstance(languages, (tuple, list)) or not all(
        isinstance(code, str) and code for code in languages
    ):
        raise UserError(
            f"config.{name}={languages!r} is not allowed: it must be a tuple of language codes"
        )


def _check_together(config: ConfigDict) -> None:
    model, train = config.model, config.train
    if model.hidden_size % model.num_heads or (model.hidden_size // model.num_heads) % 2:
        raise UserError(
            f"config.model.num_heads={model.num_heads} must divide config.model.hidden_size={model.hidden_size}"
            " into heads of an even size"
        )
    for name in ("batch_rows", "batch_warmup_from_rows"):
        if train[name] % train.microbatch_rows:
            raise UserError(
                f"config.train.{name}={train[name]} must be a multiple of"
                f" config.train.microbatch_rows={train.microbatch_rows}"
            )
    if train.batch_warmup_from_rows > train.batch_rows:
        raise UserError(
            f"config.train.batch_warmup_from_rows={train.batch_warmup_from_rows} is above"
            f" config.train.batch_rows={train.batch_rows}"
        )
    if config.mask.mask_share + config.mask.random_share > 1:
        raise UserError("config.mask.mask_share and config.mask.random_share add up to more than 1")
    if train.tokens < train.batch_warmup_from_rows * config.data.row_length:
        raise UserError(
            f"config.train.tokens={train.tokens} is less than one step: {train.batch_warmup_from_rows} rows of"
            f" {config.data.row_length} tokens"
        )
