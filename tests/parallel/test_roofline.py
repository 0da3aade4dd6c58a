"""The bound on a step's time, written out by hand; and what the table of hardware takes."""

import pytest

from mmbert_jax.errors import UserError
from mmbert_jax.parallel.collectives import Collective
from mmbert_jax.parallel.hardware import Chip, parse_topology
from mmbert_jax.parallel.roofline import collective_seconds, step_seconds

CHIP = Chip(1e12, 1e9, 1e10, link_bandwidth=100.0, network_bandwidth=10.0, host=4, source="")


def collective(kind, group, bytes_=800, times=1):
    return Collective(kind, ("data",), tuple(group), bytes_, times, "", "")


def test_within_a_domain_all_links_are_used():
    assert collective_seconds(CHIP, collective("all-reduce", range(4)), 4) == 2 * 3 / 4 * 800 / 100
    assert collective_seconds(CHIP, collective("all-gather", range(4), times=3), 4) == 3 * 6.0
    assert collective_seconds(CHIP, collective("all-reduce", range(16)), 16) == 2 * 15 / 16 * 8


def test_over_two_hosts_the_network_carries_a_chips_share():
    """A host's four chips sum first, 200 bytes each; two hosts then exchange them there and back, half each time."""
    assert collective_seconds(CHIP, collective("all-reduce", range(8)), 4) == 2 * 1 / 2 * 200 / 10
    assert collective_seconds(CHIP, collective("reduce-scatter", range(8)), 4) == 1 / 2 * 200 / 10
    # One chip of each host: nothing is summed on the way.
    assert collective_seconds(CHIP, collective("all-reduce", (0, 4)), 4) == 2 * 1 / 2 * 800 / 10
    assert collective_seconds(CHIP, collective("all-to-all", range(8)), 4) == 800 / 2 / 10


def test_a_step_is_each_resource_by_itself():
    seconds = step_seconds(CHIP, 2e12, 5e10, [collective("all-gather", range(4))] * 2, 4)
    assert seconds == {"compute": 2.0, "memory": 5.0, "interconnect": 12.0}


def test_topologies():
    assert parse_topology("v5p:8x8x8") == ("v5p", (8, 8, 8))
    assert parse_topology("h100:2x8") == ("h100", (2, 8))
    for wrong in ("v5e", "v5e:16", "tpu:2x2", "v5e:2x2x2x2"):
        with pytest.raises(UserError, match=f"--topology '{wrong}' is not CHIP:SHAPE"):
            parse_topology(wrong)
