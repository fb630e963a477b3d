"""internalTrafficPolicy and externalTrafficPolicy: Local."""
import expect
from expect import FAMILIES
from labkit import net
from labkit.objects import Port


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


def internal_policy_local_uses_the_endpoints_of_the_clients_node(bed):
    with expect.service(bed, "int-local", ["n1p1", "n1p2", "n2p1"], settle=False, internal_policy="Local") as s:
        expect.soon(lambda: not bed.unserved(1, s, ["n1p1", "n1p2"]) and not bed.unserved(2, s, ["n2p1"]), 60, "not programmed")
        for family in FAMILIES:
            expect.share("n1p3", s.address(family), 80, ["n1p1", "n1p2"])
            expect.share("n2p3", s.address(family), 80, ["n2p1"])
            expect.silent("n3p2", s.address(family), 80)
