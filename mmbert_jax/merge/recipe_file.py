"""A merge written down as YAML, in mergekit's form and with its defaults, as far as this project merges so.

merge_method: ties
base_model: runs/phase2
models:
  - model: runs/decay_all
    parameters:
      weight: 1.0
      density: 0.5
  - model: runs/decay_english
    parameters:
      weight:
        - filter: mlp          # tensors with this in their name
          value: [0.2, 0.8]    # from the first layer to the last
        - value: 0.5           # all others
parameters:                    # of all models; a model's own come first
  density: 0.4
  lambda: 1.0
dtype: float32
"""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from mmbert_jax.errors import UserError
from mmbert_jax.hf.load import EXACT_IN_FLOAT32
from mmbert_jax.merge.recipe import (
    METHODS,
    NORMALIZED,
    PER_MODEL,
    RESCALED,
    WEIGHTED,
    Recipe,
    Rule,
    Setting,
    check_base,
    check_count,
    check_value,
    own_weights,
)
from mmbert_jax.places import Place, resolved

_FIELDS = ("merge_method", "models", "base_model", "parameters", "dtype", "out_dtype")
# Fields of mergekit's that ask for what is not done here.
_NOT_HERE = {
    "slices": "layers are merged with those of the same number; list whole models under models",
    "modules": "list whole models under models",
    "tokenizer_source": "all models have to have one tokeniser, which the merged one has, too; leave it out",
    "tokenizer": "all models have to have one tokeniser, which the merged one has, too; leave it out",
    "chat_template": "encoders have none; leave it out",
}
# Says how mergekit keeps its masks in memory, and nothing about what comes out.
_WITHOUT_EFFECT = ("int8_mask",)
# mergekit keeps everything where a recipe gives no density.
_DENSITY = 1.0


@dataclasses.dataclass(frozen=True)
class RecipeFile:
    """What a file says, checked as far as it can be without opening the models.

    Attributes:
      method: of METHODS.
      base: its path; None where there is none.
      models: their paths, without the base.
      parameters: of all models.
      own_parameters: of each model, behind what they are called in messages.
    """

    path: Place
    method: str
    base: str | None
    models: tuple[str, ...]
    parameters: Mapping[str, Any]
    own_parameters: tuple[tuple[str, Mapping[str, Any]], ...]
    dtype: str | None


def read_recipe_file(path: Place) -> RecipeFile:
    """Reads a recipe.

    Raises:
      UserError: the file is missing or no YAML; a field is missing, unknown, or holds what cannot be done; it is named.
    """
    try:
        fields = yaml.safe_load(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(fields, Mapping):
        raise UserError(f"{path} does not hold a recipe: it has to have merge_method and models")
    for field in fields:
        if field in _NOT_HERE:
            raise UserError(f"{path}: {field} is not supported: {_NOT_HERE[field]}")
        if field not in _FIELDS:
            raise UserError(f"{path}: {field} is not known; there are {', '.join(_FIELDS)}")
    method = fields.get("merge_method")
    if method not in METHODS:
        raise UserError(
            f"{path}: merge_method is {method!r}; it has to be one of {', '.join(METHODS)}"
        )
    for field in ("dtype", "out_dtype"):
        if fields.get(field) not in (None, *EXACT_IN_FLOAT32):
            raise UserError(
                f"{path}: {field} is {fields[field]!r}; it has to be one of {', '.join(EXACT_IN_FLOAT32)}"
            )
    base = fields.get("base_model")
    if base is not None and not isinstance(base, str):
        raise UserError(f"{path}: base_model is {base!r}; it has to be a path")
    listed = fields.get("models")
    if not isinstance(listed, Sequence) or isinstance(listed, str) or not listed:
        raise UserError(f"{path}: models is {listed!r}; it has to be a list of entries with model")
    entries = [_entry(path, i, entry) for i, entry in enumerate(listed)]
    parameters = _parameters(path, "parameters", fields.get("parameters"))
    if method == "slerp" and base is not None:
        entries, base = _base_first(path, entries, base), None
    elif base is not None:
        # mergekit's recipes may list the base, too.
        entries = [entry for entry in entries if resolved(entry.model) != resolved(base)]
    named = f"{path}: merge_method {method}"
    check_base(named, method, base is not None, "base_model")
    check_count(named, method, len(entries), "models")
    if not entries:
        raise UserError(f"{path}: models names nothing but base_model")
    return RecipeFile(
        path,
        method,
        base,
        tuple(entry.model for entry in entries),
        parameters,
        tuple((entry.where, entry.parameters) for entry in entries),
        fields.get("out_dtype") or fields.get("dtype"),
    )


def to_recipe(file: RecipeFile, spread: Sequence[int]) -> Recipe:
    """The recipe of a file.

    Args:
      spread: how many models each of the file's stands for: the checkpoints of a run, with `ema`.

    Raises:
      UserError: a parameter is missing, unknown to the method, or holds what it cannot be; it is named.
    """
    method, own_settings = file.method, METHODS[file.method]
    switches = [
        name for name, of in (("normalize", NORMALIZED), ("rescale", RESCALED)) if method in of
    ]
    of_model = [name for name in own_settings if name in PER_MODEL]
    of_model += ["weight"] if method in WEIGHTED else []
    known = [*own_settings, *of_model, *switches, *_WITHOUT_EFFECT]
    if method == "multislerp":
        known.append("normalize_weights")
    for where, parameters in (("parameters", file.parameters), *file.own_parameters):
        for name in parameters:
            if name not in known:
                raise UserError(
                    f"{file.path}: {where}.{name} says nothing to {method}, which has {', '.join(dict.fromkeys(known))}"
                )
            if where != "parameters" and name not in of_model:
                raise UserError(
                    f"{file.path}: {where}.{name} cannot be a model's own; write it under parameters"
                )
    settings: dict[str, Setting | list[Setting]] = {}
    for name, usual in own_settings.items():
        usual = _DENSITY if name == "density" else usual
        if name in PER_MODEL:
            settings[name] = _of_models(file, name, usual)
        else:
            settings[name] = _setting(file.path, name, usual, [("parameters", file.parameters)])
    for name in ("seed", "decay", "max_iter", "tol"):
        if isinstance(settings.get(name), tuple):
            raise UserError(f"{file.path}: parameters.{name} has to be one number for all tensors")
    weights = (
        _of_models(file, "weight", None)
        if method in WEIGHTED
        else own_weights(method, sum(spread), settings)
    )
    normalize = "normalize_weights" if method == "multislerp" else "normalize"
    return Recipe(
        method,
        tuple(weights),
        settings,
        normalize=_switch(file, normalize, NORMALIZED.get(method, True)),
        rescale=_switch(file, "rescale", RESCALED.get(method, False)),
        dtype=file.dtype,
    )


@dataclasses.dataclass(frozen=True)
class _Entry:
    where: str
    model: str
    parameters: Mapping[str, Any]


def _entry(path: Place, i: int, entry: Any) -> _Entry:
    where = f"models[{i}]"
    if not isinstance(entry, Mapping) or not isinstance(entry.get("model"), str):
        raise UserError(f"{path}: {where} is {entry!r}; it has to have model, a path")
    for field in entry:
        if field not in ("model", "parameters"):
            raise UserError(f"{path}: {where}.{field} is not known; there are model, parameters")
    where = f"{where}.parameters"
    return _Entry(where, entry["model"], _parameters(path, where, entry.get("parameters")))


def _parameters(path: Place, where: str, found: Any) -> Mapping[str, Any]:
    if found is not None and not isinstance(found, Mapping):
        raise UserError(f"{path}: {where} is {found!r}; it has to have names with values")
    return found or {}


def _base_first(path: Place, entries: list[_Entry], base: str) -> list[_Entry]:
    """With slerp, base_model is mergekit's word for the model that `t` counts from."""
    first = [entry for entry in entries if resolved(entry.model) == resolved(base)]
    if not first:
        raise UserError(f"{path}: base_model {base} is none of models, which slerp goes between")
    return first + [entry for entry in entries if entry not in first]


def _of_models(file: RecipeFile, name: str, usual: float | None) -> list[Setting]:
    shared = ("parameters", file.parameters)
    return [_setting(file.path, name, usual, [own, shared]) for own in file.own_parameters]


def _setting(
    path: Place,
    name: str,
    usual: float | None,
    sources: Sequence[tuple[str, Mapping[str, Any]]],
) -> Setting:
    """A parameter out of the places that may hold it, the first before the next, and `usual` where none fits."""
    rules: list[Rule] = []
    for where, parameters in sources:
        if name in parameters:
            rules += _rules(f"{path}: {where}.{name}", name, parameters[name])
    if usual is not None:
        rules.append(Rule(usual))
    for i, rule in enumerate(rules):
        if rule.filter is None:
            rules = rules[: i + 1]
            break
    else:
        where = sources[0][0] if rules or len(sources) == 1 else " or ".join(w for w, _ in sources)
        missing = (
            "has no value for tensors that no filter fits; end with one" if rules else "is missing"
        )
        raise UserError(f"{path}: {where}.{name} {missing}")
    if len(rules) == 1 and not isinstance(rules[0].value, tuple):
        return rules[0].value
    return tuple(rules)


def _rules(where: str, name: str, value: Any) -> list[Rule]:
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list) or not any(isinstance(x, Mapping) for x in value):
        return [Rule(_number_or_several(where, name, value))]
    rules = []
    for i, rule in enumerate(value):
        at = f"{where}[{i}]"
        if not isinstance(rule, Mapping) or "value" not in rule or set(rule) - {"filter", "value"}:
            raise UserError(
                f"{at} is {rule!r}; it has to have value, and filter where it is for some tensors"
            )
        filter_ = rule.get("filter")
        if filter_ is not None and (not isinstance(filter_, str) or not filter_):
            raise UserError(f"{at}.filter is {filter_!r}; it has to be a part of tensors' names")
        number = _number_or_several(f"{at}.value", name, rule["value"])
        rules.append(Rule(number, None if filter_ == "*" else filter_))
    return rules


def _number_or_several(where: str, name: str, value: Any) -> float | tuple[float, ...]:
    if isinstance(value, list) and value:
        return tuple(_number(f"{where}[{i}]", name, x) for i, x in enumerate(value))
    return _number(where, name, value)


def _number(where: str, name: str, value: Any) -> float:
    if isinstance(value, str):  # YAML reads 1e-5 as a text
        with contextlib.suppress(ValueError):
            value = float(value)
    check_value(where, name, value)
    return value


def _switch(file: RecipeFile, name: str, usual: bool) -> bool:
    value = file.parameters.get(name, usual)
    if not isinstance(value, bool):
        raise UserError(f"{file.path}: parameters.{name} is {value!r}; it has to be true or false")
    return value
