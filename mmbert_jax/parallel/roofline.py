"""How long a step takes at least: the larger of what its products, its memory traffic and its collectives need."""

from collections.abc import Sequence

from mmbert_jax.parallel.collectives import Collective
from mmbert_jax.parallel.hardware import Chip


def step_seconds(
    chip: Chip, flops: float, memory_bytes: float, collectives: Sequence[Collective], domain: int
) -> dict[str, float]:
    """Seconds of a step on one chip, by resource, each at the chip's peak.

    Args:
      flops, memory_bytes: of one chip in a step.
      domain: chips that are joined by fast links: a TPU slice, the GPUs of a host. Devices are numbered so that those
        of a domain follow each other.
    """
    return {
        "compute": flops / chip.flops,
        "memory": memory_bytes / chip.memory_bandwidth,
        "interconnect": sum(collective_seconds(chip, c, domain) for c in collectives),
    }


def collective_seconds(chip: Chip, collective: Collective, domain: int) -> float:
    """Seconds of a collective in a step, its bytes spread evenly over all links.

    Where a group reaches over several domains, each chip exchanges its share of what its domain has summed or still
    needs over the network, at the same time as the fast links do their part.
    """
    domains = len({device // domain for device in collective.group})
    if domains == 1:
        return collective.sent_bytes / chip.link_bandwidth
    bytes_ = collective.bytes * collective.times
    within = len(collective.group) // domains
    passes = 2 if collective.kind == "all-reduce" else 1
    if collective.kind == "collective-permute":
        return bytes_ / chip.network_bandwidth
    if (
        collective.kind == "all-to-all"
    ):  # what goes to chips of other domains does not shrink on the way
        return bytes_ * (domains - 1) / domains / chip.network_bandwidth
    network = passes * (domains - 1) / domains * bytes_ / within / chip.network_bandwidth
    links = passes * (within - 1) / within * bytes_ / chip.link_bandwidth
    return max(network, links)
