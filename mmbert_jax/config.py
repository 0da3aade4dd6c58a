"""What a config holds: every field with its rule and its default. All are checked here, once, before anything else.

A config file gives what its phase is about; `complete` fills in the rest. So a field that is new needs no entry in any
config file, and a run that began before there was such a field goes on with its default.
"""

import dataclasses
import difflib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict, config_dict

from mmbert_jax.errors import UserError
from mmbert_jax.files import write_text
from mmbert_jax.places import Place, place
from mmbert_jax.run import CONFIG, is_free, read_config


@dataclasses.dataclass(frozen=True)
class Field:
    """A field's type, the rule that its value must meet, that rule in words, and its default.

    Attributes:
      default: a value, or a function of the config that finds one; None: a config file must give the field.
    """

    type: type
    holds: Callable[[Any], bool]
    rule: str
    default: Any = None

    def or_else(self, default: Any) -> "Field":
        return dataclasses.replace(self, default=default)


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
_switch = Field(bool, lambda value: True, "True or False")

FIELDS = {
    # Seed of initialisation, masking, dropout and, with the phase's name, of the order of the data.
    "seed": _count.or_else(21),
    # Name of the phase, which also enters the order of the data: two phases over one corpus read it differently.
    "phase": _text,
    # Run folder, where `--workdir` names no other.
    "workdir": _text.or_else(lambda config: f"runs/{config.phase}"),
    # Run folder or checkpoint that the phase starts from; empty: from scratch.
    "init_from": _any_text.or_else(""),
    # Whether the optimiser goes on with the moments of that checkpoint, or starts anew.
    "init_moments": _switch.or_else(True),
    # Compute dtype. Parameters, moments, norms and the loss are float32 in any case.
    "dtype": _choice("bfloat16", "float32").or_else("bfloat16"),
    "log_every_steps": _positive.or_else(10),
    "model.vocab_size": _positive,
    "model.hidden_size": _positive,
    "model.num_layers": _positive,
    "model.num_heads": _positive,
    "model.intermediate_size": _positive,
    # Keys that a local layer sees besides the query's own: 128 means |i - j| <= 64.
    "model.attention_window": Field(
        int, lambda value: value > 0 and value % 2 == 0, "an even number above 0", default=128
    ),
    "model.global_every": _positive.or_else(3),
    "model.global_rope_theta": _above_zero,
    "model.local_rope_theta": _above_zero,
    "model.norm_eps": _above_zero.or_else(1e-5),
    "model.attention_output_dropout": _below_one.or_else(0.1),
    # Folder of a corpus, or of one corpus for each source, named like the source.
    "data.corpus": _any_text.or_else("corpora"),
    "data.row_length": Field(int, lambda value: value >= 8, "a whole number, 8 or more"),
    # A language's share of its source is proportional to (its tokens)^temperature.
    "data.temperature": Field(
        float, lambda value: 0 <= value <= 1, "between 0 (all languages alike) and 1 (as they are)"
    ),
    # Most passes over one language during the phase; what is cut off goes to the other languages of the source.
    "data.max_passes": _above_zero.or_else(5.0),
    # Length of a phase by which max_passes is reckoned. A run keeps the one that it began with when train.tokens grows,
    # and so its order of rows.
    "data.mixture_tokens": _positive.or_else(lambda config: config.train.tokens),
    # Processes that read rows; 0 reads in threads of the training process.
    "data.loader_workers": _count.or_else(4),
    # Microbatches read ahead.
    "data.prefetch": _positive.or_else(4),
    # A run that waits for longer than this for a batch ends, to be started again.
    "data.stall_minutes": _above_zero.or_else(1.5),
    # Share of a row's tokens that are targets.
    "mask.ratio": _ratio,
    "mask.mask_share": _share.or_else(0.8),
    "mask.random_share": _share.or_else(0.1),
    # Length of the phase in tokens, padding not subtracted. A run with a stable learning rate may be resumed with more.
    "train.tokens": _positive,
    "train.batch_rows": _positive,
    # Rows that go through the model at a time on all devices together, a multiple of mesh data x fsdp. The batch is
    # accumulated from them, its last microbatch filled up with padding; held-out rows are evaluated in such batches.
    "train.microbatch_rows": _positive,
    # The batch grows from this many rows to batch_rows during the first batch_warmup_tokens tokens, by
    # batch_warmup_stage_rows at a time.
    "train.batch_warmup_from_rows": _positive.or_else(lambda config: config.train.batch_rows),
    "train.batch_warmup_stage_rows": _positive.or_else(lambda config: config.train.microbatch_rows),
    "train.batch_warmup_tokens": _count.or_else(0),
    # Classes whose logits are held at a time in the loss: of held-out rows, and in training on TPUs and where a mesh
    # shards the embedding (fsdp, tensor). Elsewhere training holds 2 GiB, or a quarter, of all logits of its targets.
    "train.loss_chunk": _positive.or_else(16_000),
    # A step with a loss or gradient that is not finite changes nothing. After this many in a row the run goes back to
    # the checkpoint before them and on behind their rows.
    "train.max_skipped_steps": _positive.or_else(10),
    # A run of which a step takes longer than this ends, to be started again: a process or its device hangs.
    "train.stall_minutes": _above_zero.or_else(30.0),
    # Muon and NorMuon take the matrices of the hidden layers, and leave all else to StableAdamW.
    "optimizer.name": _choice("stable_adamw", "muon", "normuon").or_else("stable_adamw"),
    "optimizer.peak_lr": _above_zero,
    # Fully decoupled: what a weight loses in a step at the peak learning rate.
    "optimizer.weight_decay": _not_negative,
    "optimizer.b1": _below_one.or_else(0.9),
    "optimizer.b2": _below_one.or_else(0.95),
    "optimizer.eps": _above_zero.or_else(1e-8),
    # Decay rate of Muon's and NorMuon's momentum; b1 is StableAdamW's alone, b2 and eps are NorMuon's, too.
    "optimizer.momentum": _below_one.or_else(0.95),
    "optimizer.warmup_tokens": _count.or_else(0),
    "optimizer.schedule": _choice("stable", "one_minus_sqrt", "linear").or_else("stable"),
    # Learning rate at the end of a decay, as a share of the peak.
    "optimizer.final_lr_fraction": _share.or_else(1.0),
    "mesh.data": _axis.or_else(-1),
    "mesh.fsdp": _axis.or_else(1),
    "mesh.tensor": _axis.or_else(1),
    "checkpoint.every_steps": _positive.or_else(1000),
    # A step that is logged also saves when the last save was started this long ago; 0: by steps alone.
    "checkpoint.every_minutes": _not_negative.or_else(0.0),
    # Checkpoints that are kept, the newest ones.
    "checkpoint.keep": _positive.or_else(3),
    # Checkpoints of every so many steps are kept for good, besides those; 0: none. A multiple of every_steps.
    "checkpoint.keep_every_steps": _count.or_else(0),
    # A run that waits for longer than this for a save or for what it restores ends, to be started again.
    "checkpoint.stall_minutes": _above_zero.or_else(60.0),
    # Steps between evaluations on held-out rows; 0 evaluates at the end only.
    "eval.every_steps": _count.or_else(0),
    # The same in every phase, so that losses of different phases can be compared.
    "eval.mask_ratio": _ratio.or_else(0.15),
    "eval.rows_per_language": _positive.or_else(2),
}

# Sections whose entries the user names. A source has these fields and its languages; a group has languages alone.
SOURCE_FIELDS = {"share": _above_zero}
OPEN_SECTIONS = ("data.sources", "eval.groups")

# What a run keeps from its start, unless its config says otherwise.
_OF_THE_RUN = ("data.mixture_tokens", "train.batch_warmup_stage_rows")


def complete(config: ConfigDict, run: Place | None = None) -> ConfigDict:
    """A copy in which every field that was left out has its default.

    Args:
      run: the run folder, if any: fields that a run keeps from its start come from there.

    Raises:
      UserError: something else stands where a section should be.
    """
    config = fill(config)
    if run is not None and (run / CONFIG).is_file():
        before = complete(ConfigDict(read_config(run)))
        for name in _OF_THE_RUN:
            section, key = _place(config, name)
            if section[key] is None:
                of_the_run, _ = _place(before, name)
                section[key] = of_the_run[key]
    for name, field in FIELDS.items():
        section, key = _place(config, name)
        if section[key] is None and callable(field.default):
            section[key] = field.default(config)
    return config


def validate(config: ConfigDict) -> None:
    """Checks every field of a training config; one that has a default may be missing.

    Raises:
      UserError: a field is missing, unknown, of the wrong type or out of range, or two fields contradict each other.
    """
    config = complete(config)
    given = {name: value for name, value in _named_fields(config).items() if value is not None}
    for name in given.keys() - FIELDS.keys():
        close = difflib.get_close_matches(name, FIELDS, n=1)
        hint = (
            f"did you mean config.{close[0]}?" if close else "mmbert_jax/config.py lists the fields"
        )
        raise UserError(f"config.{name} is no field of a training config: {hint}")
    for name, field in FIELDS.items():
        if name in given:
            _check(name, given[name], field)
        elif not callable(field.default):  # its default waits for a field that is missing, too
            raise UserError(f"config.{name} is missing: it must be {field.rule}")
    for path in (config.workdir, config.init_from, config.data.corpus):
        place(path)  # refuses what nothing here can read or write
    _check_sources(config)
    _check_groups(config)
    _check_together(config)


def to_json(config: ConfigDict) -> str:
    """The config as it stands after all overrides, for the run folder and the checkpoints."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True)


# Fields that a run may change when it is resumed: they decide how fast it goes and what it reports, not what it learns.
FREE_ON_RESUME = (
    "workdir",
    "mesh.",
    "checkpoint.",
    "eval.",
    "log_every_steps",
    "data.corpus",
    "data.loader_workers",
    "data.prefetch",
    "data.stall_minutes",
    "train.microbatch_rows",
    "train.max_skipped_steps",
    "train.stall_minutes",
)


def is_free_on_resume(name: str) -> bool:
    """Whether a run may be resumed with another value of a field."""
    return any(
        name == free or (free[-1] == "." and name.startswith(free)) for free in FREE_ON_RESUME
    )


def decisive_fields(config: ConfigDict) -> dict[str, Any]:
    """Name -> value of the fields that decide what a run learns, as JSON has them.

    The length of a phase with a stable learning rate is none: it can be extended.
    """
    return {
        name: value
        for name, value in flatten(json.loads(to_json(config)))
        if not is_free_on_resume(name)
        and not (name == "train.tokens" and config.optimizer.schedule == "stable")
    }


def check_run(config: ConfigDict, run: Place) -> list[str]:
    """Checks that a folder is free, or belongs to the same run.

    Args:
      config: complete.

    Returns:
      What is not as it was in the run before, though it may be, a line each.

    Raises:
      UserError: the folder holds something else, or a run whose config differs in a field that decides the result.
    """
    path = run / CONFIG
    if not path.exists():
        if not is_free(run):
            raise UserError(
                f"{run} is not empty and is no run folder (it has no config.json): choose another --workdir"
            )
        return []
    old = complete(ConfigDict(read_config(run)))
    old_names = _named_fields(old).keys() - FIELDS.keys()
    lines = [f"{path}: config.{name} is no longer a field: left out" for name in sorted(old_names)]
    before, now = (dict(flatten(json.loads(to_json(each)))) for each in (old, config))
    for name in sorted((before.keys() | now.keys()) - old_names):
        if before.get(name) == now.get(name) or is_free_on_resume(name):
            continue
        if name == "train.tokens" and _may_be_extended(old, config):
            lines.append(
                f"{run} is extended from {before[name]:,} to {now[name]:,} tokens (config.train.tokens)"
            )
            continue
        raise UserError(
            f"{run} holds a run with config.{name}={before.get(name)!r}, not {now.get(name)!r}: resume it with"
            " the config that it was started with, or choose another --workdir"
        )
    return lines


def _may_be_extended(old: ConfigDict, new: ConfigDict) -> bool:
    """Whether what a run has done so far is what a longer one would have done."""
    return new.optimizer.schedule == "stable" and new.train.tokens > old.train.tokens


def claim_run(config: ConfigDict, run: Place) -> list[str]:
    """Makes the run folder and writes its config.json, after `check_run`, whose lines it returns."""
    lines = check_run(config, run)
    run.mkdir(parents=True, exist_ok=True)
    write_text(run / CONFIG, to_json(config))
    return lines


def fill(config: ConfigDict) -> ConfigDict:
    """A copy with all sections and fields; what has no default, or one that depends on other fields, is None."""
    filled = config.copy_and_resolve_references()
    with filled.unlocked():
        for name, field in FIELDS.items():
            section, key = _place(filled, name)
            if section.get(key) is None:
                known = field.default is not None and not callable(field.default)
                section[key] = field.default if known else config_dict.placeholder(field.type)
        for name in OPEN_SECTIONS:
            section, key = _place(filled, name)
            if key not in section:
                section[key] = ConfigDict()
    return filled


def _place(config: ConfigDict, name: str) -> tuple[ConfigDict, str]:
    """(section, key) of a field; a section that is missing is made."""
    *sections, key = name.split(".")
    for section in sections:
        if section not in config:
            config[section] = ConfigDict()
        if not isinstance(config[section], ConfigDict):
            raise UserError(
                f"config.{section}={config[section]!r} is not allowed: it must be a section, which holds config.{name}"
            )
        config = config[section]
    return config, key


def _named_fields(config: ConfigDict) -> dict[str, Any]:
    """Every field but those of the sections whose entries the user names."""
    return {
        name: value
        for name, value in flatten(config.to_dict())
        if not any(name == place or name.startswith(f"{place}.") for place in OPEN_SECTIONS)
    }


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _check(name: str, value: Any, field: Field) -> None:
    numeric = field.type is float and isinstance(value, int)
    if (
        isinstance(value, bool) != (field.type is bool)
        or not (isinstance(value, field.type) or numeric)
        or not field.holds(value)
    ):
        raise UserError(f"config.{name}={value!r} is not allowed: it must be {field.rule}")


def _check_sources(config: ConfigDict) -> None:
    sources = _section(config.data, "data.sources")
    if not sources:
        raise UserError(
            "config.data.sources is empty: name at least one source with its share and languages"
        )
    for source in sources:
        name = f"data.sources.{source}"
        entry = _section(sources, name)
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
    for group, languages in _section(config.eval, "eval.groups").items():
        _check_languages(f"eval.groups.{group}", languages)


def _section(parent: ConfigDict, name: str) -> ConfigDict:
    section = parent[name.rpartition(".")[2]]
    if not isinstance(section, ConfigDict):
        raise UserError(f"config.{name}={section!r} is not allowed: it must be a section")
    return section


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
    for section in ("mask", "eval"):
        name = "ratio" if section == "mask" else "mask_ratio"
        ratio, row_length = config[section][name], config.data.row_length
        if not round(ratio * row_length):
            raise UserError(
                f"config.{section}.{name}={ratio} masks no token of a row of config.data.row_length={row_length}:"
                f" it must be above {0.5 / row_length:g}"
            )
    if train.batch_warmup_from_rows > train.batch_rows:
        raise UserError(
            f"config.train.batch_warmup_from_rows={train.batch_warmup_from_rows} is above"
            f" config.train.batch_rows={train.batch_rows}"
        )
    if config.mask.mask_share + config.mask.random_share > 1:
        raise UserError("config.mask.mask_share and config.mask.random_share add up to more than 1")
    if config.checkpoint.keep_every_steps % config.checkpoint.every_steps:
        raise UserError(
            f"config.checkpoint.keep_every_steps={config.checkpoint.keep_every_steps} must be a multiple of"
            f" config.checkpoint.every_steps={config.checkpoint.every_steps}, the steps that are saved"
        )
    if train.tokens < train.batch_warmup_from_rows * config.data.row_length:
        raise UserError(
            f"config.train.tokens={train.tokens} is less than one step: {train.batch_warmup_from_rows} rows of"
            f" {config.data.row_length} tokens"
        )
