"""Recipes in YAML: what they say is done, and what cannot be done is refused by its field's name."""

import numpy as np
import pytest
import yaml
from stored_models import write_checkpoint

from mmbert_jax.errors import UserError
from mmbert_jax.merge.merge import merge
from mmbert_jax.merge.models import open_model
from mmbert_jax.merge.recipe import by_tensor
from mmbert_jax.merge.recipe_file import read_recipe_file, to_recipe

NAMES = ["embeddings/tokens", "layers/0/mlp/wi", "layers/1/mlp/wi", "head/dense"]


def read(folder, text):
    (folder / "recipe.yaml").write_text(text if isinstance(text, str) else yaml.safe_dump(text))
    file = read_recipe_file(folder / "recipe.yaml")
    recipe = to_recipe(file, [1] * len(file.models))
    by_tensor(recipe, NAMES, 2)
    return file, recipe


def test_weights_by_tensor_decide_what_is_merged(tmp_path):
    params = [write_checkpoint(tmp_path / name, i, 0.1) for i, name in enumerate("ab")]
    text = f"""
merge_method: linear
models:
  - model: {tmp_path}/a
    parameters: {{weight: [{{filter: mlp, value: 1}}, {{value: 0}}]}}
  - model: {tmp_path}/b
    parameters: {{weight: [{{filter: mlp, value: 0}}, {{value: 1}}]}}
"""
    file, recipe = read(tmp_path, text)
    a, b = params
    merged = {name: x for name, x, _ in merge(recipe, None, [open_model(m) for m in file.models])}
    np.testing.assert_array_equal(merged["layers/1/mlp/wi"], a["layers"]["1"]["mlp"]["wi"])
    np.testing.assert_array_equal(merged["layers/1/attn/wo"], b["layers"]["1"]["attn"]["wo"])
    assert recipe.describe()["weights"][0] == [{"filter": "mlp", "value": 1}, {"value": 0}]


def test_slerp_counts_from_the_base_model_over_the_layers(tmp_path):
    file, recipe = read(
        tmp_path,
        {
            "merge_method": "slerp",
            "base_model": "b",
            "models": [{"model": "a"}, {"model": "b"}],
            "parameters": {"t": [{"filter": "mlp", "value": [0.2, 0.6]}, {"value": 0.5}]},
            "dtype": "bfloat16",
        },
    )
    assert (file.base, file.models, recipe.dtype) == (None, ("b", "a"), "bfloat16")
    t = [parameters.settings["t"] for parameters in by_tensor(recipe, NAMES, 2).values()]
    assert t == pytest.approx([0.5, 0.2, 0.6, 0.5])


BASE = {"base_model": "base", "merge_method": "ties"}
ONE = {"model": "one", "parameters": {"weight": 1}}
REFUSED = [
    ({"models": [ONE]}, "merge_method is None"),
    (BASE | {"merge_method": "magic", "models": [ONE]}, "merge_method is 'magic'"),
    (BASE, "models is None"),
    (BASE | {"models": []}, r"models is \[\]"),
    (BASE | {"models": ["one"]}, r"models\[0\] is 'one'"),
    (BASE | {"models": [ONE | {"wieght": 1}]}, r"models\[0\]\.wieght is not known"),
    (BASE | {"models": [ONE], "slices": []}, "slices is not supported"),
    (BASE | {"models": [ONE], "tokenizer_source": "union"}, "tokenizer_source is not supported"),
    (BASE | {"models": [ONE], "typo": 1}, "typo is not known"),
    (BASE | {"models": [ONE], "dtype": "int8"}, "dtype is 'int8'"),
    ({"merge_method": "ties", "models": [ONE]}, "merge_method ties needs base_model"),
    (BASE | {"merge_method": "linear", "models": [ONE]}, "base_model says nothing to"),
    (BASE | {"merge_method": "model_stock", "models": [ONE]}, "give two models or more"),
    (BASE | {"models": [{"model": "one"}]}, r"models\[0\]\.parameters or parameters\.weight is missing"),
    (BASE | {"models": [ONE], "parameters": {"t": 1}}, r"parameters\.t says nothing to ties"),
    (BASE | {"models": [ONE], "parameters": {"density": 2}}, r"parameters\.density 2 is outside"),
    (BASE | {"models": [ONE], "parameters": {"lambda": "much"}}, r"parameters\.lambda is 'much'"),
    (BASE | {"models": [ONE], "parameters": {"lambda": float("nan")}}, r"parameters\.lambda is nan"),
    (BASE | {"models": [ONE], "parameters": {"normalize": 1}}, r"parameters\.normalize is 1"),
    (
        BASE | {"models": [{"model": "one", "parameters": {"weight": 1, "lambda": 1}}]},
        r"models\[0\]\.parameters\.lambda cannot be a model's own",
    ),
    (
        BASE | {"models": [ONE], "parameters": {"density": [{"filter": "mlp"}]}},
        r"parameters\.density\[0\] is",
    ),
    (
        BASE | {"models": [{"model": "one", "parameters": {"weight": {"filter": "mlp", "value": 1}}}]},
        "has no value for tensors that no filter fits",
    ),
    (
        BASE | {"models": [ONE], "parameters": {"density": {"filter": "self_attn", "value": 1}}},
        "filter 'self_attn' fits no tensor; there are embeddings/tokens",
    ),
    (
        BASE | {"merge_method": "della", "models": [ONE], "parameters": {"density": 0.9}},
        r"density 0\.9 \+- epsilon 0\.15 has to lie",
    ),
    (
        BASE | {"merge_method": "dare_ties", "models": [ONE], "parameters": {"seed": 0.5}},
        r"parameters\.seed 0\.5: it has to be a whole number",
    ),
    ("a: [", "is not YAML"),
    ("3", "does not hold a recipe"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_refuses_by_name(text, message, tmp_path):
    with pytest.raises(UserError, match=message):
        read(tmp_path, text)
