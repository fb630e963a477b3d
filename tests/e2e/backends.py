"""A node changes between iptables and nftables while it serves: nobody's traffic notices, nothing opens, nothing of the other one stays."""
import expect
from expect import FAMILIES, PODS
from labkit import kernel, objects
from network_policies import _apply, _becomes, _firewall, _policy, _pods, _table
from restart import _busy, _targets

OTHER = {"iptables": "nftables", "nftables": "iptables"}


def _change(bed, nodes, netfilter):
    """Restarts the agents of these nodes with another packet filter, and waits until nothing is left of the one before."""
    for i in nodes:
        bed.agents[i].stop()
        bed.agents[i].netfilter = netfilter
        bed.agents[i].start()
    bed.ready(*nodes)
    for i in nodes:
        expect.soon(lambda: not _left(bed, i), 60, f"node {i} with {netfilter} still has", _left(bed, i), bed.tail(i))


def _left(bed, i):
    """What node i has of the packet filter that its agent does not use."""
    state = kernel.snapshot(i)
    if bed.agents[i].netfilter == "iptables":
        # What drops frames is nftables' with either: iptables has no rules for them.
        return [line for line in state["tables"] if "sluice_" in line and "sluice_frames" not in line]
    parts = [part for part in state if part == "sets" or part.startswith("ip") and "tables" in part]
    return [line for part in parts for line in state[part] if any(word in line for word in ("KUBE-ROUTER", "kube-router", "KUBE-NWPLCY", "KUBE-POD-FW", "KUBE-SRC", "KUBE-DST"))]


def a_change_of_the_packet_filter_and_back_fail_no_connection(bed):
    with _busy(bed) as s, expect.load(*_targets(bed, s), pause=0.1):
        for netfilter in (OTHER[bed.netfilter], bed.netfilter):
            _change(bed, (1, 2), netfilter)
            for i in (1, 2):
                for f, family in enumerate(FAMILIES):
                    expect.refused(f"n{i}p2", s.address(family), 81)
                    seen = expect.many("ext", bed.plan.addresses(i)[f], 30090)["seen"]
                    expect.that(bed.plan.addresses(i)[f] in seen, f"node {i} with {netfilter} does not masquerade:", seen)


def a_change_of_the_packet_filter_and_back_open_nothing_that_a_policy_closes(bed):
    target, clients = "n3p1", ("n1p1", "n2p1")
    with _firewall(bed):
        _apply(bed, "policies", [_policy("only-n1p1", {"pod": target}, policyTypes=["Ingress"], ingress=[{"from": [_pods(pod="n1p1")]}])])
        _becomes(_table(clients, target, {("n1p1", p) for p in ("tcp", "udp", "sctp")}), "before the change:")
        addresses = [expect.pod(target, family) for family in FAMILIES]
        with expect.load(*(("n1p1", address, objects.TARGET) for address in addresses), pause=0.1), \
                expect.never(*(("n2p1", address, objects.TARGET) for address in addresses)):
            for netfilter in (OTHER[bed.netfilter], bed.netfilter):
                _change(bed, (3,), netfilter)


def a_service_that_comes_after_a_change_is_served(bed):
    """What a change of the packet filter has left does not judge what comes later."""
    for netfilter in (OTHER[bed.netfilter], bed.netfilter):
        _change(bed, (1,), netfilter)
        with expect.service(bed, f"after-{netfilter}") as s:
            for family in FAMILIES:
                expect.share("n1p2", s.address(family), 80, PODS)
                expect.refused("n1p2", s.address(family), 81)


# Two and three minutes in the emulator. Each day such a change opens and closes no path, nor leaves anything, beside this machine's own kernel (`native::firewall`),
# and clients of Services outside and pods lose nothing to it (`backends_routed`).
a_change_of_the_packet_filter_and_back_open_nothing_that_a_policy_closes.whole = True
a_change_of_the_packet_filter_and_back_fail_no_connection.whole = True
