"""A pod that is an endpoint of its own Service and is sent to itself."""
import expect
from expect import FAMILIES, PODS
from labkit import net
from labkit.objects import Port

EXTERNAL = ["198.51.100.25", "2001:db8:51::25"]
BALANCER = ["198.51.100.26", "2001:db8:51::26"]
PORTS = [Port(80, node_port=30091), Port(53, "UDP", node_port=30092), Port(99, "SCTP", node_port=30093)]


def a_pod_reaches_itself_through_every_address_of_its_own_service(bed):
    with expect.service(bed, "itself", ["n1p1"], kind="LoadBalancer", external_ips=EXTERNAL, balancer_ips=BALANCER, ports=PORTS) as s:
        for f, family in enumerate(FAMILIES):
            own = bed.plan.addresses(1)[f]
            for port in PORTS:
                for address in (s.address(family), EXTERNAL[f], BALANCER[f]):
                    expect.share("n1p1", address, port.port, ["n1p1"], port.protocol.lower(), each=2)
                expect.share("n1p1", own, port.node_port, ["n1p1"], port.protocol.lower(), each=2)
            # It sees the node, and everybody else as before.
            expect.that(expect.share("n1p1", s.address(family), 80, ["n1p1"])["seen"] == {own: 3}, "not the node's address")
            seen = expect.share("n1p2", s.address(family), 80, ["n1p1"])["seen"]
            expect.that(set(seen) == {expect.pod("n1p2", family)}, "not the client's own address:", seen)


def a_pod_among_others_gets_its_share_of_its_own_connections(bed):
    with expect.service(bed, "among") as s:
        for family in FAMILIES:
            seen = expect.share("n1p1", s.address(family), 80, PODS)["seen"]
            own = bed.plan.addresses(1)[FAMILIES.index(family)]
            expect.that(seen == {own: 3, expect.pod("n1p1", family): 6}, seen)
