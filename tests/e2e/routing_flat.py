"""The router on three nodes of one subnet: nothing needs a tunnel, and with `--overlay-type=full` everything has one."""
import expect
from expect import FAMILIES
from router import OVERLAY, everyone, learned, run_with, sizes, tunnels

ALL = ("4", "6", "46")


def on_one_link_pods_reach_each_other_without_tunnels(bed):
    everyone(bed, sizes={f: 1500 for f in FAMILIES})
    for i in bed.agents:
        expect.that(not tunnels(i), f"node {i} has", tunnels(i))
        for f, family in enumerate(FAMILIES):
            ways = {route["dst"]: route.get("gateway") for route in learned(i, family).values()}
            wanted = {bed.plan.pod_ranges(j)[f]: bed.plan.addresses(j)[f] for j in bed.agents if j != i}
            expect.that(ways == wanted, f"node {i} has", ways, "not", wanted)


def each_family_alone_needs_no_tunnels_on_one_link(bed):
    for families in ("4", "6"):
        _run(bed, "subnet", families, {"4": 1500, "6": 1500})
        for i in bed.agents:
            expect.that(not tunnels(i), f"IPv{families}: node {i} has", tunnels(i))
    run_with(bed)


def each_family_alone_and_both_go_without_tunnels_where_they_are_off(bed):
    for families in ALL:
        _run(bed, "none", families, {"4": 1500, "6": 1500})
    run_with(bed)


def tunnels_for_everything_carry_each_family_alone_and_both(bed):
    for families in ALL:
        # The bridge lets through what fits into every tunnel that there may be.
        _run(bed, "full", families, sizes("full", families))
        for i in bed.agents:
            expect.that(len(tunnels(i)) == 2 * len(families), f"IPv{families}: node {i} has", tunnels(i))
    run_with(bed)


def _run(bed, overlay, families, sizes):
    run_with(bed, *OVERLAY[overlay], families=families)
    everyone(bed, families, sizes=sizes)
