"""A move from Calico to Sluice's pod network, step by step as docs/migration.md has it, while requests go on on every node; kube-proxy stays.

There is no Calico here: nodes have what it makes in kernel and files (a block of addresses for each node, outside of the ranges of Nodes, routes between them, chains, and a pair of links
for each pod without a bridge), the API has its objects that the page asks for, and a reboot takes away from a node what it takes away from Calico's.
"""
import json

from labkit import cluster, net

import newcomer
from moves import PLUGINS, Move
from newcomer import AGENTS, ready_nodes, ready_pods, that

NAME = "calico"
POOL, GROUP = "10.245.0.0/16", "crd.projectcalico.org"
CONF, KUBECONFIG = "/etc/cni/net.d/10-calico.conflist", "/etc/cni/net.d/calico-kubeconfig"
# The agents' routes come from Node objects: BGP's port is Calico's.
VALUES = ["extraArgs[0]=--node-routes=api"]
MANIFEST = "generic-kuberouter"


def block(i):
    return f"10.245.{i}.0/26"


def definition(kind, plural):
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    return {"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": f"{plural}.{GROUP}"}, "spec": {
        "group": GROUP, "scope": "Cluster", "names": {"kind": kind, "plural": plural, "singular": kind.lower()},
        "versions": [{"name": "v1", "served": True, "storage": True, "schema": schema}]}}


def unavailable(bed, i):
    """Whether a Node says that it has no network, which keeps pods from it."""
    conditions = bed.get("node", f"node{i}")["status"]["conditions"]
    return any(one["type"] == "NetworkUnavailable" and one["status"] == "True" for one in conditions)


class FromCalico(Move):
    conf, network = CONF, "pairs"

    def __init__(self):
        super().__init__(NAME)

    def tests(self):
        every = [self.nodes_have_calico, self.requests_go_on, self.agents_start_beside_it, self.node_after_node_gets_our_network, self.calico_goes, self.a_policy_is_enforced]
        return [(f"{NAME}: {test.__name__}", test) for test in every]

    def links_of_pods(self, bed, i, network):
        if network != self.network:
            return super().links_of_pods(bed, i, network)
        return bed.on(i, "ip -o link show type veth | grep -v ' master ' | grep -o ' veth[^@:]*'; true").split()

    def address(self, bed, i):
        return net.Plan(bed.nodes, 0, 1, True).addresses(i)[0]

    # ------------------------------------------------------------------ Calico

    def nodes_have_calico(self, bed):
        newcomer.nodes_wait_for_a_network(bed)
        bed.apply(definition("IPPool", "ippools"), definition("BlockAffinity", "blockaffinities"))
        bed.wait("its kinds are known", lambda: "blockaffinities" in bed.kubectl("api-resources", f"--api-group={GROUP}"), 60)
        of = {"apiVersion": f"{GROUP}/v1"}
        bed.apply({**of, "kind": "IPPool", "metadata": {"name": "default-ipv4-ippool"}, "spec": {"cidr": POOL, "blockSize": 26, "ipipMode": "Never", "natOutgoing": True}},
                  *({**of, "kind": "BlockAffinity", "metadata": {"name": f"node{i}"}, "spec": {"node": f"node{i}", "cidr": block(i), "state": "confirmed"}} for i in self.nodes(bed)))
        pair = {"type": "ptp", "ipMasq": False, "mtu": 1450}
        for i in self.nodes(bed):
            bed.on(i, f"mkdir -p /opt/cni/bin; cd {net.CNI}; cp ptp {PLUGINS} /opt/cni/bin/")
            routes = [f"ip route replace {block(j)} via {self.address(bed, j)} proto bird" for j in self.nodes(bed) if j != i]
            chains = ["iptables -N cali-FORWARD", "iptables -I FORWARD -j cali-FORWARD", f"iptables -A cali-FORWARD -s {POOL} -j ACCEPT", f"iptables -A cali-FORWARD -d {POOL} -j ACCEPT",
                      "ipset create cali40masq-ipam-pools hash:net", f"ipset add cali40masq-ipam-pools {POOL}", "iptables -t nat -N cali-nat-outgoing",
                      "iptables -t nat -I POSTROUTING -j cali-nat-outgoing",
                      "iptables -t nat -A cali-nat-outgoing -m set --match-set cali40masq-ipam-pools src -m set ! --match-set cali40masq-ipam-pools dst -j MASQUERADE"]
            bed.on(i, "; ".join(["set -e", f"ip route replace blackhole {block(i)} proto bird", *routes, *chains]))
            plugin = {**pair, "ipam": {"type": "host-local", "subnet": block(i), "routes": [{"dst": "0.0.0.0/0"}]}}
            bed.put(i, CONF, json.dumps({"cniVersion": "0.3.1", "name": "k8s-pod-network", "plugins": [plugin, {"type": "portmap", "capabilities": {"portMappings": True}}]}))
            bed.put(i, KUBECONFIG, "{}")
        bed.kube_proxy(True)
        bed.wait("nodes are ready", lambda: len(ready_nodes(bed)) == bed.nodes)

    # ------------------------------------------------------------------ the steps

    def agents_start_beside_it(self, bed):
        ranges = bed.kubectl("get", "nodes", "-o", "custom-columns=NAME:.metadata.name,RANGES:.spec.podCIDRs")
        pools = bed.kubectl("get", f"ippools.{GROUP}", "-o", "yaml")
        that(all(f"node{i}" in ranges for i in self.nodes(bed)) and "10.244." in ranges and POOL in pools, ranges, pools)
        bed.kubectl("apply", "-f", f"{cluster.INSTALLED}/kube-router-node-status.yaml")
        super().agents_start_beside_it(bed)

    def node_after_node_gets_our_network(self, bed):
        self.has_calico = set(self.nodes(bed))

        def commands(i):
            bed.kubectl("label", "node", f"node{i}", "sluice=yes")
            self.its_program_ends(bed, i)
            bed.on(i, f"rm {CONF} {KUBECONFIG}")
            bed.reboot(i)  # behind which the DaemonSet's pod is made anew, too
            self.has_calico.discard(i)
            for j in self.has_calico:  # as BIRD does
                bed.on(j, f"ip route delete {block(i)}")
            bed.wait("the agent is ready", lambda: any(pod["spec"]["nodeName"] == f"node{i}" for pod in ready_pods(bed, *AGENTS)))
            bed.wait("its network counts as there", lambda: not unavailable(bed, i), 300)
            bed.wait("its routes are there", lambda: "proto 17" in bed.on(i, f"ip route show root {net.POD_RANGES[0]}"), 300)
            that("cali" not in bed.on(i, "iptables-save; ipset list -n"), "a reboot left something of Calico's")
            listed = bed.kubectl("get", f"blockaffinities.{GROUP}", "--no-headers", "-o", "custom-columns=NODE:.spec.node,RANGE:.spec.cidr")
            for name, range_of in (line.split() for line in listed.splitlines()):
                if int(name.removeprefix("node")) in self.has_calico:
                    bed.on(i, f"ip route add {range_of} via {self.address(bed, int(name.removeprefix('node')))}")
            self.ask_for_ever(bed, i)
        self.each_node(bed, commands, self.network, "kube-bridge")

    def its_program_ends(self, bed, i):
        """What calico-node does last: its Node has no network, as far as the scheduler knows."""
        condition = {"type": "NetworkUnavailable", "status": "True", "reason": "CalicoIsDown", "message": "Calico is shutting down on this node"}
        bed.kubectl("patch", "node", f"node{i}", "--subresource=status", "--type=strategic", "-p", json.dumps({"status": {"conditions": [condition]}}))

    def calico_goes(self, bed):
        bed.kubectl("delete", "crd", f"ippools.{GROUP}", f"blockaffinities.{GROUP}")
        for i in self.nodes(bed):
            for j in self.nodes(bed):
                bed.on(i, f"ip route delete {block(j)} 2>/dev/null; true")
            left = bed.on(i, f"ip route show root {POOL}; iptables-save | grep cali; ls /etc/cni/net.d | grep -v kuberouter; true")
            that(not left.strip(), f"left of Calico on node {i}:", left)
        self.all_reach_all(bed, {i: "kube-bridge" for i in self.nodes(bed)})
        self.no_request_failed(bed)
