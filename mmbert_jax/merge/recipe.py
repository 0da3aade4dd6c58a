"""How to merge: a method and its parameters, which may differ between tensors and between models."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mmbert_jax.errors import UserError
from mmbert_jax.merge.averages import exponential_weights

_SPARSE = {"density": 0.5, "lambda": 1.0}
# Method -> its settings and what they are where the user gives none.
METHODS: dict[str, dict[str, float]] = {
    "ties": _SPARSE,
    "dare_ties": _SPARSE | {"seed": 0},
    "dare_linear": _SPARSE | {"seed": 0},
    "della": _SPARSE | {"epsilon": 0.15, "seed": 0},
    "della_linear": _SPARSE | {"epsilon": 0.15, "seed": 0},
    "breadcrumbs": _SPARSE | {"gamma": 0.01},
    "breadcrumbs_ties": _SPARSE | {"gamma": 0.01},
    "task_arithmetic": {"lambda": 1.0},
    "model_stock": {},
    "linear": {},
    "ema": {"decay": 0.8},
    "slerp": {"t": 0.5},
    "multislerp": {},
    "karcher": {"max_iter": 10, "tol": 1e-5},
}
# Methods that add to a base what the models have learnt since; those that elect a sign; those that can do either.
TASK_VECTORS = tuple(method for method, settings in METHODS.items() if "lambda" in settings)
ELECTING = ("ties", "dare_ties", "della", "breadcrumbs_ties")
NEED_BASE = (*TASK_VECTORS, "model_stock")
MAY_HAVE_BASE = ("multislerp",)
# Methods whose weights are the user's; the others have their own.
WEIGHTED = (*TASK_VECTORS, "linear", "multislerp")
# Settings that each model may have its own of.
PER_MODEL = ("density", "epsilon", "gamma")
# Method -> mergekit's usual: whether the sum is divided by its weights, whether what is kept gets the norm of all.
NORMALIZED = dict.fromkeys(TASK_VECTORS, False) | dict.fromkeys(
    ("ties", "della", "linear", "multislerp"), True
)
RESCALED = {method: method.startswith(("dare", "della")) for method in TASK_VECTORS}

WHOLE = ("seed", "max_iter")
_SHARES = ("density", "decay", "t", "gamma", "epsilon")


@dataclasses.dataclass(frozen=True)
class Rule:
    """A parameter's value for the tensors whose name has `filter` in it; None fits all.

    Several values are spread evenly over the layers, and lie on straight lines between: the first stands for the first
    layer and the embeddings, the last for the last layer and what comes after it.
    """

    value: float | tuple[float, ...]
    filter: str | None = None

    def fits(self, name: str) -> bool:
        return self.filter is None or self.filter in name


# A number for all tensors, or rules of which the first that fits counts; the last one fits all.
Setting = float | tuple[Rule, ...]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to merge.

    Attributes:
      method: of METHODS.
      weights: one for each model.
      settings: of the method, all of them; of those in PER_MODEL, a list has one for each model.
      normalize, rescale: see NORMALIZED and RESCALED.
      dtype: in which the merged tensors are stored; None for that of the base, or the first model.
    """

    method: str
    weights: tuple[Setting, ...]
    settings: Mapping[str, Setting | list[Setting]]
    normalize: bool
    rescale: bool
    dtype: str | None = None

    def describe(self) -> dict[str, Any]:
        """As JSON: rules as mergekit's recipes write them; what a model has of its own as a list."""
        described: dict[str, Any] = {
            "method": self.method,
            "weights": list(map(_plain, self.weights)),
        }
        for name, setting in self.settings.items():
            described[name] = (
                list(map(_plain, setting)) if isinstance(setting, list) else _plain(setting)
            )
        if self.method in NORMALIZED:
            described["normalize"] = self.normalize
        if self.method in RESCALED:
            described["rescale"] = self.rescale
        return described | ({"dtype": self.dtype} if self.dtype else {})


@dataclasses.dataclass(frozen=True)
class Parameters:
    """What a recipe says of one tensor.

    Attributes:
      weights: one for each model.
      settings: numbers; of those in PER_MODEL, one for each model.
    """

    weights: tuple[float, ...]
    settings: Mapping[str, Any]


def make_recipe(
    method: str,
    models: int,
    weights: Sequence[float] | None,
    settings: Mapping[str, float],
    dtype: str | None = None,
) -> Recipe:
    """A recipe for so many models from a command line, checked; what is not given is the method's own.

    Weights are ratios, except with task arithmetic: what other methods sum up is divided by them.

    Raises:
      UserError: a setting that the method does not have or that is out of range, weights that do not fit.
    """
    own = METHODS[method]
    for name, value in settings.items():
        if name not in own:
            raise UserError(
                f"--{name} says nothing to --method {method}, which has"
                f" {', '.join(f'--{setting}' for setting in own) or 'no settings but --weights'}"
            )
        check_value(f"--{name}", name, value)
    check_count(f"--method {method}", method, models, "--models")
    if weights and method not in WEIGHTED:
        instead = f": --{next(iter(own))} does" if method in ("ema", "slerp") else ""
        raise UserError(f"--weights says nothing to --method {method}{instead}")
    if weights and len(weights) != models:
        raise UserError(
            f"--weights has {len(weights)} numbers for {models} models; give one for each"
        )
    weights = weights or own_weights(method, models, own | dict(settings))
    for weight in weights:
        check_value("--weights", "weight", weight)
    normalize = method != "task_arithmetic"
    if normalize and method in WEIGHTED and not all(weight > 0 for weight in weights):
        raise UserError(f"--weights {list(weights)}: every weight has to be above 0")
    return Recipe(
        method,
        tuple(weights),
        own | dict(settings),
        normalize,
        RESCALED.get(method, False),
        dtype,
    )


def own_weights(method: str, models: int, settings: Mapping[str, Any]) -> list[float]:
    """The weights of a method where the user gives none; the models' shares, where its settings decide them."""
    if method == "slerp" and isinstance(settings["t"], int | float):
        return [1 - settings["t"], settings["t"]]
    if method == "ema":
        return exponential_weights(models, settings["decay"])
    return [1.0] * models


def check_count(named: str, method: str, models: int, where: str) -> None:
    """Raises a `UserError` unless a method can merge so many models.

    Args:
      named: how the user named the method.
      where: what the user calls the models by.
    """
    if method == "slerp" and models != 2:
        raise UserError(f"{named} goes from one model to another: give two {where}, not {models}")
    if method == "model_stock" and models < 2:
        raise UserError(
            f"{named} compares models with each other: give two {where} or more besides the base, not {models}"
        )


def check_base(named: str, method: str, has_base: bool, where: str) -> None:
    """Raises a `UserError` where a base is missing or has no use.

    Args:
      named: how the user named the method.
      where: what the user calls the base by.
    """
    if method in NEED_BASE and not has_base:
        raise UserError(f"{named} needs {where}, what the models were trained from")
    if has_base and method not in (*NEED_BASE, *MAY_HAVE_BASE):
        raise UserError(f"{where} says nothing to {named}: leave it out")


def check_value(where: str, name: str, value: Any) -> None:
    """Raises a `UserError` unless a number can be the value of a parameter; `where` is what the user calls it by."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"{where} is {value!r}; it has to be a number")
    if name in _SHARES and not 0 <= value <= 1:
        raise UserError(f"{where} {value} is outside 0 to 1")
    if name in WHOLE and (value != int(value) or value < 0):
        raise UserError(f"{where} {value}: it has to be a whole number, 0 or more")
    if name == "tol" and value <= 0:
        raise UserError(f"{where} {value}: it has to be above 0")


def by_tensor(recipe: Recipe, names: Iterable[str], num_layers: int) -> dict[str, Parameters]:
    """What a recipe says of every tensor.

    Raises:
      UserError: a filter that no tensor's name has in it; numbers that do not go together.
    """
    names = list(names)
    settings = [x for s in recipe.settings.values() for x in (s if isinstance(s, list) else [s])]
    for setting in (*recipe.weights, *settings):
        for rule in setting if isinstance(setting, tuple) else ():
            if not any(rule.fits(name) for name in names):
                raise UserError(
                    f"filter {rule.filter!r} fits no tensor; there are {', '.join(names[:3])}, ..., {names[-1]}"
                )
    return {name: _of_tensor(recipe, name, depth(name, num_layers)) for name in names}


def _of_tensor(recipe: Recipe, name: str, depth: float) -> Parameters:
    weights = tuple(value_of(weight, name, depth) for weight in recipe.weights)
    settings = {}
    for key, setting in recipe.settings.items():
        if key in PER_MODEL:
            each = setting if isinstance(setting, list) else [setting] * len(weights)
            settings[key] = [value_of(s, name, depth) for s in each]
        else:
            settings[key] = value_of(setting, name, depth)
    if recipe.method in ("linear", "multislerp") and recipe.normalize and abs(sum(weights)) < 1e-8:
        raise UserError(f"{name}: the weights {list(weights)} add up to 0; choose others")
    for density, epsilon in zip(
        settings.get("density", ()), settings.get("epsilon", ()), strict=False
    ):
        if 0 < density < 1 and not (density - epsilon > 0 and density + epsilon < 1):
            raise UserError(
                f"{name}: density {density:g} +- epsilon {epsilon:g} has to lie within 0 and 1; choose a smaller"
                " epsilon"
            )
    return Parameters(weights, settings)


def value_of(setting: Setting, name: str, depth: float) -> float:
    """A setting's value for a tensor; `depth` is 0 for the first layer, 1 for the last."""
    if not isinstance(setting, tuple):
        return setting
    value = next(rule.value for rule in setting if rule.fits(name))
    if not isinstance(value, tuple):
        return value
    place = depth * (len(value) - 1)
    first = int(place)
    second = min(len(value) - 1, first + 1)
    return (1 - (place - first)) * value[first] + (place - first) * value[second]


def depth(name: str, num_layers: int) -> float:
    parts = name.replace("/", ".").split(".")
    layer = next((int(part) for part in parts if part.isdigit()), None)
    if layer is not None:
        return layer / max(1, num_layers - 1)
    return 0.0 if "embeddings" in parts else 1.0


def _plain(setting: Setting) -> Any:
    if not isinstance(setting, tuple):
        return setting
    rules = []
    for rule in setting:
        value = list(rule.value) if isinstance(rule.value, tuple) else rule.value
        rules.append(({"filter": rule.filter} if rule.filter else {}) | {"value": value})
    return rules
