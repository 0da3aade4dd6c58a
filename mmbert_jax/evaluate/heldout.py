"""Masked-LM loss and accuracy on held-out documents, by language and by group of languages.

python -m mmbert_jax.evaluate.heldout --checkpoint RUN --corpus CORPUS --output held_out.json

What a training config says of the corpus, its rows and their masking is taken from the checkpoint, or from a file: one
that was imported or given a larger vocabulary has not been trained on the corpus that it is to be compared on.
"""

import argparse
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mmbert_jax.checkpoint import restore_params
from mmbert_jax.checks import check_corpus
from mmbert_jax.config import complete
from mmbert_jax.config_file import load
from mmbert_jax.data.language_codes import meant_by
from mmbert_jax.data.pipeline import find_corpora, held_out_batches
from mmbert_jax.data.special_ids import from_record
from mmbert_jax.errors import UserError, run_main
from mmbert_jax.files import check_file, write_json
from mmbert_jax.model.config import ModelConfig
from mmbert_jax.model.row_keys import in_words
from mmbert_jax.parallel.mesh import make_mesh
from mmbert_jax.parallel.sharding import local_rows, param_shardings, put_rows
from mmbert_jax.places import place
from mmbert_jax.step import make_eval_step
from mmbert_jax.waiting import data_in_time, step_in_time
from mmbert_jax.watchdog import watched

# language -> {"loss", "accuracy", "targets"}, and with several draws of the masks "standard_error" of the loss
Results = dict[str, dict[str, float]]

# Tokens that a device takes at a time, at most: a microbatch of a training run may be that of a thousand devices.
_TOKENS_ON_A_DEVICE = 1 << 16


def evaluate(config: ConfigDict, mesh: Mesh, draws: int = 1) -> Callable[[Any], Results]:
    """Builds the evaluation of a training config: a function from parameters to results by language.

    Args:
      draws: times that every row is masked anew; the results are of all of them together.

    Raises:
      UserError: the corpus is missing or damaged.
    """
    _, manifests = find_corpora(config.data)
    eval_step = make_eval_step(
        ModelConfig.from_config(config.model),
        mesh,
        mask_ratio=config.eval.mask_ratio,
        dtype=config.dtype,
        loss_chunk=config.train.loss_chunk,
        vocabulary=manifests[0]["tokenizer"]["vocab_size"],
        special=from_record(manifests[0]["tokenizer"]),
    )
    rows = batch_rows(config, mesh)
    running: list[Any] = []

    def step(*arguments):
        """The step, when the one before it is done."""
        wait()
        running[:] = [eval_step(*arguments)]
        return running[0]

    def wait() -> None:
        with step_in_time(config, "a held-out batch"):
            jax.block_until_ready(running)

    def then_wait(batches: Iterable) -> Iterator:
        yield from batches
        wait()

    def run(params) -> Results:
        mine = local_rows(mesh, rows, "rows")
        batches = held_out_batches(config.data, rows, config.eval.rows_per_language, mine)
        batches = watched(batches, lambda: data_in_time(config, "held-out batch"))
        return held_out_losses(step, params, then_wait(batches), rows, mesh, draws)

    return run


def batch_rows(config: ConfigDict, mesh: Mesh) -> int:
    """Held-out rows that a mesh takes at a time: a microbatch, if the devices can be expected to hold it."""
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    most = max(_TOKENS_ON_A_DEVICE // config.data.row_length, 1)
    return shards * min(-(-config.train.microbatch_rows // shards), most)


def held_out_losses(
    eval_step, params, batches: Iterable, rows: int, mesh: Mesh, draws: int = 1
) -> Results:
    """Sums the rows of each language; `batches` hold of each batch the rows that lie on this process's devices."""
    outputs, languages = [], []
    for i, (batch, batch_languages) in enumerate(batches):
        batch = put_rows(mesh, rows, batch)
        first = in_words(i * rows)
        outputs.append([eval_step(params, batch, first, np.uint32(d)) for d in range(draws)])
        languages.extend(batch_languages)
    if not outputs:
        return {}
    columns = {  # float64 [draws, rows]
        name: np.concatenate(
            [np.stack([np.asarray(o[name], np.float64) for o in batch]) for batch in outputs],
            axis=1,
        )
        for name in ("loss", "correct", "targets")
    }
    languages = np.array(languages)
    results = {}
    for language in sorted(set(languages) - {""}):  # "" fills up the last batch
        loss, correct, targets = (x[:, languages == language].sum(axis=1) for x in columns.values())
        if targets.all():  # of each draw
            results[language] = {
                "loss": loss.sum() / targets.sum(),
                "accuracy": correct.sum() / targets.sum(),
                "targets": int(targets.sum()),
            }
            if draws > 1:
                error = (loss / targets).std(ddof=1) / math.sqrt(draws)
                results[language]["standard_error"] = float(error)
    return results


def by_group(results: Results, groups: Mapping[str, Iterable[str]]) -> dict[str, dict[str, float]]:
    """Means over the languages of each group, every language counting the same; 'all' is there always.

    A group's names mean languages as a source's do: "eng" also means "eng_Latn".
    """
    meant = meant_by(results, {name for members in groups.values() for name in members})
    means = {}
    for group, members in {"all": None, **groups}.items():
        if members is None:
            found = list(results.values())
        else:
            found = [results[language] for name in members for language in meant.get(name, ())]
        if found:
            means[group] = {
                "loss": float(np.mean([r["loss"] for r in found])),
                "accuracy": float(np.mean([r["accuracy"] for r in found])),
                "languages": len(found),
            }
    return means


def group_table(groups: Mapping[str, Mapping[str, float]]) -> str:
    """The groups' figures, a line each."""
    lines = [f"{'held-out group':<24}{'languages':>10}{'loss':>9}{'accuracy':>10}"]
    for name, r in groups.items():
        lines.append(f"{name:<24}{r['languages']:>10}{r['loss']:>9.4f}{r['accuracy']:>10.3f}")
    return "\n".join(lines)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Held-out masked-LM loss of a checkpoint, by language and group.",
        epilog="example: python -m mmbert_jax.evaluate.heldout --checkpoint runs/phase2 --output held_out.json",
    )
    parser.add_argument(
        "--checkpoint",
        required=True,
        help="run folder (its newest checkpoint) or one checkpoint in it",
    )
    parser.add_argument(
        "--config",
        metavar="FILE.py:ARGUMENT",
        help="config file whose corpus, rows and masking to take, in the place of the checkpoint's",
    )
    parser.add_argument(
        "--corpus",
        help="corpus with held-out rows; default: the one that the checkpoint trained on",
    )
    parser.add_argument(
        "--row_length", type=int, help="default: that of the checkpoint's last phase"
    )
    parser.add_argument(
        "--rows_per_language", type=int, help="default: config.eval.rows_per_language of the phase"
    )
    parser.add_argument(
        "--draws",
        type=int,
        default=1,
        metavar="N",
        help="times that every row is masked; with several the results have the loss's standard error (default 1)",
    )
    parser.add_argument("--output", type=place, help="JSON file for the results of every language")
    return parser.parse_args()


def main() -> None:
    args = _arguments()
    if args.draws < 1:
        raise UserError(f"--draws is {args.draws}: it has to be at least 1")
    if args.output:
        check_file(args.output)
    params, meta = restore_params(args.checkpoint)
    if args.config:
        config = load(args.config)
        config.model = ConfigDict(meta["config"]["model"])
    elif "data" not in meta["config"] or "eval" not in meta["config"]:
        raise UserError(
            f"{args.checkpoint} holds no training config (it was imported): evaluate it after a phase of training, or"
            " give --config configs/own_language.py:RUN or another file"
        )
    else:
        config = complete(ConfigDict(meta["config"]))
    if args.corpus:
        config.data.corpus = args.corpus
    if args.row_length:
        config.data.row_length = args.row_length
    if args.rows_per_language:
        config.eval.rows_per_language = args.rows_per_language
    check_corpus(meta, config.data)
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    params = jax.device_put(params, param_shardings(ModelConfig.from_config(config.model), mesh))
    results = evaluate(config, mesh, args.draws)(params)
    if not results:
        raise UserError(
            f"{config.data.corpus} has no held-out rows of {config.data.row_length} tokens"
        )
    groups = by_group(results, config.eval.groups)
    print(group_table(groups))
    if args.output:
        write_json(args.output, {"held_out": results, "held_out_groups": groups})
        print(f"wrote {args.output}")


if __name__ == "__main__":
    run_main(main)
