"""internalTrafficPolicy and externalTrafficPolicy: Local."""
import expect
from expect import FAMILIES
from labkit import net, traffic
from labkit.objects import Port

EXTERNAL = ["198.51.100.34", "2001:db8:51::34"]
BALANCER = ["198.51.100.35", "2001:db8:51::35"]
PORTS = [Port(80, node_port=30094), Port(53, "UDP", node_port=30095), Port(99, "SCTP", node_port=30096)]


def external_policy_local_keeps_the_clients_address(bed):
    with expect.service(bed, "ext-local", ["n1p1", "n1p2", "n2p1"], kind="NodePort", external_policy="Local",
                        ports=[Port(80, node_port=30086)]):
        for address, client in zip(bed.plan.addresses(1), net.CLIENT):
            outcome = expect.share("ext", address, 30086, ["n1p1", "n1p2"])
            expect.that(set(outcome["seen"]) == {client}, "not the client's own address:", outcome)


def external_policy_local_answers_only_where_an_endpoint_is(bed):
    with expect.service(bed, "ext-local-one", ["n2p1"], kind="NodePort", external_policy="Local",
                        ports=[Port(80, node_port=30087)]) as s:
        for f, family in enumerate(FAMILIES):
            expect.silent("ext", bed.plan.addresses(1)[f], 30087)
            expect.share("ext", bed.plan.addresses(2)[f], 30087, ["n2p1"])
            expect.share("n1p2", s.address(family), 80, ["n2p1"])


def where_no_endpoint_is_external_policy_local_serves_clients_on_the_node_from_all_and_no_others(bed):
    with expect.service(bed, "inside", ["n2p1", "n3p1"], kind="LoadBalancer", external_policy="Local", external_ips=EXTERNAL,
                        balancer_ips=BALANCER, ports=PORTS):
        for f, family in enumerate(FAMILIES):
            own = bed.plan.addresses(1)[f]
            expect.soon(lambda: _who("n1p2", BALANCER[f], 80), 30, BALANCER[f], "is not served")
            for port in PORTS:
                protocol = port.protocol.lower()
                for client in ("n1p2", "n1"):
                    for address in (EXTERNAL[f], BALANCER[f]):
                        expect.share(client, address, port.port, ["n2p1", "n3p1"], protocol, each=2)
                    expect.share(client, own, port.node_port, ["n2p1", "n3p1"], protocol, each=2)
                # What comes from outside for these addresses comes by node 1.
                for address in (EXTERNAL[f], BALANCER[f]):
                    expect.silent("ext", address, port.port, protocol)
                expect.silent("ext", own, port.node_port, protocol)
            seen = expect.share("n1p2", BALANCER[f], 80, ["n2p1", "n3p1"])["seen"]
            expect.that(set(seen) == {expect.pod("n1p2", family)}, "not the client's own address:", seen)
            seen = expect.share("ext", bed.plan.addresses(2)[f], PORTS[0].node_port, ["n2p1"])["seen"]
            expect.that(set(seen) == {net.CLIENT[f]}, "not the client's own address:", seen)


def clients_outside_are_let_in_with_the_first_local_endpoint_and_reach_no_other(bed):
    more = {"kind": "LoadBalancer", "external_policy": "Local", "balancer_ips": BALANCER}
    with expect.service(bed, "first", ["n2p1"], **more) as s:
        expect.soon(lambda: _who("n1p2", BALANCER[0], 80), 30, "it is not served")
        answered = set()
        for pods in (["n2p1", "n1p1"], ["n2p1"], ["n2p1", "n1p1"], ["n2p1"]):
            bed.put(s.name, pods, **more)

            def is_so(address):
                who = _who("ext", address, 80)
                answered.add(who)
                return who == ("n1p1" if "n1p1" in pods else None)
            for address in BALANCER:
                expect.soon(lambda: is_so(address), 30, "clients outside at", address, "with", pods)
            expect.share("n1p2", BALANCER[0], 80, ["n1p1"] if "n1p1" in pods else ["n2p1"])
        expect.that(answered == {"n1p1", None}, "clients outside were answered by", answered)


def _who(client, address, port):
    """The pod that answers, or nobody."""
    try:
        return traffic.ask(client, address, port, patience=1.0)[0]
    except OSError:
        return None


def internal_policy_local_uses_the_endpoints_of_the_clients_node(bed):
    with expect.service(bed, "int-local", ["n1p1", "n1p2", "n2p1"], settle=False, internal_policy="Local") as s:
        expect.soon(lambda: not bed.unserved(1, s, ["n1p1", "n1p2"]) and not bed.unserved(2, s, ["n2p1"]), 60, "not programmed")
        for family in FAMILIES:
            expect.share("n1p3", s.address(family), 80, ["n1p1", "n1p2"])
            expect.share("n2p3", s.address(family), 80, ["n2p1"])
            expect.silent("n3p2", s.address(family), 80)
