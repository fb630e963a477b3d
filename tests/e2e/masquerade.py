"""Whose address the endpoint sees, while no router subsystem runs. Node 1: nf_tables, node 2: legacy iptables."""
import expect
from expect import FAMILIES, PODS
from labkit import net
from labkit.objects import Port


def a_client_outside_reaches_pods_of_other_nodes_by_the_address_of_the_node_it_asked(bed):
    with expect.service(bed, "outside", kind="NodePort", ports=[Port(80, node_port=30088)]):
        for i in (1, 2):
            for f, client in enumerate(net.CLIENT):
                address = bed.plan.addresses(i)[f]
                seen = expect.share("ext", address, 30088, PODS)["seen"]
                # The pod of that very node sees the client itself, the two others see the node.
                expect.that(seen == {client: 3, address: 6}, f"node {i}:", seen)


def a_cluster_address_can_be_used_from_outside(bed):
    with expect.service(bed, "cluster-address") as s:
        for family in FAMILIES:
            expect.share("ext", s.address(family), 80, PODS)


def a_pod_keeps_its_address_on_the_way_to_any_pod(bed):
    with expect.service(bed, "pods") as s:
        for client in ("n1p2", "n2p2", "n3p2"):
            for family in FAMILIES:
                seen = expect.share(client, s.address(family), 80, PODS)["seen"]
                expect.that(set(seen) == {expect.pod(client, family)}, seen)
