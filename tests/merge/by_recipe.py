"""One tensor merged as tools/merge.py would, from arrays of any dtype."""

from mmbert_jax.merge.merge import merge_tensor
from mmbert_jax.merge.recipe import by_tensor, make_recipe


def merged(method, base, models, weights=None, *, inputs=0, **settings):
    """The merged tensor, and what became of the task vectors; `lambda` is called `scale` here."""
    if "scale" in settings:
        settings["lambda"] = settings.pop("scale")
    models = list(models)
    recipe = make_recipe(method, len(models), weights, settings)
    parameters = by_tensor(recipe, ["x"], 1)["x"]
    return merge_tensor(recipe, parameters, "x", base, iter(models), inputs)


def ties(base, models, weights, *, density, scale=1.0):
    return merged("ties", base, models, weights, density=density, scale=scale)
