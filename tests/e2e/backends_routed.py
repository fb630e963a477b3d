"""Changes between iptables and nftables on nodes with router and service proxy whose hosts forward nothing by themselves."""
import contextlib

import expect
from backends import OTHER, _change
from forwarding import _nothing_is_forwarded
from labkit import net, traffic
from labkit.objects import Port
from router import everyone

NODES = (1, 3)  # what legacy tables drop (node 2), nftables cannot let pass


def a_change_of_the_packet_filter_and_back_lose_no_packet_of_pods_and_clients(bed):
    ports, outside = [Port(80, node_port=30093), Port(53, "UDP", node_port=30094)], [address for i in NODES for address in bed.plan.addresses(i)]
    with _nothing_is_forwarded(bed), expect.server("ext", [("tcp", 8080)]), \
            expect.service(bed, "passing", kind="NodePort", ports=ports), \
            expect.stream({"n1p1": ["n2p1", "n3p1"], "n2p1": ["n3p1"]}, pause=0.1), \
            expect.new_flows("ext", *((address, 30094) for address in outside), pause=0.2), \
            expect.load(*(("ext", address, 30093) for address in outside), pause=0.5):
        for netfilter in (OTHER[bed.netfilter], bed.netfilter):
            _change(bed, NODES, netfilter)
            for i in NODES:
                for f, client in enumerate(net.CLIENT):
                    seen = traffic.ask(f"n{i}p1", client, 8080)
                    expect.that(seen == ("ext", bed.plan.addresses(i)[f]), f"with {netfilter} a pod of node {i} is seen outside as", seen)


@contextlib.contextmanager
def _a_chain_of_the_host_drops(bed):
    """What `nft` makes where nobody has iptables: the chain by which a host decides what it forwards."""
    for i in bed.agents:
        for family in ("ip", "ip6"):
            net.node(i, "nft", f"add table {family} filter; add chain {family} filter FORWARD {{ type filter hook forward priority 0; policy drop; }}")
    try:
        yield
    finally:
        for i in bed.agents:
            for family in ("ip", "ip6"):
                net.node(i, "nft", f"delete table {family} filter")


def pods_pass_a_chain_of_the_host_that_drops(bed):
    """Where `xt_conntrack` is missing one of the rules is refused, and the others let pods pass all the same."""
    with _a_chain_of_the_host_drops(bed):
        for i in bed.agents:
            expect.soon(lambda: net.node(i, "nft", "list ruleset").count('name "kube-bridge"') + net.node(i, "nft", "list ruleset").count('ifname "kube-bridge"') >= 4,
                        60, f"node {i} has no rules in FORWARD:", net.node(i, "nft", "list ruleset"), bed.tail(i))
        everyone(bed, sizes={"4": 1480, "6": 1460})
    bed.ready()


pods_pass_a_chain_of_the_host_that_drops.netfilter = "nftables"
