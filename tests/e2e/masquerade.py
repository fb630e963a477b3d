"""Whose address the endpoint sees, while no router subsystem runs. Node 1: nf_tables, node 2: legacy iptables."""
import os

import expect
from expect import FAMILIES, PODS
from labkit import net, objects
from labkit.objects import Port
from labkit.source import Manifests


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


def an_endpoint_sees_the_client_outside_also_on_a_node_without_pod_ranges(bed):
    """As another network plugin has it that gives pods addresses of its own: the Node names no ranges, the slices name the node."""
    agent, source = bed.agents[3], Manifests(f"{net.RUN}/manifests-no-ranges")
    node = objects.node(bed.plan, 3)
    node["spec"] = {}
    s = objects.Service("no-ranges", 236, ["n1p1", "n3p1", "n3p2"], kind="NodePort", external_policy="Local", ports=[Port(80, node_port=30147)])
    every = objects.Service("no-ranges-all", 237, PODS, kind="NodePort", ports=[Port(80, node_port=30148)])
    source.write("all", [node, *(one for service in (s, every) for one in (objects.service(service), *objects.slices(service)))])
    usual = agent.source
    agent.stop()
    agent.source = source
    try:
        agent.start()
        bed.settle(s, every, nodes=[3])
        for f, client in enumerate(net.CLIENT):
            own = bed.plan.addresses(3)[f]
            seen = expect.share("ext", own, 30147, ["n3p1", "n3p2"])["seen"]
            expect.that(set(seen) == {client}, "not the client's own address:", seen)
            # Pods of other nodes have to answer by this one.
            seen = expect.share("ext", own, 30148, PODS)["seen"]
            expect.that(seen == {client: 3, own: 6}, seen)
            expect.share("n3p1", own, 30147, ["n3p1", "n3p2"])
    finally:
        agent.stop()
        agent.source = usual
        agent.start()
        source.close()
        os.rmdir(source.folder)
