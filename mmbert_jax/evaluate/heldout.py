"""Masked-LM loss and accuracy on held-out documents, by language and by group of languages.

python -m mmbert_jax.evaluate.heldout --checkpoint RUN --corpus CORPUS --output held_out.json
"""

import argparse
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mmbert_jax.checkpoint import restore_params
from mmbert_jax.data.pipeline import held_out_batches
from mmbert_jax.errors import UserError, run_main
from mmbert_jax.files import check_file, write_json
from mmbert_jax.model.config import ModelConfig
from mmbert_jax.parallel.mesh import make_mesh
from mmbert_jax.parallel.processes import RESTART
from mmbert_jax.parallel.sharding import local_rows, param_shardings, put_rows
from mmbert_jax.step import make_eval_step
from mmbert_jax.watchdog import watched

# language -> {"loss", "accuracy", "targets"}
Results = dict[str, dict[str, float]]


def evaluate(config: ConfigDict, mesh: Mesh) -> Callable[[Any], Results]:
    """Builds the evaluation of a training config: a function from parameters to results by language."""
    eval_step = make_eval_step(
        ModelConfig.from_config(config.model),
        mesh,
        mask_ratio=config.eval.mask_ratio,
        dtype=config.dtype,
        loss_chunk=config.train.loss_chunk,
    )
    rows = config.eval.batch_rows
    local_rows(mesh, rows, "config.eval.batch_rows")
    minutes = config.data.stall_minutes
    stalled = (
        f"no held-out batch came within {minutes} minutes (config.data.stall_minutes): what holds {config.data.corpus}"
        " does not answer. The same command, run again, goes on from the newest checkpoint"
    )

    def run(params) -> Results:
        batches = held_out_batches(config.data, rows, config.eval.rows_per_language)
        batches = watched(batches, 60 * minutes, stalled, RESTART)
        return held_out_losses(eval_step, params, batches, rows, mesh)

    return run


def held_out_losses(eval_step, params, batches: Iterable, rows: int, mesh: Mesh) -> Results:
    """Sums the rows of each language; each process computes the rows that lie on its devices."""
    mine = local_rows(mesh, rows, "rows")
    outputs, languages = [], []
    for i, (batch, batch_languages) in enumerate(batches):
        batch = put_rows(mesh, rows, {name: x[mine] for name, x in batch.items()})
        outputs.append(eval_step(params, batch, np.uint32(i * rows)))
        languages.extend(batch_languages)
    if not outputs:
        return {}
    columns = {
        name: np.concatenate([np.asarray(o[name], np.float64) for o in outputs])
        for name in outputs[0]
    }
    languages = np.array(languages)
    results = {}
    for language in sorted(set(languages) - {""}):  # "" fills up the last batch
        loss, correct, targets = (
            columns[name][languages == language].sum() for name in ("loss", "correct", "targets")
        )
        if targets:
            results[language] = {
                "loss": loss / targets,
                "accuracy": correct / targets,
                "targets": int(targets),
            }
    return results


def by_group(results: Results, groups: Mapping[str, Iterable[str]]) -> dict[str, dict[str, float]]:
    """Means over the languages of each group, every language counting the same; 'all' is there always."""
    means = {}
    for group, members in {"all": results.keys(), **groups}.items():
        found = [results[language] for language in members if language in results]
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
        "--corpus",
        help="corpus with held-out rows; default: the one that the checkpoint trained on",
    )
    parser.add_argument(
        "--row_length", type=int, help="default: that of the checkpoint's last phase"
    )
    parser.add_argument(
        "--rows_per_language", type=int, help="default: config.eval.rows_per_language of the phase"
    )
    parser.add_argument("--output", type=Path, help="JSON file for the results of every language")
    return parser.parse_args()


def main() -> None:
    args = _arguments()
    if args.output:
        check_file(args.output)
    params, meta = restore_params(args.checkpoint)
    if "data" not in meta["config"] or "eval" not in meta["config"]:
        raise UserError(
            f"{args.checkpoint} holds no training config (it was imported): evaluate it after a phase of training"
        )
    config = ConfigDict(meta["config"])
    if args.corpus:
        config.data.corpus = args.corpus
    if args.row_length:
        config.data.row_length = args.row_length
    if args.rows_per_language:
        config.eval.rows_per_language = args.rows_per_language
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    params = jax.device_put(params, param_shardings(ModelConfig.from_config(config.model), mesh))
    results = evaluate(config, mesh)(params)
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
