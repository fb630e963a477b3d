"""Leaving for another program, with all three subsystems, on hosts that forward nothing by themselves: our tables of nf_tables go last, by
`--cleanup-nftables`, and what else is in the kernel stays and serves until the next program, or we again, take it over."""
import contextlib
import os

import expect
from expect import FAMILIES, PODS
from forwarding import _nothing_is_forwarded
from labkit import kernel, net, objects, own
from network_policies import _apply, _pods, _policy, _put_pods, _start_with_firewall

NODE, CLOSED, FAR = 1, "n1p1", "n3p1"
SUCCESSOR = "successor"


@contextlib.contextmanager
def _all_three(bed):
    """Agents with router, service proxy and firewall."""
    _put_pods(bed)
    _apply(bed, "policies", [_policy("closed", {"pod": CLOSED}, policyTypes=["Ingress"], ingress=[{"from": [_pods(pod="n2p1")]}])])
    _start_with_firewall(bed)
    try:
        bed.ready()
        yield
    finally:
        # A virtual service that outlives its agent's table of service ports is nobody's for every later agent, and stays. Its connections translate answers to whoever
        # connects from one of their source ports to one of their endpoints, so that a later test waits in vain for such an answer.
        for agent in bed.agents.values():
            if not agent.is_alive():
                agent.start()
        own.wait(lambda: not any(kernel.ipvs(i) for i in bed.agents), 30)
        left = {i: kernel.ipvs(i) for i in bed.agents}
        for i, agent in bed.agents.items():
            agent.stop()
            # What is left of the firewall goes with the tables; the next run writes what it needs of the others.
            _without_tables(bed, i)
        _apply(bed, "policies", None)
        os.unlink(f"{bed.source.folder}/pods.json")
        expect.that(not any(left.values()), "virtual services stay:", left)


def _without_tables(bed, i):
    status, text = bed.agents[i].once("--cleanup-nftables", f"--socket={net.RUN}/n{i}/sluice.sock")
    expect.that(status == 0, f"--cleanup-nftables of node {i} ended with {status}:", text)


@contextlib.contextmanager
def _judged_by_a_successor(bed):
    """Another program that refuses the same behind our tables, in one of its own."""
    net.node(NODE, "nft", f"add table inet {SUCCESSOR}; add chain inet {SUCCESSOR} forward {{ type filter hook forward priority 10; policy accept; }}")
    for f, family in enumerate(("ip", "ip6")):
        to = net.pod_addresses(CLOSED)[f]
        net.node(NODE, "nft", f"add rule inet {SUCCESSOR} forward {family} daddr {to} {family} saddr {net.pod_addresses(FAR)[f]} ct state new meta l4proto tcp reject with tcp reset")
    try:
        yield
    finally:
        net.node(NODE, "nft", f"delete table inet {SUCCESSOR}")


def our_tables_go_last_and_alone_while_pods_and_services_are_served_and_what_was_closed_stays_closed(bed):
    with _nothing_is_forwarded(bed), _all_three(bed), expect.service(bed, "kept", PODS[1:], external_ips=["198.51.100.37"]) as s:
        before = kernel.snapshot(NODE)
        expect.that(any("sluice_policy" in line for line in before["tables"]), "node 1 has no table of policies:", before["tables"])
        # A refusal by IPv6 is heard at the second try, a second later and more.
        with expect.never(*((FAR, expect.pod(CLOSED, f), objects.TARGET) for f in FAMILIES), least=2), expect.stream({CLOSED: ["n2p1"], "n2p1": [CLOSED]}), \
                expect.load(*((CLOSED, s.address(f), 80) for f in FAMILIES), pause=0.1):
            with _judged_by_a_successor(bed):
                bed.agents[NODE].stop()
                _without_tables(bed, NODE)
                after = kernel.snapshot(NODE)
                bed.agents[NODE].start()
                bed.ready(NODE)
        for part, lines in before.items():
            if part != "tables":
                expect.that(after[part] == lines, f"{part} of node 1:", kernel.difference({part: lines}, {part: after[part]}))
        left = [line for line in after["tables"] if SUCCESSOR not in line]
        expect.that(not left, "tables of node 1:", left)
        expect.soon(lambda: kernel.snapshot(NODE) == before, 30, "the next run did not take everything over:",
                    kernel.difference(before, kernel.snapshot(NODE)))


our_tables_go_last_and_alone_while_pods_and_services_are_served_and_what_was_closed_stays_closed.netfilter = "nftables"
