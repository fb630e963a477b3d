"""A move from Calico to Sluice's pod network and back, step by step as docs/migration.md has it, while requests go on on every node; kube-proxy stays.

There is no Calico here: nodes have what it makes in kernel and files (a block of addresses for each node, routes between them, chains, and a pair of links
for each pod without a bridge), the API has its objects that the page asks for and a DaemonSet whose pods do nothing, and a reboot takes away from a node what it takes away from Calico's.

As kubeadm with Calico has it, its pool is the range out of which the control plane gives each Node one (`spec.podCIDRs`), and what kube-proxy takes for that of pods. Agents
have ranges outside of it, by annotations.
"""
import json
import re

from labkit import cluster, net, own

import moves
import newcomer
import page
from moves import PLUGINS, Move
from newcomer import AGENTS, ready_nodes, ready_pods, that

NAME = "calico"
POOL, GROUP = net.POD_RANGES[0], "crd.projectcalico.org"
# Of our pods, and a range that covers both.
CIDR, WIDER = "10.245.0.0/16", "10.244.0.0/15"
CONF, KUBECONFIG = "/etc/cni/net.d/10-calico.conflist", "/etc/cni/net.d/calico-kubeconfig"
# The agents' routes come from Node objects: BGP's port is Calico's.
VALUES = ["extraArgs[0]=--node-routes=api"]
MANIFEST = "generic-kuberouter"


def block(i):
    """In the range of a Node's spec, of which nobody makes use."""
    return f"10.244.{i - 1}.64/26"


def given(i):
    """The range of a node that its annotation names."""
    return f"10.245.{i}.0/24"


ENFORCED = 120  # seconds in which a policy has to be in force on all nodes
STATUS = f"{cluster.INSTALLED}/kube-router-node-status.yaml"
AGENT = ("-n", "kube-system", "-l", f"k8s-app={NAME}-node")


def affinity(i):
    """What says that a block is a node's, which is so from the first pod there on."""
    spec = {"node": f"node{i}", "cidr": block(i), "state": "confirmed"}
    return {"apiVersion": f"{GROUP}/v1", "kind": "BlockAffinity", "metadata": {"name": f"node{i}"}, "spec": spec}


def its_daemonset():
    pod = {"hostNetwork": True, "terminationGracePeriodSeconds": 1, "automountServiceAccountToken": False, "tolerations": [{"operator": "Exists"}],
           "containers": [newcomer.container("calico-node", "exec sleep 1000000")]}
    labels = {"k8s-app": f"{NAME}-node"}
    return {"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": f"{NAME}-node", "namespace": "kube-system"},
            "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": pod}}}


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
    conf, network, ranges_of_all = CONF, "pairs", (CIDR,)

    def __init__(self):
        super().__init__(NAME)

    def tests(self):
        every = [self.nodes_have_calico, self.requests_go_on, self.nodes_get_ranges_outside_of_the_pool, self.kube_proxy_gets_a_range_of_both, self.agents_start_beside_it,
                 self.its_daemonset_leaves_out_nodes_of_ours, self.node_after_node_gets_our_network,
                 self.calico_goes, self.a_policy_is_enforced, self.a_policy_admits_pods_by_their_labels_through_the_service, self.node_after_node_gets_calico_back, self.agents_go_and_leave_nothing]
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
        self.has_calico = set(self.nodes(bed))
        newcomer.put_what_kubeadm_leaves(bed, POOL)
        self.put_objects(bed, its_daemonset())
        bed.apply(*map(affinity, self.nodes(bed)))
        for i in self.nodes(bed):
            bed.on(i, f"mkdir -p /opt/cni/bin; cd {net.CNI}; cp ptp {PLUGINS} /opt/cni/bin/")
            self.put_kernel_state(bed, i)
            self.put_files(bed, i)
        bed.kube_proxy(True)
        bed.wait("nodes are ready", lambda: len(ready_nodes(bed)) == bed.nodes)

    def put_objects(self, bed, daemonset):
        bed.apply(definition("IPPool", "ippools"), definition("BlockAffinity", "blockaffinities"))
        bed.wait("its kinds are known", lambda: "blockaffinities" in bed.kubectl("api-resources", f"--api-group={GROUP}"), 60)
        bed.apply({"apiVersion": f"{GROUP}/v1", "kind": "IPPool", "metadata": {"name": "default-ipv4-ippool"},
                   "spec": {"cidr": POOL, "blockSize": 26, "ipipMode": "Never", "natOutgoing": True}}, daemonset)

    def put_files(self, bed, i):
        plugin = {"type": "ptp", "ipMasq": False, "mtu": 1450, "ipam": {"type": "host-local", "subnet": block(i), "routes": [{"dst": "0.0.0.0/0"}]}}
        bed.put(i, CONF, json.dumps({"cniVersion": "0.3.1", "name": "k8s-pod-network", "plugins": [plugin, {"type": "portmap", "capabilities": {"portMappings": True}}]}))
        bed.put(i, KUBECONFIG, "{}")

    def put_kernel_state(self, bed, i):
        chains = ["iptables -N cali-FORWARD", "iptables -I FORWARD -j cali-FORWARD", f"iptables -A cali-FORWARD -s {POOL} -j ACCEPT", f"iptables -A cali-FORWARD -d {POOL} -j ACCEPT",
                  "ipset create cali40masq-ipam-pools hash:net", f"ipset add cali40masq-ipam-pools {POOL}", "iptables -t nat -N cali-nat-outgoing",
                  "iptables -t nat -I POSTROUTING -j cali-nat-outgoing",
                  "iptables -t nat -A cali-nat-outgoing -m set --match-set cali40masq-ipam-pools src -m set ! --match-set cali40masq-ipam-pools dst -j MASQUERADE"]
        bed.on(i, "; ".join([self.routes(bed, i), *chains]))

    def routes(self, bed, i):
        others = (f"ip route replace {block(j)} via {self.address(bed, j)} proto bird" for j in self.has_calico if j != i)
        return "; ".join(["set -e", f"ip route replace blackhole {block(i)} proto bird", *others])

    def blocks(self, bed):
        """By the numbers of their nodes, as the page asks for them."""
        listed = bed.kubectl("get", f"blockaffinities.{GROUP}", "--no-headers", "-o", "custom-columns=NODE:.spec.node,RANGE:.spec.cidr")
        return {int(name.removeprefix("node")): of for name, of in (line.split() for line in listed.splitlines())}

    def nodes_of_its_pods(self, bed):
        return {int(pod["spec"]["nodeName"].removeprefix("node")) for pod in bed.get("pods", *AGENT)["items"]}

    # ------------------------------------------------------------------ the steps

    def nodes_get_ranges_outside_of_the_pool(self, bed):
        """Those of their specs lie in it, which the page's command shows, and what takes their place, too."""
        pools = bed.kubectl("get", f"ippools.{GROUP}", "-o", "yaml")
        that(POOL in pools, pools)
        for i in self.nodes(bed):
            bed.shell(page.giving_a_range(f"node{i}", given(i)))
        said = bed.shell(page.ranges_of_nodes())
        found = [re.search(rf"^node{i} +\[10\.244\.\d+\.0/24[^\]]*\] +{re.escape(given(i))}$", said, flags=re.M) for i in self.nodes(bed)]
        that(all(found), said)

    def kube_proxy_gets_a_range_of_both(self, bed):
        """By the page's command for its ConfigMap; that it starts anew is the bed's to do. Nothing reads the ConfigMap here: what it has is what kube-proxy starts with."""
        self.read_by_kube_proxy(bed, POOL)
        bed.shell(page.widening(WIDER))
        self.read_by_kube_proxy(bed, WIDER)
        bed.kube_proxy_anew(WIDER)
        self.no_request_failed(bed)

    def read_by_kube_proxy(self, bed, cidr):
        data = bed.get("configmap", "kube-proxy", "-n", "kube-system")["data"]
        that(re.findall(r"^clusterCIDR: (.*)$", data["config.conf"], flags=re.M) == [cidr] and "kubeconfig.conf" in data, data)

    def agents_start_beside_it(self, bed):
        bed.kubectl("apply", "-f", STATUS)
        super().agents_start_beside_it(bed)
        for i in self.nodes(bed):
            conf = json.loads(bed.on(i, f"cat {moves.OURS}"))
            subnets = re.findall(r'"subnet": "([^"]+)"', json.dumps(conf))
            that(subnets == [given(i)], f"pods of node {i} would be in", subnets)
            routes = bed.on(i, f"ip route show root {CIDR} proto 17").split()
            that([one for one in routes if "/" in one] == [given(j) for j in self.nodes(bed) if j != i], f"node {i} has routes to pods of", routes)
            that("proto 17" not in bed.on(i, f"ip route show root {POOL}"), "node", i, "has a route of its agent into Calico's pool")

    def a_policy_admits_pods_by_their_labels_through_the_service(self, bed):
        """A pod of each node with the label is answered by the Service each time, by pods of both nodes, and one without it never is: kube-proxy masquerades none of them. One
        that came with the address of its node would be refused by pods of the other node."""
        names = ("friend", "stranger")
        for i in self.nodes(bed):
            bed.apply(*({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"{name}{i}", "labels": {"app": name}}, "spec": {
                "nodeName": f"node{i}", "terminationGracePeriodSeconds": 1, "automountServiceAccountToken": False, "containers": [newcomer.container("client", "exec sleep 1000000")]}} for name in names))
        bed.wait("clients are ready", lambda: all(len(ready_pods(bed, "-l", f"app={name}")) == bed.nodes for name in names))
        at = {pod["metadata"]["name"]: pod["status"]["podIP"] for pod in bed.get("pods")["items"]}
        that(all(at[f"{name}{i}"].startswith(given(i).rpartition(".")[0] + ".") for name in names for i in self.nodes(bed)), at)
        self.each_node_has_a_pod_of_the_service(bed)
        spaces = {f"{name}{i}": newcomer.space_of(bed, i, at[f"{name}{i}"]) for name in names for i in self.nodes(bed)}
        # As many in a row as reach every pod of the Service by chance; who is refused is told so once in a second (`icmp_ratelimit`).
        counts = {name: (10 if name.startswith("friend") else 4) * self.pods for name in spaces}
        ask = f"for n in $(seq {{}}); do curl -s -m 5 -o /dev/null http://{newcomer.web_address(bed)}/name && echo ok || echo refused; done"

        def said(who=""):
            return {name: set(bed.on(int(name[-1]), f"nsenter --net=/run/netns/{space} sh -c '{ask.format(counts[name])}'; true", timeout=600).split()) for name, space in spaces.items() if name.startswith(who)}
        bed.apply({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "friends"}, "spec": {
            "podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"], "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "friend"}}}]}]}})
        own.wait(lambda: all(words == {"refused"} for words in said("stranger").values()), ENFORCED, 1)
        answers = said()
        that(all(words == {"ok" if name.startswith("friend") else "refused"} for name, words in answers.items()), "under the policy, with and without the label:", answers)
        own.say(f"  requests, by pod: {counts}; answered with the label, refused without it")
        bed.kubectl("delete", "networkpolicy", "friends")
        bed.kubectl("delete", "pod", *spaces)
        bed.wait("pods reach pods", lambda: self.hosts_are_answered(bed), 300)
        self.forget_requests(bed)

    def each_node_has_a_pod_of_the_service(self, bed):
        """Wherever the scheduler has put them."""
        names = {f"node{i}" for i in self.nodes(bed)}

        def places():
            return {pod["spec"]["nodeName"] for pod in ready_pods(bed, "-l", "app=web")}
        for name in sorted(names - places()):
            bed.kubectl("cordon", *sorted(names - {name}))
            bed.kubectl("delete", "pod", ready_pods(bed, "-l", "app=web")[0]["metadata"]["name"])
            bed.wait("a pod of the Service is there", lambda name=name: name in places())
            bed.kubectl("uncordon", *sorted(names - {name}))
        self.pods_are_ready(bed)
        that(places() == names, "pods of the Service are on", places())

    def its_daemonset_leaves_out_nodes_of_ours(self, bed):
        for command in page.leaving_out("calico-node"):
            bed.shell(command)
        that(self.nodes_of_its_pods(bed) == set(self.nodes(bed)), "its pods are on", self.nodes_of_its_pods(bed))
        self.no_request_failed(bed)

    def node_after_node_gets_our_network(self, bed):
        def commands(i):
            bed.kubectl("label", "node", f"node{i}", "sluice=yes")
            bed.wait("Calico's pod of the node is gone", lambda: i not in self.nodes_of_its_pods(bed), 300)
            self.its_program_ends(bed, i)
            bed.on(i, f"rm {CONF} {KUBECONFIG}")
            bed.reboot(i)  # behind which the DaemonSet's pod is made anew, too
            self.has_calico.discard(i)
            for j in self.has_calico:  # as BIRD does
                bed.on(j, f"ip route delete {block(i)}")
            bed.wait("the agent is ready", lambda: any(pod["spec"]["nodeName"] == f"node{i}" for pod in ready_pods(bed, *AGENTS)))
            bed.wait("its network counts as there", lambda: not unavailable(bed, i), 300)
            bed.wait("its routes are there", lambda: "proto 17" in bed.on(i, f"ip route show root {CIDR}"), 300)
            that("cali" not in bed.on(i, "iptables-save; ipset list -n"), "a reboot left something of Calico's")
            for j, block_of in self.blocks(bed).items():
                if j in self.has_calico:
                    bed.on(i, f"ip route add {block_of} via {self.address(bed, j)}")
            self.ask_for_ever(bed, i)
        self.each_node(bed, commands, self.network, "kube-bridge")

    def its_program_ends(self, bed, i):
        """What calico-node does last: its Node has no network, as far as the scheduler knows."""
        self.put_condition(bed, i, {"status": "True", "reason": "CalicoIsDown", "message": "Calico is shutting down on this node"})

    def its_program_starts(self, bed, i):
        self.put_condition(bed, i, {"status": "False", "reason": "CalicoIsUp", "message": "Calico is running on this node"})
        self.put_kernel_state(bed, i)

    def put_condition(self, bed, i, condition):
        condition["type"] = "NetworkUnavailable"
        bed.kubectl("patch", "node", f"node{i}", "--subresource=status", "--type=strategic", "-p", json.dumps({"status": {"conditions": [condition]}}))

    def calico_goes(self, bed):
        bed.kubectl("-n", "kube-system", "delete", "daemonset", f"{NAME}-node")
        bed.kubectl("delete", "crd", f"ippools.{GROUP}", f"blockaffinities.{GROUP}")
        for i in self.nodes(bed):
            for j in self.nodes(bed):
                bed.on(i, f"ip route delete {block(j)} 2>/dev/null; true")
            left = bed.on(i, f"ip route show root {POOL}; iptables-save | grep cali; ls /etc/cni/net.d | grep -v kuberouter; true")
            that(not left.strip(), f"left of Calico on node {i}:", left)
        self.all_reach_all(bed, {i: "kube-bridge" for i in self.nodes(bed)})
        self.no_request_failed(bed)

    def node_after_node_gets_calico_back(self, bed):
        """Its DaemonSet comes with what leaves out nodes of ours, which all of them are at first; agents stay beside it until all are through."""
        patch, _ = page.leaving_out("calico-node")
        leaves_out = json.loads(re.search(r"'([^']+)'", patch)[1])["spec"]["template"]["spec"]
        daemonset = its_daemonset()
        daemonset["spec"]["template"]["spec"].update(leaves_out)
        self.put_objects(bed, daemonset)

        def commands(i):
            bed.kubectl("label", "node", f"node{i}", "sluice-")
            bed.wait("Calico's pod of the node is ready", lambda: any(pod["spec"]["nodeName"] == f"node{i}" for pod in ready_pods(bed, *AGENT)))
            that(self.nodes_of_its_pods(bed) == {*self.has_calico, i}, "its pods are on", self.nodes_of_its_pods(bed))
            self.put_files(bed, i)
            bed.reboot(i)
            self.has_calico.add(i)
            bed.wait("Calico's pod of the node runs again", lambda: any(pod["spec"]["nodeName"] == f"node{i}" for pod in ready_pods(bed, *AGENT)))
            self.its_program_starts(bed, i)
            bed.apply(affinity(i))
            for j in self.has_calico - {i}:  # as BIRD does
                bed.on(j, self.routes(bed, j))
            for j in set(self.nodes(bed)) - self.has_calico:
                bed.on(j, f"ip route add {self.blocks(bed)[i]} via {self.address(bed, i)}")
            bed.wait("the agent's routes are there", lambda: "proto 17" in bed.on(i, f"ip route show root {CIDR}"), 300)
            self.ask_for_ever(bed, i)
        self.each_node(bed, commands, "kube-bridge", self.network)

    def its_network_takes_over(self, bed, i):
        """Calico's routes were there all the while."""

    def agents_go_and_leave_nothing(self, bed):
        for i in self.nodes(bed):
            static = [line for line in bed.on(i, f"ip route show root {POOL}").splitlines() if "bird" not in line and " dev veth" not in line]
            that(not static, "routes that an administrator made are left on node", i, static)
        bed.kubectl("delete", "-f", STATUS)
        super().agents_go_and_leave_nothing(bed)
