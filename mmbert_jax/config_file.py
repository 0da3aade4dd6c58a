"""Config files and the words of a command line that override their fields: the one way to load a config."""

import re
import traceback
import types
from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

from mmbert_jax.config import complete, fill
from mmbert_jax.errors import UserError
from mmbert_jax.places import place


def read(name: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """The config of a file with overrides applied, defaults that depend on other fields still open (None).

    Args:
      name: FILE.py, whose `get_config()` returns the config, or FILE.py:ARGUMENT for `get_config(ARGUMENT)`.
      overrides: words of a command line, `--config.x.y=value` or `--config.x.y value`.

    Raises:
      UserError: there is no such file or function, or an override names no field or does not fit it.
    """
    config = fill(_from_file(name))  # all fields, so that all can be overridden
    values, words = flags.FlagValues(), ["", *overrides]
    try:
        holder = config_flags.DEFINE_config_dict(
            "config", config, flag_values=values, sys_argv=words
        )
        rest = values(words)
    except (AttributeError, KeyError, TypeError, ValueError, flags.Error) as error:
        what = "the config has no field " if isinstance(error, AttributeError | KeyError) else ""
        raise UserError(
            f"{what}{_reason(error)}. Overrides are given as --config.x.y=value"
        ) from error
    if len(rest) > 1:
        raise UserError(
            f"unexpected argument {rest[1]!r}: fields of the config are given as --config.x.y=value"
        )
    return holder.value


def load(name: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """The complete config of a file, as `mmbert_jax.train` takes it: `read`, then `complete`."""
    return complete(read(name, overrides))


def split_overrides(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """(overrides of config fields, the other words) of a command line."""
    overrides, others = [], []
    words = list(words)
    while words:
        word = words.pop(0)
        if not re.match(r"--?config\.", word):
            others.append(word)
            continue
        overrides.append(word)
        if "=" not in word and words and not words[0].startswith("--"):
            overrides.append(words.pop(0))
    return overrides, others


def _reason(error: Exception) -> str:
    """The message of an error, or of the one that it was made of, in one line."""
    while error.args and isinstance(error.args[0], Exception):
        error = error.args[0]
    return " ".join(str(error.args[0] if error.args else error).split())


def _from_file(name: str) -> ConfigDict:
    """What `get_config` of FILE.py[:ARGUMENT] returns; the file is loaded by its path, wherever it lies."""
    path, argument = name, ""
    if not place(name).is_file():  # folders, too, may have a colon
        named = re.fullmatch(r"(.*?\.py):(.*)", name)
        path, argument = named.groups() if named else (name, "")
    file = place(path)
    if not file.is_file():
        raise UserError(f"--config {name}: there is no file {path}")
    if file.suffix != ".py":
        raise UserError(f"--config {name}: {path} is no Python file")
    module = types.ModuleType(f"config_{file.stem}")
    module.__file__ = str(file)
    try:
        exec(compile(file.read_bytes(), str(file), "exec"), module.__dict__)
        config = module.get_config(argument) if argument else module.get_config()
    except UserError:
        raise
    except Exception as error:  # the user's own program
        frame = traceback.extract_tb(error.__traceback__)[-1]
        raise UserError(
            f"--config {name}: {type(error).__name__}: {error} ({frame.filename}, line {frame.lineno})"
        ) from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"--config {name}: get_config() of {path} must return a ConfigDict")
    return config
