"""Vectors in fewer bytes, as Sentence Transformers stores them, so that its searches read ours."""

import numpy as np

from mmbert_jax.errors import UserError

OUTPUTS = ("float32", "float16", "int8", "uint8", "binary", "ubinary")


def quantise(vectors: np.ndarray, output: str, ranges: np.ndarray | None = None) -> np.ndarray:
    """Vectors, float32 [N, D], in another type.

    Args:
      output: "float16"; "int8" or "uint8", the range of each dimension in 255 steps; "binary" or "ubinary", a bit a
        dimension, whether it is above 0, eight of them in a byte (int8 or uint8).
      ranges: float32 [2, D], the least and the largest of each dimension that int8 and uint8 tell apart; None: those of
        `vectors`, which should then be hundreds, and all that are ever compared.

    Returns:
      [N, D], or [N, D / 8] of bits.

    Raises:
      UserError: another type; one vector without `ranges`; a value that float16 cannot hold; or bits that do not fill
        up bytes.
    """
    if output not in OUTPUTS:
        raise UserError(f"output is {output!r}; it has to be one of {', '.join(OUTPUTS)}")
    if output == "float32":
        return vectors
    if output == "float16":
        with np.errstate(over="ignore"):  # is reported here
            small = vectors.astype(np.float16)
        if not np.array_equal(np.isfinite(small), np.isfinite(vectors)):
            raise UserError("a vector is beyond float16's 65504; take float32, or normalise")
        return small
    if output.endswith("binary"):
        if vectors.shape[-1] % 8:
            raise UserError(
                f"vectors of {vectors.shape[-1]} dimensions do not fill up bytes; truncate them to a multiple of 8"
            )
        bits = np.packbits(vectors > 0, axis=-1)
        return bits if output == "ubinary" else (bits.astype(np.int16) - 128).astype(np.int8)
    if not len(vectors):
        return np.zeros(vectors.shape, output)
    if ranges is None and len(vectors) == 1:
        raise UserError(
            f"one vector has no ranges for {output}; give `ranges`, the least and largest of each dimension"
        )
    low, high = np.stack([vectors.min(axis=0), vectors.max(axis=0)]) if ranges is None else ranges
    steps = (high - low) / 255
    steps = np.where(steps > 0, steps, 1)  # a dimension that is always the same
    scaled = np.clip(np.floor((vectors - low) / steps), 0, 255)
    return scaled.astype(np.uint8) if output == "uint8" else (scaled - 128).astype(np.int8)
