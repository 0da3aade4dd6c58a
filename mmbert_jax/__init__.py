"""Pre-training of massively multilingual encoders in JAX: mmBERT's recipe from text to `transformers`.

`mmbert_jax.load(path)` gives a trained model, see `mmbert_jax.inference.load`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmbert_jax.inference.load import load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    """`load`, which programs that only train need not import."""
    if name != "load":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mmbert_jax.inference.load import load

    return load
