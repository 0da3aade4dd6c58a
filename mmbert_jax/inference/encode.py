"""Vectors of the texts of a file or a stream of JSONL.

python -m mmbert_jax.inference.encode --checkpoint RUN --input texts.jsonl --output vectors.npy
"""

import argparse
import functools
import io

import numpy as np

from mmbert_jax.errors import UserError, run_main
from mmbert_jax.files import to_json
from mmbert_jax.inference import stream
from mmbert_jax.inference.compile_cache import use_compile_cache
from mmbert_jax.inference.load import load
from mmbert_jax.inference.quantise import OUTPUTS, quantise
from mmbert_jax.inference.tokenise import tokenise
from mmbert_jax.inference.vectors import (
    POOLINGS,
    by_text,
    check_output,
    default_pooling,
    find_prompt,
    run,
    vector_size,
)
from mmbert_jax.places import Place, place

NPY, IDS = ".npy", ".ids.jsonl"


def jsonl_bytes(record: stream.Record, ids: list[int], vector: np.ndarray) -> list[bytes]:
    """`{"id": ..., "embedding": [...]}`; of several vectors `{"id": ..., "token_ids": [...], "embeddings": [...]}`."""
    name = to_json(record.id)
    if vector.ndim == 1:
        return [f'{{"id": {name}, "embedding": {_numbers(vector)}}}\n'.encode()]
    vectors = ", ".join(map(_numbers, vector))
    return [f'{{"id": {name}, "token_ids": {ids}, "embeddings": [{vectors}]}}\n'.encode()]


def npy_bytes(record: stream.Record, ids: list[int], vector: np.ndarray) -> list[bytes]:
    """A row of the array, and a line of the file with ids."""
    del ids
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


def _stored(
    record: stream.Record, vector: np.ndarray, output: str, ranges: np.ndarray | None
) -> np.ndarray:
    """A text's vectors in the type that is written."""
    if not np.isfinite(vector).all():
        raise UserError(
            f"{record.place}: the vector is not finite; take float32 for --dtype, and if that does not help, the"
            " checkpoint holds no working model"
        )
    try:
        return quantise(vector, output, ranges)
    except UserError as error:
        raise UserError(f"{record.place}: {error}") from None


def _read_ranges(path: Place | None, output: str, size: int) -> np.ndarray | None:
    """What `quantise` needs for int8 and uint8, [2, size]: from an .npy file, since no text knows the others."""
    if output not in ("int8", "uint8"):
        if path:
            raise UserError(f"--ranges is for --output_dtype int8 or uint8, not {output}")
        return None
    if not path:
        raise UserError(
            f"--output_dtype {output} needs --ranges FILE.npy, the least and the largest of each dimension: encode some"
            " thousand texts as float32, then"
            " python -c \"import numpy as np; x = np.load('vectors.npy'); np.save('ranges.npy', [x.min(0), x.max(0)])\""
        )
    try:
        ranges = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise UserError(f"--ranges {path}: not an .npy file ({error})") from None
    if ranges.shape != (2, size) or not np.isfinite(ranges).all() or (ranges[0] > ranges[1]).any():
        raise UserError(
            f"--ranges {path}: it has to hold [2, {size}], the least and the largest value of each dimension; it has"
            f" {list(ranges.shape)}"
        )
    return ranges


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
        help="mean of all tokens, the first token (cls), weightedmean, lasttoken, or every token's vector (tokens;"
        " JSONL only); by default what the model's Sentence Transformers modules say, or the mean",
    )
    parser.add_argument("--normalise", action="store_true", help="make vectors of length 1")
    prompts = parser.add_mutually_exclusive_group()
    prompts.add_argument(
        "--prompt",
        metavar="TEXT",
        help="put in front of every text, as 'query: '; by default the model's own default prompt, if it has one",
    )
    prompts.add_argument("--prompt_name", metavar="NAME", help="take one of the model's prompts")
    parser.add_argument(
        "--truncate_dim", type=int, metavar="N", help="keep a vector's first N dimensions"
    )
    parser.add_argument(
        "--output_dtype",
        choices=OUTPUTS,
        default="float32",
        help="of the vectors (default float32); int8 and binary as Sentence Transformers has them",
    )
    parser.add_argument(
        "--ranges", type=place, metavar="NPY", help="for int8 and uint8: [2, D], least and largest"
    )
    stream.add_arguments(parser)
    args = parser.parse_args()
    npy = args.output.suffix == NPY
    if npy and args.pooling == "tokens":
        raise UserError(
            "--pooling tokens: texts have different numbers of tokens, which one array cannot hold; write JSONL"
        )
    stream.check_arguments(args)

    use_compile_cache(args.compile_cache)
    model = load(
        args.checkpoint, tokenizer=args.tokenizer, max_length=args.max_length, dtype=args.dtype
    )
    pooling = args.pooling or default_pooling(model)
    check_output(pooling, args.output_dtype)
    prompt = find_prompt(model, args.prompt, args.prompt_name)
    size = vector_size(model, pooling, args.truncate_dim)
    ranges = _read_ranges(args.ranges, args.output_dtype, size)
    stored = functools.partial(_stored, output=args.output_dtype, ranges=ranges)
    like = quantise(np.zeros((1, size), np.float32), args.output_dtype, ranges)
    paths = [args.output, args.output.with_suffix(IDS)] if npy else [args.output]
    settings = {
        "pooling": pooling,
        "normalise": args.normalise,
        "output_dtype": args.output_dtype,
        "prompt": prompt,
        "truncate_dim": args.truncate_dim,
        "ranges": ranges.tolist() if ranges is not None else None,
    }
    header = functools.partial(npy_header, size=like.shape[1], dtype=like.dtype)
    write = npy_bytes if npy else jsonl_bytes
    stream.write_results(
        args,
        model,
        settings,
        paths=paths,
        header=header if npy else None,
        tokenise=lambda records: tokenise(model, [prompt + r.text for r in records]),
        start=functools.partial(
            run,
            model,
            pooling=pooling,
            truncate_dim=args.truncate_dim,
            normalise=args.normalise,
            batch_tokens=args.batch_tokens,
        ),
        by_text=functools.partial(by_text, pooling=pooling),
        to_bytes=lambda record, ids, vector: write(record, ids, stored(record, vector)),
    )


if __name__ == "__main__":
    run_main(main)
