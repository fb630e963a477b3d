"""A cluster of one family: Services have addresses of that alone, and nodes and pods have no others."""
import asking
import expect
import exposure
import health_checks
import near
from expect import PODS
from labkit import kernel, net, objects, traffic
from labkit.objects import Port

EXTERNAL = ["198.51.100.95", "2001:db8:51::95"]
BALANCER = ["198.51.100.96", "2001:db8:51::96"]
PORTS = [Port(80, node_port=30151), Port(53, "UDP", node_port=30152), Port(99, "SCTP", node_port=30153)]


def nothing_of_the_other_family_is_programmed(bed):
    with expect.service(bed, "plain") as s:
        for i in bed.agents:
            other = [key for key in kernel.ipvs(i) if objects.family_of(key[1]) not in bed.families]
            expect.that(not other, f"node {i} serves", other)
        for client in ("n1p1", "n2p2", "n3"):
            expect.share(client, s.address(bed.families), 80, PODS)
        expect.refused("n1p2", s.address(bed.families), 81)


def a_pod_reaches_itself_through_every_address_of_its_own_service(bed):
    own = expect.of_family(bed, bed.plan.addresses(1))
    with expect.service(bed, "itself", ["n1p1"], kind="LoadBalancer", external_ips=[expect.of_family(bed, EXTERNAL)], balancer_ips=[expect.of_family(bed, BALANCER)], ports=PORTS) as s:
        for port in PORTS:
            protocol = port.protocol.lower()
            for address in (s.address(bed.families), expect.of_family(bed, EXTERNAL), expect.of_family(bed, BALANCER)):
                expect.share("n1p1", address, port.port, ["n1p1"], protocol, each=2)
            expect.share("n1p1", own, port.node_port, ["n1p1"], protocol, each=2)
        expect.that(expect.share("n1p1", s.address(bed.families), 80, ["n1p1"])["seen"] == {own: 3}, "not the node's address")


def external_policy_local_serves_clients_on_a_node_without_an_endpoint_and_nobody_outside_there(bed):
    with expect.service(bed, "inside", ["n2p1", "n3p1"], kind="LoadBalancer", external_policy="Local", external_ips=[expect.of_family(bed, EXTERNAL)],
                        balancer_ips=[expect.of_family(bed, BALANCER)], ports=PORTS):
        own = expect.of_family(bed, bed.plan.addresses(1))
        for client in ("n1p2", "n1"):
            for address in (expect.of_family(bed, EXTERNAL), expect.of_family(bed, BALANCER)):
                expect.share(client, address, 80, ["n2p1", "n3p1"], each=2)
            expect.share(client, own, PORTS[0].node_port, ["n2p1", "n3p1"], each=2)
        for address, port in ((expect.of_family(bed, EXTERNAL), 80), (expect.of_family(bed, BALANCER), 80), (own, PORTS[0].node_port)):
            expect.silent("ext", address, port)
        seen = expect.share("ext", expect.of_family(bed, bed.plan.addresses(2)), PORTS[0].node_port, ["n2p1"])["seen"]
        expect.that(set(seen) == {expect.of_family(bed, net.CLIENT)}, "not the client's own address:", seen)


def source_ranges_let_in_whom_they_name_and_a_health_check_counts_the_endpoints_of_its_node(bed):
    client = net.pod_address("n1p2", bed.families)
    more = {"kind": "LoadBalancer", "balancer_ips": [expect.of_family(bed, BALANCER)], "external_policy": "Local", "health_port": 30155}
    with expect.service(bed, "ranged", PODS, source_ranges=[f"{client}/{32 if '4' in bed.families else 128}"], **more) as s:
        expect.share("n1p2", expect.of_family(bed, BALANCER), 80, ["n1p1"])
        expect.silent("n2p2", expect.of_family(bed, BALANCER), 80)
        for i, count in ((1, 1), (2, 1)):
            health_checks._say_at(expect.of_family(bed, bed.plan.addresses(i)), 30155, (200, count))
        bed.put(s.name, PODS[1:], source_ranges=[], **more)
        expect.soon(lambda: set(traffic.many("n2p2", expect.of_family(bed, BALANCER), 80, count=4)["answers"]) == {"n2p1"}, 30, "no range is left, and it is not served")
        health_checks._say_at(expect.of_family(bed, bed.plan.addresses(1)), 30155, (503, 0))


def clients_are_served_from_their_own_zone_and_from_their_own_node(bed):
    with expect.service(bed, "zoned", near="Zone", settle=False) as s:
        near._serves("n1p2", s, ["n1p1"])
        near._serves("n2p2", s, ["n2p1", "n3p1"])
        bed.put(s.name, PODS[1:])
        near._serves("n1p2", s, ["n2p1", "n3p1"])
    with expect.service(bed, "noded", near="Node", settle=False) as s:
        for client, pod in (("n1p2", "n1p1"), ("n3p2", "n3p1")):
            near._serves(client, s, [pod])


def an_external_address_outside_the_allowed_ranges_is_not_served(bed):
    exposure.an_external_address_outside_the_allowed_ranges_is_not_served(bed)


def a_service_is_explained_and_an_audit_repairs_it(bed):
    asking._asked(bed)
    with expect.service(bed, "asked") as s:
        answer = asking._said(bed, "svc", f"default/{s.name}")
        place = asking._place(answer, s.address(bed.families))["virtualService"]
        found = {e["address"]: e["state"] for e in place["endpoints"]}
        expect.that(place["kernel"] == "inPlace" and found == {expect.pod(name, bed.families): "serving" for name in PODS}, place)
        expect.soon(lambda: asking._audit(bed) == ("", 0), 30, "something differs:", asking._audit(bed))
        asking._repairs(bed, s, bed.families)
