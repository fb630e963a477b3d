"""Nodes of one family alone. The agent of node 3 gets a directory of its own, where its Node has only such addresses."""
import os

import expect
from expect import FAMILIES, PODS
from health_checks import _say_at
from labkit import kernel, net, objects
from labkit.objects import Port
from labkit.source import Manifests

BALANCER = ["198.51.100.73", "2001:db8:51::73"]


def _alone(bed, family):
    source = Manifests(f"{net.RUN}/manifests-{family}")
    node = objects.node(bed.plan, 3, family)
    f = FAMILIES.index(family)
    client = f"{net.pod_addresses('n3p2')[f]}/{(32, 128)[f]}"
    s = objects.Service(f"alone-{family}", 230 + int(family), PODS, families=family, kind="LoadBalancer", balancer_ips=[BALANCER[f]], source_ranges=[client],
                        external_policy="Local", health_port=30145, ports=[Port(80, node_port=30146)])
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
        _every_feature(bed, family, s)
        other = [key for key in kernel.ipvs(3) if (":" in key[1]) != (family == "6")]
        expect.that(not other, "the other family is served:", other)
    finally:
        agent.stop()
        agent.source, agent.families = usual, "46"
        agent.start()
        source.close()
        os.rmdir(source.folder)


def _every_feature(bed, family, s):
    """A pod that reaches itself, a node port with the policy Local, source ranges, a health check, and free cluster IPs."""
    f = FAMILIES.index(family)
    own = bed.plan.addresses(3)[f]
    expect.share("n3p1", s.address(family), 80, PODS)
    seen = expect.share("ext", own, 30146, ["n3p1"])["seen"]
    expect.that(set(seen) == {net.CLIENT[f]}, "not the client's own address:", seen)
    expect.that(set(expect.many("n3p2", BALANCER[f], 80)["answers"]) <= set(PODS), "not an endpoint")
    expect.silent("n3p3", BALANCER[f], 80)
    _say_at(own, 30145, (200, 1))
    with expect.default_route_to_nobody(3):
        expect.that(expect.is_connection_refused("n3p2", ("10.96.200.8", "fd00:10:96::9:8")[f], 80), "a free cluster IP is not refused")


def a_node_with_ipv4_alone_serves_ipv4(bed):
    _run(bed, "4")


def a_node_with_ipv6_alone_serves_ipv6(bed):
    _run(bed, "6")
