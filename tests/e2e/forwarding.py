"""Hosts that forward nothing by themselves (`FORWARD` drops, as Docker leaves it), with router and service proxy: all that pods and
clients of Services need passes all the same, with legacy iptables (node 2), iptables of
nf_tables, and nftables; by nft where there are no programs of iptables."""
import contextlib

import expect
from expect import FAMILIES, PODS
from labkit import net, objects
from labkit.objects import Port
from router import everyone


@contextlib.contextmanager
def _nothing_is_forwarded(bed):
    """Until all agents have seen that, packets of pods are dropped: the test begins behind it."""
    for i in bed.agents:
        expect.host_lets_nothing_through(bed, i, "FORWARD")
    try:
        for i in bed.agents:
            for family in FAMILIES:
                client, address = f"n{i}p1", expect.pod(f"n{i % len(bed.agents) + 1}p1", family)
                expect.soon(lambda: expect.is_answered(client, address, objects.TARGET), 30, client, "does not reach", address, bed.tail(i))
        yield
    finally:
        for i in bed.agents:
            expect.host_lets_everything_through(bed, i, "FORWARD")


def pods_of_all_nodes_reach_each_other_and_the_outside(bed):
    with _nothing_is_forwarded(bed), expect.server("ext", [("tcp", 8080)]):
        everyone(bed, sizes={"4": 1480, "6": 1460})
        for i in bed.agents:
            for f, _ in enumerate(FAMILIES):
                expect.many(f"n{i}p1", net.CLIENT[f], 8080)


def clients_of_node_ports_are_answered_by_pods_of_every_node(bed):
    ports = [Port(80, node_port=30091), Port(53, "UDP", node_port=30092)]
    with _nothing_is_forwarded(bed), expect.service(bed, "passing", kind="NodePort", ports=ports):
        for i in bed.agents:
            for address in bed.plan.addresses(i):
                expect.share("ext", address, 30091, PODS)
                expect.share("ext", address, 30092, PODS, "udp")


def pods_are_answered_at_node_ports_of_other_nodes_whose_answers_leave_by_tunnels(bed):
    with _nothing_is_forwarded(bed), expect.service(bed, "across", kind="NodePort", ports=[Port(80, node_port=30095)]):
        for i in bed.agents:
            for address in bed.plan.addresses(i % len(bed.agents) + 1):
                expect.share(f"n{i}p1", address, 30095, PODS)


def clients_of_external_addresses_are_answered_too(bed):
    addresses = ["198.51.100.24", "2001:db8:51::24"]
    with _nothing_is_forwarded(bed), expect.service(bed, "outer", external_ips=addresses):
        for address in addresses:
            expect.share("ext", address, 80, PODS)


def what_nobody_asked_for_is_not_forwarded(bed):
    """The outside reaches no pod by its address on a node's link: only answers leave there without being a pod's."""
    with _nothing_is_forwarded(bed), expect.server("ext", [("tcp", 8080)]):
        # From another node's address to the outside, by way of node 1, as a router in its place would do.
        for f, _ in enumerate(FAMILIES):
            net.ip("n3", f"route add {net.CLIENT[f]} via {bed.plan.addresses(1)[f]} dev eth0")
            try:
                expect.silent("n3", net.CLIENT[f], 8080)
            finally:
                net.ip("n3", f"route del {net.CLIENT[f]} via {bed.plan.addresses(1)[f]} dev eth0")
