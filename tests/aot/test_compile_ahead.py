"""tools/compile_ahead.py on a slice that is not there, with a model small enough to compile in seconds."""

import json

from other_machines import run_for_other_machines

# A global and a local layer of 2 heads of 64; two microbatches of a row a chip.
TINY = {
    "model.num_layers": 2,
    "model.hidden_size": 128,
    "model.num_heads": 2,
    "model.intermediate_size": 256,
    "model.vocab_size": 8192,
    "data.row_length": 256,
    "train.batch_rows": 16,
    "train.microbatch_rows": 8,
    "train.batch_warmup_from_rows": 8,
    "train.loss_chunk": 2048,
    "mesh.data": 4,
    "mesh.fsdp": 2,
}


def compile_ahead(*arguments, **overrides):
    fields = {**TINY, **{name.replace("__", "."): value for name, value in overrides.items()}}
    command = ["tools/compile_ahead.py", "--config", "configs/phase1.py", *arguments]
    overridden = (f"--config.{name}={value}" for name, value in fields.items())
    return run_for_other_machines(*command, *overridden, timeout=300)


def test_the_plan_of_a_step(tmp_path):
    output = tmp_path / "plan.json"
    done = compile_ahead("--topology", "v5e:2x4", "--output", str(output))
    assert done.returncode == 0, done.stderr
    plan = json.loads(output.read_text())
    assert (plan["chips"], plan["hosts"], plan["fits"]) == (8, 2, True)
    # Embedding, head and layers halve over fsdp; norms and the decoder's bias are whole.
    matrices = 8192 * 128 + 128 * 128 + 2 * (4 * 128 * 128 + 3 * 128 * 256)
    vectors = (1 + 1 + 2 + 1 + 1) * 128 + 8192
    assert plan["parameters"] == matrices + vectors
    assert plan["parameter_bytes"] == 4 * (matrices // 2 + vectors)
    assert plan["optimizer_bytes"] == 2 * plan["parameter_bytes"] + 4

    sums = {(row["kind"], *row["axes"]): row for row in plan["collectives"]}
    # Replicas sum their gradients once a step, however many microbatches and chunks of the loss there are; each chip
    # has half of the matrices' gradients by then.
    replicas = sums["all-reduce", "data"]
    assert replicas["bytes"] <= 4 * (matrices / 2 + vectors)
    assert sums["all-gather", "fsdp"]["bytes"] > 0
    assert "the phase: at least" in done.stdout


def test_what_does_not_fit_is_refused(tmp_path):
    rows = {
        "train__batch_rows": 80_000,
        "train__microbatch_rows": 80_000,
        "train__batch_warmup_from_rows": 80_000,
    }
    done = compile_ahead("--topology", "v5e:2x4", **rows)
    assert done.returncode == 1, done.stderr
    assert "DOES NOT FIT" in done.stdout
    assert "of 15.75 GiB" in done.stdout


def test_rows_that_do_not_spread_are_named():
    done = compile_ahead("--topology", "v5e:4x4", mesh__data=8)
    assert done.returncode == 2
    expected = "config.train.microbatch_rows=8 is less than the 16 chips that rows are spread over"
    assert expected in done.stderr
    assert "--config.train.microbatch_rows=16" in done.stderr
