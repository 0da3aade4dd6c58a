"""The collectives of a compiled program: which axes of the mesh they go over, how often, and how many bytes."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from mmbert_jax.parallel.hlo import Instruction, Program, executions, type_bytes

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective instruction.

    Attributes:
      kind: one of `KINDS`.
      axes: axes of the mesh over which its groups go; empty where a permutation goes over none.
      group: the devices of the first group, as positions in the mesh.
      bytes: of the whole array, before a scatter or after a gather, on one device and in one execution.
      times: executions in a step.
      types: what goes in, as HLO writes it.
      where: the operation of the program that it belongs to.
    """

    kind: str
    axes: tuple[str, ...]
    group: tuple[int, ...]
    bytes: int
    times: int
    types: str
    where: str

    @property
    def sent_bytes(self) -> float:
        """Bytes that one device sends in a step, on a ring."""
        n = len(self.group)
        factor = {"all-reduce": 2 * (n - 1) / n, "collective-permute": 1}.get(
            self.kind, (n - 1) / n
        )
        return factor * self.bytes * self.times


def collectives(
    program: Program, mesh_shape: Mapping[str, int], unknown_trips: int = 1
) -> list[Collective]:
    """All collectives of a program over more than one device, in the order of its text.

    Args:
      mesh_shape: axes of the mesh and their sizes; devices are numbered in its order.
      unknown_trips: see `hlo.executions`.
    """
    counts, found, chains = executions(program, unknown_trips), [], set()
    for name, computation in program.computations.items():
        # A TPU writes a reduce-scatter as a fusion of an all-reduce and the slice.
        scatters = name.startswith("all-reduce-scatter")
        for x in computation.values():
            kind = x.opcode.removesuffix("-start")
            if kind not in KINDS or not counts[name]:
                continue
            # A TPU spreads one collective over several fusions, under one channel.
            chain = re.search(r'chain_id="(\d+)"', x.attributes)
            channel = re.search(r"channel_id=(\d+)", x.attributes)
            if chain and channel:
                key = (chain.group(1), channel.group(1))
                if key in chains:
                    continue
                chains.add(key)
            groups = replica_groups(x, mesh_shape)
            if kind == "collective-permute":
                groups = [pair for pair in groups if pair[0] != pair[1]]
            if not groups or len(groups[0]) < 2:
                continue
            operands = [computation[o].type for o in x.operands if o in computation]
            bytes_ = sum(map(type_bytes, operands)) * (
                len(groups[0]) if kind == "all-gather" else 1
            )
            where = re.search(r'op_name="([^"]*)"', x.attributes)
            found.append(
                Collective(
                    kind="reduce-scatter" if scatters and kind == "all-reduce" else kind,
                    axes=_axes(groups, mesh_shape),
                    group=tuple(groups[0]),
                    bytes=bytes_,
                    times=counts[name],
                    types=", ".join(re.sub(r"\{.*?\}", "", t) for t in operands),
                    where=where.group(1) if where else "",
                )
            )
    return found


def replica_groups(x: Instruction, mesh_shape: Mapping[str, int]) -> list[list[int]]:
    """Groups of devices that an instruction goes over, or its pairs of source and target.

    Raises:
      ValueError: they are written in a way that is not known here.
    """
    text = x.attributes
    if x.opcode.startswith("collective-permute"):
        match = re.search(r"source_target_pairs=\{(.*?)\}\}", text)
    else:
        match = re.search(r"replica_groups=\{(.*?\}|)\}", text)
    if match:
        groups = re.findall(r"\{([\d,]+)", "{" + match.group(1).lstrip("{"))
        if groups:
            return [[int(n) for n in group.split(",")] for group in groups]
        return [list(range(math.prod(mesh_shape.values())))]  # {}: all of them
    # [groups, devices of one]<=[shape]T(permutation)
    if match := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        shape, source, order = (_numbers(x) for x in match.groups())
        ids = np.arange(math.prod(source)).reshape(source)
        return ids.transpose(order or range(len(source))).reshape(shape).tolist()
    # mesh['a'=2,'b'=4] {'b'}
    if match := re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", text):
        sizes = {name: int(n) for name, n in re.findall(r"'([^']+)'=(\d+)", match.group(1))}
        names = re.findall(r"'([^']+)'", match.group(2))
        if len(names) == match.group(2).count(",") + 1 and ":" not in match.group(2):
            ids = np.arange(math.prod(sizes.values())).reshape(tuple(sizes.values()))
            over = [list(sizes).index(name) for name in names]
            kept = [i for i in range(len(sizes)) if i not in over]
            return (
                ids.transpose(kept + over).reshape(-1, math.prod(sizes[n] for n in names)).tolist()
            )
    raise ValueError(f"the devices of {x.name} are written in an unknown way: {text[:300]}")


def _axes(groups: Sequence[Sequence[int]], mesh_shape: Mapping[str, int]) -> tuple[str, ...]:
    """Axes along which the devices of a group differ."""
    shape = tuple(mesh_shape.values())
    differ = set()
    for group in groups:
        where = np.array(np.unravel_index(np.array(group), shape))
        differ |= {int(i) for i in np.flatnonzero((where != where[:, :1]).any(axis=1))}
    return tuple(name for i, name in enumerate(mesh_shape) if i in differ)


def _numbers(text: str | None) -> list[int]:
    return [int(n) for n in text.split(",")] if text else []


def by_axes(found: Sequence[Collective]) -> list[dict]:
    """Sums over kind and axes, largest first: instructions, executions and bytes in a step."""
    sums: dict = {}
    for c in found:
        row = sums.setdefault(
            (c.kind, c.axes),
            {
                "kind": c.kind,
                "axes": list(c.axes),
                "instructions": 0,
                "executions": 0,
                "bytes": 0,
                "sent_bytes": 0.0,
            },
        )
        row["instructions"] += 1
        row["executions"] += c.times
        row["bytes"] += c.bytes * c.times
        row["sent_bytes"] += c.sent_bytes
    return sorted(sums.values(), key=lambda row: -row["sent_bytes"])
