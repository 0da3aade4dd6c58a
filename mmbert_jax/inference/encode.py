"""Vectors of texts, from a list or a stream of JSONL.

    python -m mmbert_jax.inference.encode --checkpoint RUN --input texts.jsonl --output vectors.npy

Letters: N texts, B rows of a batch, L row length, S texts in a row, D hidden size.
"""

import argparse
import functools
import io
from collections.abc import Iterator, Sequence
from contextlib import closing

import jax
import jax.numpy as jnp
import numpy as np

from mmbert_jax.errors import UserError, run_main
from mmbert_jax.files import to_json
from mmbert_jax.inference import stream
from mmbert_jax.inference.load import Model, load, tokenise, use_compile_cache
from mmbert_jax.inference.rows import Batch, batch_arrays, plan
from mmbert_jax.model import heads
from mmbert_jax.places import place

POOLINGS = (*heads.POOLINGS, "tokens")
NPY, IDS = ".npy", ".ids.jsonl"


def encode(
    model: Model,
    texts: Sequence[str],
    pooling: str = "mean",
    *,
    normalise: bool = False,
    batch_tokens: int | None = None,
) -> np.ndarray | list[np.ndarray]:
    """Vectors of texts, in their order. Texts longer than `model.max_length` are cut there.

    Texts are packed into rows; what stands in one text does not influence another.

    Args:
      pooling: "mean" over all tokens of a text, <bos> and <eos> included, or "cls", the vector of <bos>; "tokens" gives
        a vector for every token.
      normalise: divide every vector by its length.
      batch_tokens: how many tokens go through the model at once; None: `rows.default_batch_tokens()`.

    Returns:
      float32 [N, D]; for "tokens" a list of float32 [tokens of the text, D].
    """
    sequences, _ = tokenise(model, texts)
    results = run(model, sequences, pooling, normalise=normalise, batch_tokens=batch_tokens)
    vectors: list = [None] * len(texts)
    for batch, out in stream.ahead(results):
        for text, vector in by_text(batch, out, sequences, pooling):
            vectors[text] = vector
    if pooling == "tokens":
        return vectors
    return np.stack(vectors) if vectors else np.zeros((0, model.config.hidden_size), np.float32)


def run(
    model: Model,
    sequences: Sequence[Sequence[int]],
    pooling: str,
    *,
    normalise: bool = False,
    batch_tokens: int | None = None,
) -> Iterator[tuple[Batch, jax.Array]]:
    """Starts one batch after the other on the device; `by_text` takes apart what comes out.

    Args:
      sequences: token ids of each text, with special ones.

    Yields:
      A batch and its vectors, float32 [B, S, D], S at least the number of texts in any of its rows; for "tokens"
      [B, L, D].
    """
    if pooling not in POOLINGS:
        raise UserError(f"pooling is {pooling!r}; it has to be one of {', '.join(POOLINGS)}")
    for batch in plan([len(ids) for ids in sequences], model.config, batch_tokens):
        arrays = batch_arrays(batch, sequences, model.tokenizer.special.pad)
        hidden = heads.encode(model.params, model.config, **arrays, dtype=jnp.dtype(model.dtype))
        # A power of two, so that few numbers of texts need a program of their own.
        slots = 1 << (max(map(len, batch.rows)) - 1).bit_length()
        yield batch, _pool(hidden, arrays["segment_ids"], pooling, slots, normalise)


def by_text(
    batch: Batch, out: jax.Array, sequences: Sequence[Sequence[int]], pooling: str
) -> Iterator[tuple[int, np.ndarray]]:
    """Each text of a batch of `run` and its vector [D], or its vectors [tokens, D]."""
    for row, vectors in zip(batch.rows, np.asarray(out), strict=True):
        if pooling == "tokens":
            ends = np.cumsum([len(sequences[text]) for text in row], dtype=np.int64)
            parts = np.split(vectors, ends)
        else:
            parts = vectors
        for text, part in zip(
            row, parts, strict=False
        ):  # behind the texts stands what fills up the row
            yield text, part.copy()  # a view would keep the whole batch in memory


@functools.partial(jax.jit, static_argnames=("pooling", "slots", "normalise"))
def _pool(hidden, segment_ids, pooling: str, slots: int, normalise: bool) -> jax.Array:
    """Hidden states [B, L, D] -> float32 [B, S, D], or [B, L, D] for tokens; what has no text gives zeros."""
    vectors = hidden.astype(jnp.float32)
    if pooling != "tokens":
        vectors = heads.pool(vectors, segment_ids, slots, pooling)
    if normalise:
        vectors /= jnp.maximum(jnp.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
    return vectors


def jsonl_bytes(record: stream.Record, ids: list[int], vector: np.ndarray) -> list[bytes]:
    """`{"id": ..., "embedding": [...]}`; of several vectors `{"id": ..., "token_ids": [...], "embeddings": [...]}`."""
    _check_finite(record, vector)
    name = to_json(record.id)
    if vector.ndim == 1:
        return [f'{{"id": {name}, "embedding": {_numbers(vector)}}}\n'.encode()]
    vectors = ", ".join(map(_numbers, vector))
    return [f'{{"id": {name}, "token_ids": {ids}, "embeddings": [{vectors}]}}\n'.encode()]


def npy_bytes(
    record: stream.Record, ids: list[int], vector: np.ndarray, dtype: np.dtype
) -> list[bytes]:
    """A row of the array, and a line of the file with ids."""
    del ids
    with np.errstate(over="ignore"):  # is reported here
        vector = vector.astype(dtype)
    _check_finite(record, vector)
    return [vector.tobytes(), (to_json(record.id) + "\n").encode()]


def npy_header(rows: int, size: int, dtype: np.dtype) -> bytes:
    """The start of an .npy file of [rows, size]; NumPy makes it equally long for all numbers of rows."""
    file = io.BytesIO()
    fields = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": (rows, size),
    }
    np.lib.format.write_array_header_1_0(file, fields)
    return file.getvalue()


def _numbers(vector: np.ndarray) -> str:
    """A JSON list; nine digits tell all float32 apart."""
    return "[" + ", ".join(["%.9g"] * len(vector)) % tuple(vector.tolist()) + "]"


def _check_finite(record: stream.Record, vector: np.ndarray) -> None:
    if not np.isfinite(vector).all():
        raise UserError(
            f"{record.place}: the vector is not finite in {vector.dtype}; take float32 for --dtype and --output_dtype,"
            " and if that does not help, the checkpoint holds no working model"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Writes vectors of the texts of a JSONL file. A run that was killed goes on where it was when the"
        " same command is given again.",
        epilog="examples:\n"
        "  python -m mmbert_jax.inference.encode --checkpoint runs/demo/merged \\\n"
        "      --input texts.jsonl.gz --output vectors.npy --normalise\n"
        "  cat texts.jsonl | python -m mmbert_jax.inference.encode --checkpoint my-model --input - --output -",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--input",
        required=True,
        help="*.jsonl, *.jsonl.gz or *.jsonl.zst; - reads standard input",
    )
    parser.add_argument(
        "--output",
        required=True,
        type=place,
        help="JSONL, a line for every record, in their order, with id and embedding; or NAME.npy, an array with a row"
        " for every record, beside NAME.ids.jsonl with their ids; - writes JSONL to standard output",
    )
    parser.add_argument(
        "--pooling",
        choices=POOLINGS,
        default="mean",
        help="mean of all tokens (default), the first token (cls), or every token's vector (tokens; JSONL only)",
    )
    parser.add_argument("--normalise", action="store_true", help="make vectors of length 1")
    parser.add_argument(
        "--output_dtype",
        choices=("float32", "float16"),
        default="float32",
        help="of NAME.npy (default float32)",
    )
    stream.add_arguments(parser)
    args = parser.parse_args()
    npy = args.output.suffix == NPY
    if npy and args.pooling == "tokens":
        raise UserError(
            "--pooling tokens: texts have different numbers of tokens, which one array cannot hold; write JSONL"
        )
    if args.output_dtype != "float32" and not npy:
        raise UserError(f"--output_dtype {args.output_dtype} is for --output NAME.npy")
    stream.check_arguments(args)

    use_compile_cache(args.compile_cache)
    model = load(
        args.checkpoint, tokenizer=args.tokenizer, max_length=args.max_length, dtype=args.dtype
    )
    dtype = np.dtype(args.output_dtype)
    paths = [args.output, args.output.with_suffix(IDS)] if npy else [args.output]
    settings = {
        "pooling": args.pooling,
        "normalise": args.normalise,
        "output_dtype": args.output_dtype,
    }
    size = model.config.hidden_size
    with closing(stream.open_output(args, model, paths, settings)) as output:
        if output.complete:
            return
        if npy and not output.state["records"]:
            output.append([npy_header(0, size, dtype), b""])
        stream.process(
            args,
            output,
            tokenise=lambda records: tokenise(model, [record.text for record in records]),
            start=functools.partial(
                run,
                model,
                pooling=args.pooling,
                normalise=args.normalise,
                batch_tokens=args.batch_tokens,
            ),
            by_text=functools.partial(by_text, pooling=args.pooling),
            to_bytes=functools.partial(npy_bytes, dtype=dtype) if npy else jsonl_bytes,
        )
        output.finish(npy_header(output.state["records"], size, dtype) if npy else b"")
        stream.report(output, model)


if __name__ == "__main__":
    run_main(main)
