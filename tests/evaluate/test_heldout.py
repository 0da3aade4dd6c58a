"""Held-out losses by language against torch's cross entropy of each document alone; the means of groups."""

from collections import defaultdict

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from data.tiny_corpus import write_corpus
from tiny import tiny_config

from mmbert_jax.data.pipeline import held_out_batches
from mmbert_jax.evaluate.heldout import batch_rows, by_group, evaluate, group_table, held_out_losses
from mmbert_jax.hf.load import load_hf
from mmbert_jax.model.config import ModelConfig
from mmbert_jax.model.heads import init_params
from mmbert_jax.model.masking import mask_tokens
from mmbert_jax.model.row_keys import count_rows, in_words
from mmbert_jax.parallel.mesh import make_mesh
from mmbert_jax.step import make_eval_step

HELD_OUT = {"deu": 3, "eng": 5, "fao": 1}
ROW_LENGTH, ROWS, RATIO = 32, 4, 0.3


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus") / "c"
    return write_corpus(folder, {"eng": 1}, held_out=HELD_OUT, row_length=ROW_LENGTH)


@pytest.fixture(scope="module")
def mesh():
    return make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])


def batches(corpus, rows=ROWS, limit=100):
    config = {"corpus": str(corpus), "row_length": ROW_LENGTH, "sources": {"web": {"share": 1.0}}}
    return held_out_batches(config, rows, limit)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model of `transformers`, and our parameters and config with its weights."""
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.ModernBertConfig(
        vocab_size=512,
        hidden_size=64,
        num_attention_heads=1,
        num_hidden_layers=2,
        intermediate_size=48,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
        cls_token_id=2,
        sep_token_id=1,
        initializer_range=0.2,
    )
    theirs = transformers.ModernBertForMaskedLM(config).eval()
    folder = tmp_path_factory.mktemp("model")
    theirs.save_pretrained(folder)
    params, ours, _ = load_hf(folder)
    return theirs, params, ours


def cross_entropies(model, corpus) -> dict[str, list[tuple[float, bool]]]:
    """Language -> (loss, whether the label came first) of each target, by `transformers` and torch."""
    import torch

    found = defaultdict(list)
    for number, (batch, languages) in enumerate(batches(corpus)):
        inputs, positions, labels, weights = map(
            np.array,
            mask_tokens(
                jax.random.fold_in(jax.random.key(0), 0),
                count_rows(in_words(number * ROWS), ROWS),
                jnp.asarray(batch["tokens"]),
                ratio=RATIO,
                vocabulary=512,
                reserved=((0, 5),),
                mask_id=4,
            ),
        )
        for row, language in enumerate(languages):
            logits = torch.zeros(ROW_LENGTH, 512)
            for segment in range(1, batch["segment_ids"][row].max() + 1):
                where = batch["segment_ids"][row] == segment
                with torch.no_grad():
                    alone = torch.from_numpy(inputs[row, where]).long()
                    logits[where] = model(input_ids=alone[None]).logits[0]
            for position, label, weight in zip(
                positions[row], labels[row], weights[row], strict=True
            ):
                if weight:
                    loss = torch.nn.functional.cross_entropy(
                        logits[position], torch.tensor(int(label))
                    )
                    found[language].append((float(loss), int(logits[position].argmax()) == label))
    return found


def test_losses_are_the_cross_entropy_of_each_document_alone(model, corpus, mesh):
    theirs, params, config = model
    eval_step = make_eval_step(config, mesh, mask_ratio=RATIO, dtype="float32", loss_chunk=128)
    ours = held_out_losses(eval_step, params, batches(corpus), ROWS, mesh)
    expected = cross_entropies(theirs, corpus)
    assert list(ours) == sorted(HELD_OUT)
    for language, result in ours.items():
        losses, correct = map(np.array, zip(*expected[language], strict=True))
        # Of 30 tokens in a row two are <bos>.
        assert result["targets"] == len(losses) == HELD_OUT[language] * round(RATIO * 28)
        assert result["loss"] == pytest.approx(losses.mean(), rel=1e-5)
        assert result["accuracy"] == pytest.approx(correct.mean())


@pytest.mark.parametrize("rows", [1, 2, 4, 8, 16])
def test_sums_go_to_their_language_whatever_the_batch(corpus, mesh, rows):
    """A step that says which row it saw: rows are numbered through, and those that fill up a batch count nowhere."""

    def eval_step(params, batch, first_row, draw):
        numbers = int(first_row[1]) + np.arange(rows)
        targets = np.asarray(batch["segment_ids"]).max(1) * 1.0
        return {"loss": numbers * params, "correct": targets / 4, "targets": targets}

    results = held_out_losses(eval_step, 10.0, batches(corpus, rows), rows, mesh)
    # deu has rows 0 to 2, eng 3 to 7, fao 8; each has two segments.
    assert {name: r["loss"] for name, r in results.items()} == {
        "deu": 10 * (0 + 1 + 2) / 6,
        "eng": 10 * (3 + 4 + 5 + 6 + 7) / 10,
        "fao": 10 * 8 / 2,
    }
    assert {name: r["targets"] for name, r in results.items()} == {"deu": 6, "eng": 10, "fao": 2}
    assert {r["accuracy"] for r in results.values()} == {0.25}


def test_a_language_without_targets_has_no_loss(corpus, mesh):
    def eval_step(params, batch, first_row, draw):
        ones = np.ones(ROWS)
        return {"loss": ones, "correct": ones, "targets": ones * (first_row[1] > 0)}

    assert list(held_out_losses(eval_step, None, batches(corpus), ROWS, mesh)) == ["eng", "fao"]


def test_several_draws_give_their_mean_and_its_standard_error(corpus, mesh):
    """A step whose losses a target are 1, 2 and 6 in three draws, in every row."""

    def eval_step(params, batch, first_row, draw):
        targets = np.asarray(batch["segment_ids"]).max(1) * 1.0
        return {
            "loss": targets * [1, 2, 6][int(draw)],
            "correct": targets * (draw > 0),
            "targets": targets,
        }

    results = held_out_losses(eval_step, None, batches(corpus), ROWS, mesh, draws=3)
    expected = {"loss": 3.0, "accuracy": 2 / 3, "standard_error": pytest.approx(np.sqrt(7 / 3))}
    assert results == {
        name: {**expected, "targets": 3 * 2 * rows} for name, rows in HELD_OUT.items()
    }


@pytest.mark.parametrize(
    ("microbatch_rows", "row_length", "data", "expected"),
    [
        *((16, 64, 8, 16), (16, 64, 1, 16), (6, 64, 4, 8), (3, 64, 8, 8)),
        *((1536, 1024, 1, 64), (48, 8192, 8, 48), (384, 8192, 2, 16), (8, 2**17, 2, 2)),
    ],
)
def test_rows_at_a_time_spread_over_the_mesh_and_fit_a_device(
    microbatch_rows, row_length, data, expected
):
    """A device takes no more than 65,536 tokens: eight published ones have 49,152 each in training."""
    config = tiny_config(train__microbatch_rows=microbatch_rows, data__row_length=row_length)
    devices = jax.devices()[:data]
    assert (
        batch_rows(config, make_mesh({"data": data, "fsdp": 1, "tensor": 1}, devices)) == expected
    )


def test_random_tokens_are_the_tokenisers(corpus, mesh, monkeypatch):
    """Of an embedding with more rows than the tokeniser has entries the rest is never an input."""
    taken = []

    def watched(*arguments, **options):
        taken.append((options["vocabulary"], options["ratio"]))
        return mask_tokens(*arguments, **options)

    monkeypatch.setattr("mmbert_jax.step.mask_tokens", watched)
    sizes = {"data__row_length": ROW_LENGTH, "model__vocab_size": 2304}
    config = tiny_config(data__corpus=str(corpus), **sizes)
    params = init_params(ModelConfig.from_config(config.model), 0)
    assert list(evaluate(config, mesh)(params)) == sorted(HELD_OUT)
    assert taken == [(2048, 0.15)]


def test_no_held_out_rows(tmp_path, mesh):
    corpus = write_corpus(tmp_path / "c", {"eng": 1}, row_length=ROW_LENGTH)
    assert held_out_losses(None, None, batches(corpus), ROWS, mesh) == {}


# --- groups ---

RESULTS = {
    "eng": {"loss": 1.0, "accuracy": 0.75, "targets": 1000},
    "deu": {"loss": 2.0, "accuracy": 0.5, "targets": 10},
    "fao": {"loss": 6.0, "accuracy": 0.25, "targets": 1},
}


def test_every_language_of_a_group_counts_the_same():
    groups = {
        "large": ("eng", "deu", "not there"),
        "small": ("fao",),
        "empty": ("zul",),
        "none": (),
    }
    assert by_group(RESULTS, groups) == {
        "all": {"loss": 3.0, "accuracy": 0.5, "languages": 3},
        "large": {"loss": 1.5, "accuracy": 0.625, "languages": 2},
        "small": {"loss": 6.0, "accuracy": 0.25, "languages": 1},
    }
    assert by_group({}, groups) == {}
    # As a source's names do, a group's mean other spellings of their codes.
    spelled = {"eng_Latn": RESULTS["eng"], " ENG": RESULTS["deu"], "fao": RESULTS["fao"]}
    assert by_group(spelled, {"large": ("eng",)})["large"] == {
        "loss": 1.5,
        "accuracy": 0.625,
        "languages": 2,
    }


def test_table_of_groups():
    lines = group_table(by_group(RESULTS, {"large": ("eng", "deu")})).splitlines()
    assert [line.split() for line in lines] == [
        ["held-out", "group", "languages", "loss", "accuracy"],
        ["all", "3", "3.0000", "0.500"],
        ["large", "2", "1.5000", "0.625"],
    ]
    assert len({len(line) for line in lines}) == 1
