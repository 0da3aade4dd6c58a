"""One training step and one evaluation step, jitted over a mesh.

A config is read by its fields alone, so that the step also runs where `ml_collections` is not installed.

Letters: A microbatches of a batch, B rows of a microbatch on all devices, L row length, M targets a row.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mmbert_jax.data.special_ids import GEMMA, SpecialIds
from mmbert_jax.model.config import ModelConfig
from mmbert_jax.model.heads import bind, init_params
from mmbert_jax.model.masking import mask_tokens
from mmbert_jax.model.row_keys import count_rows, row_keys
from mmbert_jax.optimizer import init_optimizer, optimizer, optimizer_shardings
from mmbert_jax.parallel.processes import together
from mmbert_jax.parallel.sharding import batch_sharding, param_shardings, replicated

if TYPE_CHECKING:
    from ml_collections import ConfigDict

# {"params": tree of float32 arrays, "optimizer": the optimiser's state}
State = dict[str, Any]
Batch = dict[str, jax.Array]

# Streams of random numbers that are drawn from the run's key.
_MASKING, _DROPOUT = 0, 1
# Held-out rows are masked alike in every run and phase.
_EVAL_SEED = 0


def phase_seed(config: ConfigDict) -> int:
    """Seed of a phase's order, masks and dropout, below 2^32: the config's seed and the phase's name."""
    return zlib.crc32(f"{config.seed} {config.phase}".encode())


def state_shardings(config: ConfigDict, mesh: Mesh) -> State:
    """Shardings of the state: left to itself, jit would replicate the moments."""
    return {
        "params": param_shardings(ModelConfig.from_config(config.model), mesh),
        "optimizer": optimizer_shardings(config, mesh),
    }


def abstract_state(config: ConfigDict, mesh: Mesh) -> State:
    """Shapes, dtypes and shardings of the state, without computing anything."""
    shapes = jax.eval_shape(lambda: _new_state(config))
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        state_shardings(config, mesh),
    )


def init_state(config: ConfigDict, mesh: Mesh) -> State:
    """A new state from the config's seed, each device computing its own part."""
    together("making a new state")
    return jax.jit(lambda: _new_state(config), out_shardings=state_shardings(config, mesh))()


def _new_state(config: ConfigDict) -> State:
    params = init_params(ModelConfig.from_config(config.model), config.seed)
    return {"params": params, "optimizer": init_optimizer(config, params)}


def make_train_step(
    config: ConfigDict, mesh: Mesh, vocabulary: int | None = None, special: SpecialIds = GEMMA
) -> Callable[..., tuple[State, dict[str, jax.Array]]]:
    """Builds the jitted step.

    Args:
      vocabulary: ids that the corpus's tokeniser has, from which random tokens are drawn; None: `model.vocab_size`.
      special: of the corpus's tokeniser.

    The step takes
      state: donated.
      batch: tokens, segment_ids, positions, each int32 [A, B, L]; A is the largest batch in microbatches. Rows that
        are all padding have no targets, and count nowhere.
      count: int32, how many of the A microbatches hold rows. Growing batches therefore do not recompile.
      first_row: uint32 [2], number of the batch's first row in the order of the data (`row_keys.in_words`).
      learning_rate: float32.
      seed: uint32, `phase_seed`. An argument, so that phases that differ in nothing else are compiled once.
    and returns the new state and the step's metrics: loss (mean over all targets of the batch), masked_accuracy,
    grad_norm (of the mean loss), targets, skipped.

    A step whose loss or gradient norm is not finite changes nothing: `skipped` is then 1 and the new state the old one.
    """
    model_config = ModelConfig.from_config(config.model)
    dtype = jnp.dtype(config.dtype)
    vocabulary = vocabulary or model_config.vocab_size
    update = optimizer(config, mesh).update

    def loss_sum(params, decoder, rows: Batch, numbers, key):
        inputs, positions, labels, weights = mask_tokens(
            jax.random.fold_in(key, _MASKING),
            numbers,
            rows["tokens"],
            ratio=config.mask.ratio,
            vocabulary=vocabulary,
            reserved=special.reserved(),
            mask_id=special.mask,
            mask_share=config.mask.mask_share,
            random_share=config.mask.random_share,
        )
        dropout_keys = row_keys(jax.random.fold_in(key, _DROPOUT), numbers)
        model = bind(model_config, params)
        hidden = model(inputs, rows["segment_ids"], rows["positions"], dtype, dropout_keys)
        loss, correct = model.weighted_loss(
            hidden, positions, labels, weights, config.train.loss_chunk, decoder
        )
        return loss, {"loss": loss, "correct": (correct * weights).sum(), "targets": weights.sum()}

    def accumulate(params, batch: Batch, count, first_row, key):
        """Gradients and sums over `count` microbatches, not yet divided by the number of targets."""
        microbatches, size = batch["tokens"].shape[:2]
        # The embedding twice, as look-up and as decoder. XLA sums a gradient over the devices once, after the loop, if
        # the loop does nothing but add it up; the sum of these two it would form in each microbatch.
        gradient = jax.grad(loss_sum, argnums=(0, 1), has_aux=True)
        table = params["embeddings"]["tokens"]

        def tied(gradients):
            gradients, decoder = gradients
            embeddings = gradients["embeddings"]
            return gradients | {
                "embeddings": embeddings | {"tokens": embeddings["tokens"] + decoder}
            }

        if microbatches == 1:
            rows = {name: x[0] for name, x in batch.items()}
            gradients, sums = gradient(params, table, rows, count_rows(first_row, size), key)
            return tied(gradients), sums

        def body(i, carry):
            part = gradient(
                params,
                table,
                {name: x[i] for name, x in batch.items()},
                count_rows(first_row, size, i * size),
                key,
            )
            return jax.tree.map(jnp.add, carry, part)

        nothing = (
            (jax.tree.map(jnp.zeros_like, params), jnp.zeros_like(table)),
            dict.fromkeys(("loss", "correct", "targets"), jnp.float32(0)),
        )
        gradients, sums = jax.lax.fori_loop(0, count, body, nothing)
        return tied(gradients), sums

    def train_step(state: State, batch: Batch, count, first_row, learning_rate, seed):
        key = jax.random.key(seed)
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # attention asks for it
            gradients, sums = accumulate(state["params"], batch, count, first_row, key)
        # By the targets of the whole batch, so that a row counts the same in any microbatch and on any device.
        targets = jnp.maximum(sums["targets"], 1.0)
        gradients = jax.tree.map(lambda g: g / targets, gradients)
        loss = sums["loss"] / targets
        grad_norm = jnp.sqrt(sum(jnp.square(g).sum() for g in jax.tree.leaves(gradients)))
        good = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        updates, optimizer_state = update(
            gradients,
            state["optimizer"],
            state["params"],
            learning_rate=learning_rate,
            apply=good,
        )
        params = jax.tree.map(jnp.add, state["params"], updates)
        metrics = {
            "loss": loss,
            "masked_accuracy": sums["correct"] / targets,
            "grad_norm": grad_norm,
            "targets": sums["targets"],
            "skipped": 1.0 - good,
        }
        return {"params": params, "optimizer": optimizer_state}, metrics

    state, whole = state_shardings(config, mesh), replicated(mesh)
    return jax.jit(
        train_step,
        in_shardings=(state, batch_sharding(mesh, leading=1), whole, whole, whole, whole),
        out_shardings=(state, whole),
        donate_argnums=0,
    )


def compile_train_step(
    config: ConfigDict, mesh: Mesh, vocabulary: int | None = None, special: SpecialIds = GEMMA
):
    """`make_train_step`, compiled before the first batch is there."""
    size = config.train.microbatch_rows
    shape = (-(-config.train.batch_rows // size), size, config.data.row_length)
    sharding = batch_sharding(mesh, leading=1)
    batch = {
        name: jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding)
        for name in ("tokens", "segment_ids", "positions")
    }
    count, first_row, learning_rate, seed = (
        jax.ShapeDtypeStruct(shape, dtype)
        for shape, dtype in (
            ((), jnp.int32),
            ((2,), jnp.uint32),
            ((), jnp.float32),
            ((), jnp.uint32),
        )
    )
    step = make_train_step(config, mesh, vocabulary, special)
    return step.lower(
        abstract_state(config, mesh), batch, count, first_row, learning_rate, seed
    ).compile()


def make_eval_step(
    model_config: ModelConfig,
    mesh: Mesh,
    *,
    mask_ratio: float,
    dtype: str,
    loss_chunk: int,
    vocabulary: int | None = None,
    special: SpecialIds = GEMMA,
) -> Callable[..., dict[str, jax.Array]]:
    """Builds the jitted evaluation of held-out rows.

    It takes params, a batch (each int32 [B, L]), the number of its first row among all held-out rows (uint32 [2]) and
    that of the draw (uint32), which together decide the masks; it returns loss, correct and targets, each float32 [B],
    summed over a row.

    Args:
      vocabulary: ids that the corpus's tokeniser has, from which random tokens are drawn; None: `model.vocab_size`.
      special: of the corpus's tokeniser.
    """

    def eval_step(params, batch: Batch, first_row, draw):
        tokens = batch["tokens"]
        inputs, positions, labels, weights = mask_tokens(
            jax.random.fold_in(jax.random.key(_EVAL_SEED), draw),
            count_rows(first_row, tokens.shape[0]),
            tokens,
            ratio=mask_ratio,
            vocabulary=vocabulary or model_config.vocab_size,
            reserved=special.reserved(),
            mask_id=special.mask,
        )
        model = bind(model_config, params)
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # attention asks for it
            hidden = model(inputs, batch["segment_ids"], batch["positions"], jnp.dtype(dtype))
        losses, correct = model.losses(hidden, positions, labels, loss_chunk)
        sums = {"loss": losses * weights, "correct": correct * weights, "targets": weights}
        return {name: x.sum(axis=1) for name, x in sums.items()}

    whole = replicated(mesh)
    params = param_shardings(model_config, mesh)
    return jax.jit(
        eval_step, in_shardings=(params, batch_sharding(mesh), whole, whole), out_shardings=whole
    )
