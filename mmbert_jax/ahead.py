"""What a training step needs on hardware that is not there, and how fast it can be: from a program compiled for it.

tools/compile_ahead.py says what is computed and what is estimated.
"""

import re
import time
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mmbert_jax.errors import UserError
from mmbert_jax.files import write_text
from mmbert_jax.flops import forward_flops_per_token, segments
from mmbert_jax.kernels import attention
from mmbert_jax.kernels.weighted_mlm_loss import computes_logits_twice
from mmbert_jax.model.config import ModelConfig
from mmbert_jax.optimizer import matrix_flops
from mmbert_jax.parallel import hardware
from mmbert_jax.parallel.collectives import by_axes, collectives
from mmbert_jax.parallel.hlo import memory_traffic, parse
from mmbert_jax.parallel.mesh import make_mesh
from mmbert_jax.parallel.roofline import step_seconds
from mmbert_jax.step import abstract_state, compile_train_step

GIB = 2**30


def plan(config: ConfigDict, topology: str, document: int, hlo: Path | None = None) -> dict:
    """Everything that is printed; sizes in bytes, times in seconds."""
    chip_name, _ = hardware.parse_topology(topology)
    chip, devices = hardware.CHIPS[chip_name], hardware.devices(topology)
    mesh = make_mesh(config.mesh, devices)
    train, length, chips = config.train, config.data.row_length, mesh.size
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    check_rows(config, shards)
    model = ModelConfig.from_config(config.model)
    rows = (train.microbatch_rows, length, model.num_heads, model.head_dim)
    windows = (None, model.attention_window // 2)
    state = abstract_state(config, mesh)
    report = {
        "topology": topology,
        "chips": chips,
        "hosts": len({d.process_index for d in devices}),
        "mesh": dict(mesh.shape),
        "jax": jax.__version__,
        "phase": config.phase,
        "model": config.model.to_dict(),
        "batch_rows": train.batch_rows,
        "microbatch_rows": train.microbatch_rows,
        "rows_per_chip": train.microbatch_rows / shards,
        "microbatches": -(-train.batch_rows // train.microbatch_rows),
        "row_length": length,
        "attention": attention.describe(mesh, rows, config.dtype, windows),
        "parameters": sum(int(np.prod(x.shape)) for x in jax.tree.leaves(state["params"])),
        "parameter_bytes": bytes_on_a_chip(state["params"]),
        "optimizer_bytes": bytes_on_a_chip(state["optimizer"]),
        "memory_limit": int(chip.memory),
        "hardware": chip.source,
    }
    start = time.perf_counter()
    try:
        compiled = compile_train_step(config, mesh)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        report |= {"fits": False, "peak_bytes": wanted_bytes(str(error))}
        report["compiler"] = str(error).splitlines()[0]
    else:
        memory = compiled.memory_analysis()
        report["peak_bytes"] = (
            memory.argument_size_in_bytes
            + memory.temp_size_in_bytes
            + memory.output_size_in_bytes
            - memory.alias_size_in_bytes  # donated arguments are where the results go
        )
        report["fits"] = report["peak_bytes"] <= chip.memory
        text = compiled.as_text()
        if hlo:
            write_text(hlo, text)
        report |= speed(config, topology, mesh, text, document)
    report["compile_seconds"] = round(time.perf_counter() - start, 1)
    report["suggestion"] = suggest(report, config)
    return report


def check_rows(config: ConfigDict, shards: int) -> None:
    rows = config.train.microbatch_rows
    if rows % shards:
        below = "less than" if rows < shards else "no multiple of"
        raise UserError(
            f"config.train.microbatch_rows={rows} is {below} the {shards} chips that rows are spread over (mesh data x"
            f" fsdp): give --config.train.microbatch_rows={-(-rows // shards) * shards} or a larger config.mesh.tensor"
        )


def bytes_on_a_chip(tree) -> int:
    return sum(
        int(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize
        for x in jax.tree.leaves(tree)
    )


def wanted_bytes(message: str) -> int | None:
    """Bytes that a TPU compiler says it would need."""
    match = re.search(r"Used ([\d.]+)([KMG])", message) or re.search(
        r"\(([\d.]+)([KMG])\)", message
    )
    return int(float(match.group(1)) * 1024 ** (" KMG".index(match.group(2)))) if match else None


def speed(config: ConfigDict, topology: str, mesh: Mesh, text: str, document: int) -> dict:
    """Collectives and the roofline of the largest batch."""
    chip = hardware.CHIPS[hardware.parse_topology(topology)[0]]
    train, chips = config.train, mesh.size
    program, microbatches = parse(text), -(-train.batch_rows // train.microbatch_rows)
    found = collectives(program, mesh.shape, microbatches)
    # Of Muon: StableAdamW has neither products nor collectives of its own.
    shared_out = [c for c in found if "/muon/" in c.where]
    products = matrix_flops(config, mesh)
    tokens = train.batch_rows * config.data.row_length
    parts = forward_flops_per_token(
        ModelConfig.from_config(config.model),
        config.mask.ratio,
        segments(config.data.row_length, document),
    )
    model_flops = 3 * sum(parts.values())
    twice = computes_logits_twice(mesh.shape, mesh.devices.flat[0].platform)
    recomputed = parts["head"] if twice else 0
    domain = chip.host if chip.network_bandwidth else chips
    seconds = step_seconds(
        chip,
        (model_flops + recomputed) * tokens / chips + products,
        memory_traffic(program, microbatches),
        found,
        domain,
    )
    optimizer_seconds = step_seconds(chip, products, 0, shared_out, domain)
    bound = max(seconds, key=seconds.get)
    rate, unhidden = tokens / seconds[bound], tokens / sum(seconds.values())
    return {
        "collectives": by_axes(found),
        "optimizer": {
            "name": config.optimizer.name,
            "flops": products,
            "collectives": by_axes(shared_out),
            "seconds": {name: optimizer_seconds[name] for name in ("compute", "interconnect")},
        },
        "largest_collectives": [
            {
                "kind": c.kind,
                "axes": list(c.axes),
                "executions": c.times,
                "sent_bytes": c.sent_bytes,
                "types": c.types[:120],
                "where": c.where,
            }
            for c in sorted(found, key=lambda c: -c.sent_bytes)[:8]
        ],
        "flops_per_token": model_flops,
        "seconds": seconds,
        "bound": bound,
        "tokens_per_second": rate,
        "tokens_per_second_nothing_hidden": unhidden,
        "mfu_at_the_bound": model_flops * rate / chips / chip.flops,
        "days": [train.tokens / r / 86_400 for r in (rate, unhidden)],
        "chip_hours": [train.tokens / r / 3600 * chips for r in (rate, unhidden)],
    }


def suggest(report: dict, config: ConfigDict) -> str:
    """The largest microbatch that fits, memory being linear in rows above the state and two trees of gradients."""
    fixed = 3 * report["parameter_bytes"] + report["optimizer_bytes"]
    peak, limit, rows = report["peak_bytes"], report["memory_limit"], report["rows_per_chip"]
    larger = f"--config.mesh.fsdp={report['mesh']['fsdp'] * 4}, or --config.mesh.tensor={report['mesh']['tensor'] * 2}"
    if peak is None:
        return "the compiler does not say how much it wants: halve config.train.microbatch_rows"
    if peak <= fixed or fixed >= limit:
        return f"the state alone takes most of a chip: spread it, {larger}"
    shards = report["mesh"]["data"] * report["mesh"]["fsdp"]
    fit = int(rows * (limit - fixed) / (peak - fixed))
    if not fit:
        return f"not even one row a chip fits by the estimate: {larger}"

    def computed(n: int) -> int:  # rows of a batch, with the padding of its last microbatch
        return -(-config.train.batch_rows // (n * shards)) * n * shards

    most = min(range(fit, 0, -1), key=computed)
    best = most * shards
    text = f"--config.train.microbatch_rows={best} ({most} rows a chip; the estimate allows {fit})"
    return text if best != report["microbatch_rows"] else f"none: {text} is what was compiled"


def lines(report: dict) -> list[str]:
    r = report
    mesh = " x ".join(f"{axis} {size}" for axis, size in r["mesh"].items())
    peak = "unknown" if r["peak_bytes"] is None else f"{r['peak_bytes'] / GIB:.2f} GiB"
    out = [
        f"{r['topology']}: {r['chips']} chips on {r['hosts']} hosts, mesh {mesh}; phase {r['phase']}",
        f"batch {r['batch_rows']} x {r['row_length']} in {r['microbatches']} microbatches of {r['rows_per_chip']:g}"
        " rows a chip",
        f"attention: {r['attention']}",
        f"{r['parameters']:,} parameters; on a chip {r['parameter_bytes'] / GIB:.2f} GiB, optimiser"
        f" {r['optimizer_bytes'] / GIB:.2f} GiB",
        f"peak memory {peak} of {r['memory_limit'] / GIB:.2f} GiB: {'fits' if r['fits'] else 'DOES NOT FIT'}"
        f" (compiled in {r['compile_seconds']:.0f} s)",
    ]
    if "compiler" in r:
        out.append(f"the compiler: {r['compiler']}")
    if "bound" in r:
        out.append("collectives of a step, on a chip:")
        for c in r["collectives"]:
            out.append(
                f"  {c['kind']:18} over {' and '.join(c['axes']):18} {c['executions']:6} x,"
                f" {c['bytes'] / 1e6:10.1f} MB, sends {c['sent_bytes'] / 1e6:10.1f} MB"
            )
        if (own := r["optimizer"])["flops"]:
            sent = sum(c["sent_bytes"] for c in own["collectives"])
            parts = ", ".join(f"{name} {1e3 * s:.2f}" for name, s in own["seconds"].items())
            out.append(
                f"of these {own['name']}'s: sends {sent / 1e6:.1f} MB, {own['flops'] / 1e9:.1f} GFLOP on a chip;"
                f" milliseconds at peak: {parts}"
            )
        times = ", ".join(f"{name} {1e3 * s:.1f}" for name, s in r["seconds"].items())
        out += [
            f"{r['flops_per_token'] / 1e6:.0f} MFLOP a token; milliseconds of a step at peak: {times}",
            f"bound by {r['bound']}: at most {r['tokens_per_second']:,.0f} tokens/s (MFU {r['mfu_at_the_bound']:.0%});"
            f" {r['tokens_per_second_nothing_hidden']:,.0f} if nothing is hidden",
            f"the phase: at least {r['days'][0]:.1f} days, {r['chip_hours'][0]:,.0f} chip-hours"
            f" ({r['days'][1]:.1f}, {r['chip_hours'][1]:,.0f} if nothing is hidden)",
        ]
    out.append(f"suggestion (estimated): {r['suggestion']}")
    return out
