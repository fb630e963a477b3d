"""Nodes of one family alone. The agent of node 3 gets a directory of its own, where its Node has only such addresses."""
import os

import expect
from expect import PODS
from labkit import kernel, net, objects
from labkit.source import Manifests


def _alone(bed, family):
    source = Manifests(f"{net.RUN}/manifests-{family}")
    node = objects.node(bed.plan, 3)
    mine = [a for a in node["status"]["addresses"] if a["type"] == "InternalIP" and (":" in a["address"]) == (family == "6")]
    ranges = [r for r in node["spec"]["podCIDRs"] if (":" in r) == (family == "6")]
    node["status"]["addresses"], node["spec"] = mine, {"podCIDR": ranges[0], "podCIDRs": ranges}
    s = objects.Service(f"alone-{family}", 230 + int(family), PODS, families=family)
    source.write("all", [node, objects.service(s), *objects.slices(s)])
    return source, s


def _run(bed, family):
    agent = bed.agents[3]
    source, s = _alone(bed, family)
    usual = agent.source
    agent.stop()
    agent.source, agent.families = source, family
    try:
        agent.start()
        bed.settle(s, nodes=[3])
        expect.share("n3p2", s.address(family), 80, PODS)
        expect.refused("n3p2", s.address(family), 81)
        other = [key for key in kernel.ipvs(3) if (":" in key[1]) != (family == "6")]
        expect.that(not other, "the other family is served:", other)
    finally:
        agent.stop()
        agent.source, agent.families = usual, "46"
        agent.start()
        source.close()
        os.rmdir(source.folder)


def a_node_with_ipv4_alone_serves_ipv4(bed):
    _run(bed, "4")


def a_node_with_ipv6_alone_serves_ipv6(bed):
    _run(bed, "6")
