"""Node ports, external addresses and load balancer addresses, used from outside the cluster."""
import expect
from expect import FAMILIES, PODS
from labkit import kernel, net
from labkit.objects import Port


def a_node_port_answers_on_every_node_in_both_families(bed):
    with expect.service(bed, "np", kind="NodePort", ports=[Port(80, node_port=30081)]):
        for i in bed.agents:
            for address in bed.plan.addresses(i):
                expect.share("ext", address, 30081, PODS)
                expect.share("n1p2", address, 30081, PODS)


def a_node_port_serves_udp_and_sctp(bed):
    ports = [Port(53, "UDP", node_port=30082), Port(99, "SCTP", node_port=30083)]
    with expect.service(bed, "np-more", kind="NodePort", ports=ports):
        for address in bed.plan.addresses(1):
            expect.share("ext", address, 30082, PODS, "udp")
            expect.share("ext", address, 30083, PODS, "sctp")


def an_external_address_is_served_from_outside_and_inside(bed):
    addresses = ["198.51.100.20", "2001:db8:51::20"]
    with expect.service(bed, "external", external_ips=addresses):
        for address in addresses:
            expect.share("ext", address, 80, PODS)
            expect.share("n2p2", address, 80, PODS)


def a_load_balancer_address_is_served_from_outside_and_inside(bed):
    addresses = ["198.51.100.21", "2001:db8:51::21"]
    with expect.service(bed, "balanced", kind="LoadBalancer", balancer_ips=addresses,
                        ports=[Port(80, node_port=30084)]):
        for address in addresses:
            expect.share("ext", address, 80, PODS)
            expect.share("n2p2", address, 80, PODS)


def an_external_address_outside_the_allowed_ranges_is_not_served(bed):
    """Beside one that is in them: one of no range, one that is a cluster IP, and one of a node, of each family that the cluster has."""
    def of(*pairs):
        return [one for pair in pairs for one in net.of_families(pair, bed.families)]
    allowed = of(("198.51.100.22", "2001:db8:51::22"))
    forbidden = of(("203.0.113.77", "2001:db8:71::77"), ("10.96.1.200", "fd00:10:96::1:c8"), bed.plan.addresses(2))
    with expect.service(bed, "forbidden", external_ips=allowed + forbidden) as s:
        for address in allowed:
            expect.share("ext", address, 80, PODS)
        for i in bed.agents:
            held = {address for _, address, _ in kernel.ipvs(i)}
            expect.that(held >= set(allowed), f"node {i} lacks:", set(allowed) - held)
            expect.that(not held & set(forbidden), f"node {i} serves:", held & set(forbidden))
        for family in bed.families:
            expect.share("n1p2", s.address(family), 80, PODS)


def an_address_that_is_taken_away_is_served_no_longer(bed):
    with expect.service(bed, "leaving", external_ips=["198.51.100.23"]) as s:
        expect.share("ext", "198.51.100.23", 80, PODS)
        bed.put(s.name, PODS, external_ips=[])
        expect.soon(lambda: ("TCP", "198.51.100.23", 80) not in kernel.ipvs(1), 30, "still there")
        expect.silent("ext", "198.51.100.23", 80)
        for family in FAMILIES:
            expect.share("n1p2", s.address(family), 80, PODS)
