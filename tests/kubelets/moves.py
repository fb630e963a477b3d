"""A move from flannel to Sluice's pod network and back, step by step as docs/migration.md has it, while requests go on on every node. kube-proxy stays, in one of its modes; or
Services move too, from it and back to it.

There is no flannel here: nodes have what it makes in kernel and files (flannel.py), and what deletes its pods leaves that as it is. Pods answer for some seconds when they are told to end, as
servers behind a Service do. Each node has a pod of a DaemonSet, too, which a drain leaves where it is, and the last one a static pod with a port of the node. In a guest that node boots at its turn.
With the value `ipv6=true` of the chart pods have both families, and with `extraArgs[0]=--overlay-type=full` all packets between nodes are in tunnels of the agents.
"""
import datetime
import json
import os
import re
import time

from labkit import cluster, net, own

import asks
import flannel
import health_checks
import integrators
import newcomer
import page
import static_pods
from asks import judged, slowest
from newcomer import AGENTS, condition, container, in_url, ready_nodes, ready_pods, that, web_address, web_addresses
from theirs import OTHERS, PLUGINS

OURS = integrators.CONFLIST
LOG = "/var/lib/kubelet/requests"
STRICT = "sysctl -qw net.ipv4.conf.all.rp_filter=1"  # as by default on Red Hat's systems
# What kube-proxy has in a kernel, in any of its modes; prints nothing where it has nothing.
KUBE_PROXYS = ("for p in iptables ip6tables; do for f in nft legacy; do $p-$f-save 2>/dev/null | grep -E '^(:|-A) ?KUBE-(SERVICES|NODE-?PORT|SVC|SVL|SEP|EXT|FW|XLB|MARK-MASQ|FORWARD|PROXY|SOURCE-RANGES|IPVS|POSTROUTING|LOAD)'; "
               "done; done; nft list tables | grep -w kube-proxy; ipset list -n 2>/dev/null | grep ^KUBE- | grep -vE '^KUBE-(SRC|DST)-'; ip -br link show kube-ipvs0 2>/dev/null; true")
# Prints something where kube-proxy serves the Service, by its mode.
SERVED = {"iptables": "iptables-save -t nat | grep -- '-A KUBE-SERVICES -d {address}/32'; true", "nftables": "nft list map ip kube-proxy service-ips 2>/dev/null | grep -F '{address} '; true",
          "ipvs": "ip -4 -o addr show dev kube-ipvs0 2>/dev/null | grep -F ' {address}/32'; true"}
# For how many seconds after its first rules kube-proxy may make requests fail in its mode nftables, in which it empties IPVS first: it writes one Service after the other. What
# fails for that reason fails within so many of the first one that does, on each node.
STARTS, REFUSES = 30, 10
# How fast pods are probed and asked, by the place of the nodes: all of a guest's have one emulated processor. Seconds.
PACE = {"native": {"probe": {"periodSeconds": 1}, "more pods": 2, "patience": 5, "pause": 0.2},
        "guest": {"probe": {"periodSeconds": 5, "timeoutSeconds": 10, "failureThreshold": 10}, "more pods": 1, "patience": 20, "pause": 1}}


def length(lines):
    """From the beginning of the first one of these that failed to that of the last one: seconds."""
    times = sorted(datetime.datetime.fromisoformat(line.partition(" ")[0]) for line in lines)
    return (times[-1] - times[0]).total_seconds() if times else 0


def beyond(failed, spans):
    """Of requests that failed, by who asked, those that did not begin in the span of times of who asked."""
    return {who: [line for line in lines if who not in spans or not spans[who][0] <= line.partition(" ")[0] <= spans[who][1]] for who, lines in failed.items()}


def addresses_of(pods):
    return sorted(one["ip"] for pod in pods for one in pod["status"]["podIPs"])


def in_family(command, cidr):
    """A command of the page for IPv4, by which the same is done for the family of this range."""
    return command.replace("ip r", "ip -6 r") if ":" in cidr else command


class Move:
    """`kind`: how flannel's nodes reach each other. `serves`: Services move too."""
    # Of the network that is left: its CNI file, and what its pods are on.
    conf, network = OTHERS, "cni0"
    # The ranges of all nodes that pods of agents have, IPv4 first.
    ranges_of_all = net.POD_RANGES

    def __init__(self, kind, serves=False):
        # `static`: the number of the node with the static pod, while there is one.
        self.kind, self.serves, self.static = kind, serves, None

    def tests(self):
        every = [self.nodes_have_flannel, self.requests_go_on, *([self.health_checks_are_kube_proxys] if self.serves else []), self.external_addresses_are_listed, self.its_daemonset_leaves_out_nodes_of_ours, self.agents_start_beside_it, *([self.kube_proxy_goes] if self.serves else []), self.node_after_node_gets_our_network,
                 self.flannel_goes, *([self.agents_need_nothing_of_kube_proxys] if self.serves else []), self.a_policy_is_enforced, self.node_after_node_gets_flannels_network_back, *([self.kube_proxy_comes_back] if self.serves else []),
                 self.agents_go_and_leave_nothing, self.its_daemonset_has_all_nodes_again]
        return [(f"{self.kind}: {test.__name__}", test) for test in every]

    def nodes(self, bed):
        return range(1, bed.nodes + 1)

    def cidrs(self, bed):
        """The ranges of all nodes, of the families that pods have here."""
        return self.ranges_of_all[:1 + bed.has_ipv6]

    def routes_to_pods(self, bed, i, kind=""):
        """A line for each route of the agent of a node to pods of others; of one kind alone, where it is named."""
        return bed.on(i, "; ".join(f"ip -{6 if ':' in one else 4} route show root {one} proto 17 {kind and f'type {kind}'}" for one in self.cidrs(bed))).splitlines()

    def has_tunnels(self, bed):
        return any(value.endswith("--overlay-type=full") for value in bed.values)

    # ------------------------------------------------------------------ flannel

    def nodes_have_flannel(self, bed):
        newcomer.nodes_wait_for_a_network(bed)
        newcomer.put_what_kubeadm_leaves(bed)
        ranges = {node["metadata"]["name"]: node["spec"]["podCIDRs"] for node in bed.get("nodes")["items"]}
        self.flannel = flannel.Network(self.kind, {i: sorted(ranges[f"node{i}"], key=lambda one: ":" in one)[:1 + bed.has_ipv6] for i in self.nodes(bed)})
        bed.apply(*flannel.daemonset())
        for i in self.nodes(bed):
            bed.on(i, f"{STRICT}; mkdir -p /opt/cni/bin; cd {net.CNI}; cp {PLUGINS} /opt/cni/bin/")
            bed.on(i, self.flannel.start(i))
            bed.put(i, OTHERS, self.flannel.conf(i))
        bed.kube_proxy(True)
        bed.wait("nodes are ready", lambda: len(ready_nodes(bed)) == bed.nodes)
        self.static = bed.nodes
        static_pods.put(bed, self.static)

    # ------------------------------------------------------------------ traffic

    def requests_go_on(self, bed):
        pod = {"metadata": {"labels": {"app": "web"}}, "spec": {
            "terminationGracePeriodSeconds": newcomer.GRACE[bed.kind], "automountServiceAccountToken": False,
            "containers": [container("web", 'echo "$NAME" > /www/name; nc -ll -p 9000 -e cat & exec httpd -f -p 8080 -h /www',
                                     env=[{"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
                                     readinessProbe={"httpGet": {"path": "/name", "port": 8080}, **PACE[bed.kind]["probe"]},
                                     lifecycle=newcomer.goes_on_for_a_while(bed))]}}
        self.pods = bed.nodes + PACE[bed.kind]["more pods"]
        newcomer.put_one_pod_on_each_node(bed, PACE[bed.kind]["probe"])
        bed.apply(
            {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
             "spec": {"replicas": self.pods, "selector": {"matchLabels": {"app": "web"}}, "template": pod}}, newcomer.BUDGET,
            {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": {"type": "NodePort", "ipFamilyPolicy": "PreferDualStack" if bed.has_ipv6 else "SingleStack", "selector": {"app": "web"}, "ports": [
                {"name": "web", "port": 80, "targetPort": 8080, "nodePort": 30080}, {"name": "echo", "port": 9000, "targetPort": 9000}]}})
        that(len(web_addresses(bed)) == 1 + bed.has_ipv6, "the Service has", web_addresses(bed))
        self.all_reach_all(bed, {i: self.network for i in self.nodes(bed)})
        for i in self.nodes(bed):
            self.ask_for_ever(bed, i)
        self.no_request_failed(bed)

    def ask_for_ever(self, bed, i):
        """Requests of a node to the Service, to one of its addresses after the other, until it ends. One that failed says when it began."""
        # From other ports than those of a while ago (asks.py).
        ask = f"curl -sS --local-port $((20000 + n))-$((20009 + n)) -m {PACE[bed.kind]['patience']} -o /dev/null -w %{{time_total}} $one 2>&1"
        every = " ".join(f"http://{in_url(one)}/name" for one in web_addresses(bed))
        once = f"for one in {every}; do n=$(((n + 1) % 20000)); at=$(date +%FT%T); if said=$({ask}); then echo $at ok $said; else echo $at $said; fi; done"
        loop = f"touch {LOG}.begun; n=0; while :; do {once}; sleep {PACE[bed.kind]['pause']}; done >> {LOG} 2>&1"
        # What has not begun a session of its own ends with the command. The log may be there from before a reboot.
        bed.on(i, f"rm -f {LOG}.begun; setsid sh -c '{loop}' < /dev/null > /dev/null 2>&1 & until test -e {LOG}.begun; do sleep 0.1; done")

    def links_of_pods(self, bed, i, network):
        """The links of pods on a node that are on a bridge."""
        return bed.on(i, f"ls /sys/class/net/{network}/brif 2>/dev/null; true").split()

    def no_request_failed(self, bed, spans=None):
        """Since the test before, but for those that began in the span of their node (`while_kube_proxy_starts`), where there are any."""
        for i in self.nodes(bed):
            before = len(bed.on(i, f"cat {LOG} 2>/dev/null; true").splitlines())
            bed.wait(f"requests of node {i} go on", lambda i=i, n=before: len(bed.on(i, f"cat {LOG}; true").splitlines()) > n + 10, 300)
        outcomes = {i: [judged(line, newcomer.LATEST[bed.kind]) for line in bed.on(i, f"cat {LOG}; : > {LOG}").splitlines()] for i in self.nodes(bed)}
        failed = {i: [one for one, _ in found if one != "ok"] for i, found in outcomes.items()}
        own.say(f"  {sum(map(len, outcomes.values()))} requests, failed: {failed}, the slowest answer of each node after seconds: {({i: slowest(found) for i, found in outcomes.items()})}")
        self.fail_within_seconds(failed if spans else {})
        failed = beyond(failed, spans or {})
        for i in [i for i, lines in failed.items() if lines]:
            # As it is behind them; pods and Events say what was before.
            own.say(f"node {i}:\n" + bed.on(i, "ip route; ipvsadm -Ln; ipvsadm -Lnc | head -40; curl -s -m 5 http://127.0.0.1:20244/readyz; date +%FT%T; true"))
        that(not any(failed.values()), "failed requests, by node:", failed, "\n" + bed.state() if any(failed.values()) else "")

    def fail_within_seconds(self, failed):
        """Where requests may fail, those of who asked that did fail began within some seconds. What was answered late was not refused."""
        refused = {who: [line for line in lines if asks.LATE not in line] for who, lines in failed.items()}
        long = {who: lines for who, lines in refused.items() if length(lines) > REFUSES}
        that(not long, f"failed for more than {REFUSES} s:", long)

    def pods_are_ready(self, bed):
        bed.wait("pods are ready", lambda: len(ready_pods(bed, "-l", "app=web")) == self.pods and len(bed.get("pods", "-l", "app=web")["items"]) == self.pods)
        bed.wait("the DaemonSet's pod of each node is ready", lambda: newcomer.pods_of_each_node(bed))

    def all_reach_all(self, bed, bridges):
        """Nodes and pods reach each pod by its address and all by the Service. `bridges`: where the pods of each node are."""
        self.pods_are_ready(bed)
        pods = [*ready_pods(bed, "-l", "app=web"), *newcomer.pods_of_each_node(bed), *([static_pods.pod(bed, self.static)] if self.static else [])]
        addresses = addresses_of(pods)
        that(len(addresses) == len(pods) * len(self.cidrs(bed)), len(pods), "pods have", addresses)
        for i in self.nodes(bed):
            mine = [pod for pod in pods if pod["spec"]["nodeName"] == f"node{i}"]
            ports = self.links_of_pods(bed, i, bridges[i])
            that(len(ports) == len(mine), "node", i, "has", len(mine), "pods, and on", bridges[i], ports)
            ask = "; ".join(f"curl -s -m 5 -o /dev/null http://{one} || echo {one}" for one in [*(f"{in_url(address)}:8080/name" for address in addresses), *(f"{in_url(address)}/name" for address in web_addresses(bed))])
            for space in [None, *bed.on(i, "ls /run/netns").split()]:
                script = f"nsenter --net=/run/netns/{space} sh -c '{ask}'" if space else ask
                silent = bed.on(i, f"{script}; true").split()
                that(not silent, f"node {i}, {space or 'itself'}, does not reach", silent, "\n" + bed.on(i, "ip route; ip -6 route; ip -br addr"))

    def start_asking(self, bed):
        """On each node, from the host and from one of its pods; by IPv6 where pods have it, by IPv4 from the host."""
        self.asking = {}
        for i in self.nodes(bed):
            self.ask(bed, i, "host")
            self.ask(bed, i, "pod", bed.on(i, "ls /run/netns").split()[0])
        self.asked(bed)

    def ask(self, bed, i, who, space=None):
        """Begins requests of a node, or of one of its network namespaces, and a connection that is kept (`asks.py`)."""
        log = f"/var/lib/kubelet/asked-by-{who}"
        newcomer.start_asking(bed, i, space, (web_addresses(bed)[-1 if who == "pod" else 0], log, PACE[bed.kind]["pause"], "kept"))
        self.asking[i, who] = log

    def asked(self, bed):
        """Lines of each who asks, when there are some more: `ok` and `kept` of what was answered in time."""
        found, self.slowest = {}, {}
        for (i, who), log in self.asking.items():
            before = len(bed.on(i, f"cat {log} 2>/dev/null; true").splitlines())
            bed.wait(f"node {i}, {who}: requests go on", lambda i=i, log=log, n=before: len(bed.on(i, f"cat {log} 2>/dev/null; true").splitlines()) > n + 20, 300)
            lines = [judged(line, newcomer.LATEST[bed.kind]) for line in bed.on(i, f"cat {log}").splitlines()]
            found[i, who] = [line for line, _ in lines]
            self.slowest[f"node {i}, {who}"] = slowest(lines)
        return found

    def asked_until_now(self, bed):
        """Ends them. Lines of each who asked, when there are some more."""
        found = self.asked(bed)
        for (i, _), log in self.asking.items():
            bed.on(i, f": > {log}.end")
        return found

    def end_asking(self, bed):
        """What failed, by who asked."""
        found = self.asked_until_now(bed)
        failed = {who: [line for line in lines if line not in ("ok", "kept")] for who, lines in found.items()}
        own.say(f"  {sum(lines.count('ok') for lines in found.values())} requests and {sum(lines.count('kept') for lines in found.values())} answers by connections that were kept, "
                f"failed: {failed}, the slowest answer after seconds: {self.slowest}")
        that(all(lines.count("ok") > 10 and lines.count("kept") > 10 for lines in found.values()), "nobody was asked:", found)
        return failed

    def agent(self, bed, i, *words):
        """What a command in the agent's container of a node prints."""
        pod, = [pod["metadata"]["name"] for pod in bed.get("pods", *AGENTS)["items"] if pod["spec"]["nodeName"] == f"node{i}"]
        return bed.kubectl("-n", "kube-system", "exec", pod, "-c", "kube-router", "--", *words)

    # ------------------------------------------------------------------ the steps

    def health_checks_are_kube_proxys(self, bed):
        health_checks.put(bed)
        health_checks.are_kube_proxys(bed)

    def external_addresses_are_listed(self, bed):
        """The page's command names those of both kinds, each of which wants a flag of its own."""
        bed.apply({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "outside"}, "spec": {"type": "LoadBalancer", "externalIPs": ["198.51.100.7"], "ports": [{"port": 80}]}})
        bed.kubectl("patch", "service", "outside", "--subresource=status", "--type=merge", "-p", json.dumps({"status": {"loadBalancer": {"ingress": [{"ip": "198.51.100.8"}, {"ip": "198.51.100.9"}]}}}))
        line, = [line for line in bed.shell(page.external_addresses()).splitlines() if " outside " in line]
        that(re.fullmatch(r"default +outside +\S*198\.51\.100\.7\S* +198\.51\.100\.8,198\.51\.100\.9 *", line), line)
        bed.kubectl("delete", "service", "outside")

    def its_daemonset_leaves_out_nodes_of_ours(self, bed):
        """Its pods are made anew by the patch, before any agent is there, and keep to nodes of Linux."""
        self.sources_are_filtered_loosely(bed)
        bed.wait("its pods are ready", lambda: len(ready_pods(bed, *flannel.PODS)) == bed.nodes)
        before = {pod["metadata"]["name"] for pod in bed.get("pods", *flannel.PODS)["items"]}
        for command in page.leaving_out("kube-flannel-ds"):
            bed.shell(command)
        pods = ready_pods(bed, *flannel.PODS)
        that(len(pods) == bed.nodes and not before & {pod["metadata"]["name"] for pod in pods}, "its pods were", before, "and are", [pod["metadata"]["name"] for pod in pods])
        affinity = json.dumps(bed.get("daemonset", "kube-flannel-ds", "-n", "kube-flannel")["spec"]["template"]["spec"]["affinity"])
        that("kubernetes.io/os" in affinity and "NotIn" in affinity, affinity)
        self.no_request_failed(bed)

    def sources_are_filtered_loosely(self, bed):
        for i in self.nodes(bed):
            bed.on(i, page.loosening_the_filter_of_sources())
            that(bed.on(i, "sysctl -n net.ipv4.conf.all.rp_filter").strip() == "2", "node", i, "filters sources strictly")

    def agents_start_beside_it(self, bed):
        bed.kubectl("apply", "--validate=strict", "-f", bed.manifest())

        def says_why(i):
            return f"{os.path.basename(self.conf)} sorts before it" in bed.on(i, "curl -s -m 5 http://127.0.0.1:20244/readyz; true")
        for i in self.nodes(bed):
            bed.wait(f"the agent of node {i} says that another network's file is in front of its own", lambda i=i: says_why(i), 300)
            bed.wait("its routes are there", lambda i=i: len(self.routes_to_pods(bed, i)) == len(self.cidrs(bed)) * (bed.nodes - 1), 300)
            own.say(f"  node {i}: " + " | ".join(self.routes_to_pods(bed, i)))
            that(all((" dev tun-" in line or " dev sluice" in line) == self.has_tunnels(bed) for line in self.routes_to_pods(bed, i)), "tunnels, or none, where they should not be")
        if self.serves:
            health_checks.agents_say_that_it_is_in_use(bed)
        self.all_reach_all(bed, {i: self.network for i in self.nodes(bed)})
        self.no_request_failed(bed)

    def have_taken(self, bed):
        """Whether both lines are there for every node, with the words that the page asks for."""
        try:
            said = bed.shell(page.taken())
        except own.LabError:  # an agent says neither line yet
            return False
        return all(re.search(rf"^node{i}: .*complete$\nservice proxy: ready; in sync .*IPVS services [1-9]", said, flags=re.M) for i in self.nodes(bed))

    def kube_proxy_goes(self, bed):
        """Its process on all nodes, as when a DaemonSet is deleted; then, node by node, what it has left. Who is connected stays so."""
        bed.wait("every agent's service proxy is in sync", lambda: self.have_taken(bed), 300)
        for i in self.nodes(bed):
            # In its mode ipvs kube-proxy has virtual services, too; the route is the agent's.
            that(web_address(bed) in bed.on(i, "ip route show table local dev kube-dummy-if 2>/dev/null; true"), "node", i, "has no route to the Service")
            that(f"{web_address(bed)}:80 rr" in bed.on(i, "ipvsadm -Ln"), "node", i, "has no virtual service")
        self.start_asking(bed)
        health_checks.begin_asking(bed)
        bed.kube_proxy_ends()
        for i in self.nodes(bed):
            that(bed.on(i, KUBE_PROXYS).strip(), "kube-proxy had nothing on node", i)
            self.agent(bed, i, "sluice", "--cleanup-kube-proxy")
            left = bed.on(i, KUBE_PROXYS).split("\n")
            that(not any(left), f"of kube-proxy is left on node {i}:", left)
            own.say("  " + self.agent(bed, i, "sluice", "audit").strip().replace("\n", "; "))
            served = bed.on(i, "ipvsadm -Ln")
            that(all(f"{one} rr" in served for one in (f"{web_address(bed)}:80", f"{web_address(bed)}:9000")), served)
        failed = self.end_asking(bed)
        that(not any(failed.values()), "failed:", failed)
        health_checks.are_the_agents(bed)
        self.all_reach_all(bed, {i: "cni0" for i in self.nodes(bed)})
        self.no_request_failed(bed)

    def kube_proxy_comes_back(self, bed):
        """While agents serve. In its mode nftables it empties IPVS when it starts: requests of its first seconds may fail, and no later ones."""
        self.start_asking(bed)
        bed.kube_proxy(True)
        spans = {}
        for i in self.nodes(bed):
            bed.wait(f"kube-proxy of node {i} serves", lambda i=i: bed.on(i, SERVED[bed.proxy_mode].format(address=web_address(bed))).strip(), 300)
            if bed.proxy_mode == "nftables":
                spans[i] = self.while_kube_proxy_starts(bed, i)
        if spans:
            time.sleep(2 * STARTS)  # so that some are asked behind it
        failed = self.end_asking(bed)
        self.fail_within_seconds(failed if spans else {})
        late = beyond(failed, {(i, who): span for i, span in spans.items() for who in ("host", "pod")})
        that(not any(late.values()), "failed:", late, "and might have in", spans)
        self.no_request_failed(bed, spans)

    def while_kube_proxy_starts(self, bed, i):
        """Between which times requests of a node began that its start may have met: the first one that was on its way, and some behind the moment, which is this
        one, at which it serves."""
        first = f"$(($(stat -c %Y {net.RUN}/n{i}/kube-proxy.pid) - {asks.PATIENCE}))"
        return bed.on(i, f"for at in {first} $(($(date +%s) + {STARTS})); do date -d @$at +%FT%T; done").split()

    def each_node(self, bed, commands, former, later):
        """Pods leave a node, its network is another one, and pods come back. That of the DaemonSet stays until the commands make it anew, and so does a static one."""
        bridges = {i: former for i in self.nodes(bed)}
        for i in self.nodes(bed):
            bed.kubectl("drain", f"node{i}", "--ignore-daemonsets", "--delete-emptydir-data", newcomer.DRAINS)
            bed.wait("no pod is there but the DaemonSet's and a static one", lambda i=i: len(self.links_of_pods(bed, i, former)) == 1 + (i == self.static), 300)
            commands(i)
            bed.kubectl("uncordon", f"node{i}")
            bridges[i] = later
            bed.wait("the node is ready", lambda: len(ready_nodes(bed)) == bed.nodes)
            # Some pods of nodes that are not through yet, or are through already, come to this one.
            bed.wait("pods are ready", lambda: len(ready_pods(bed, "-l", "app=web")) == self.pods)
            for pod in ready_pods(bed, "-l", "app=web")[:bed.nodes]:
                bed.kubectl("delete", "pod", pod["metadata"]["name"])
            self.all_reach_all(bed, bridges)
            that(any(pod["spec"]["nodeName"] == f"node{i}" for pod in ready_pods(bed, "-l", "app=web")), "no pod came to node", i)
            self.no_request_failed(bed)

    def node_after_node_gets_our_network(self, bed):
        """Its agent is ready from then on."""
        def commands(i):
            bed.shell(page.labelling(f"node{i}"))
            bed.wait("flannel's pod of the node is gone", lambda: f"node{i}" not in {pod["spec"]["nodeName"] for pod in bed.get("pods", *flannel.PODS)["items"]}, 300)
            bed.on(i, f"test -e {OURS}")
            if i != self.static:
                bed.on(i, f"set -e; rm {OTHERS}; ip link delete cni0")
                bed.shell(page.making_anew(f"node{i}"))
                return
            if bed.kind == "guest":
                bed.on(i, f"rm {OTHERS}")
                self.boots(bed, i)
            else:
                crictl = cluster.other(cluster.CRICTL)
                bed.kubelet(i, False)
                bed.on(i, f"PATH={os.path.dirname(crictl)}:$PATH; export CONTAINER_RUNTIME_ENDPOINT=unix:///run/containerd/containerd.sock; " + page.ending_pods_by_the_runtime())
                left = bed.on(i, "ip -br link show type veth | grep -v ^eth0; true").strip()
                that(not left, "pods have links:", left)
                bed.kubelet(i, True)
            static_pods.answers(bed, i)
        self.each_node(bed, commands, "cni0", "kube-bridge")
        bed.wait("agents are ready", lambda: len(ready_pods(bed, *AGENTS)) == bed.nodes)

    def boots(self, bed, i):
        """With a kernel that filters sources strictly again; the requests of the node begin once more."""
        bed.reboot(i)
        bed.on(i, STRICT)
        bed.wait("the agent runs again", lambda: bed.on(i, "curl -s -m 5 http://127.0.0.1:20244/healthz; true").strip(), 300)
        bed.wait("its routes are there again", lambda: len(self.routes_to_pods(bed, i)) == len(self.cidrs(bed)) * (bed.nodes - 1), 300)
        bed.wait("the Service answers the node", lambda: all(bed.on(i, f"curl -s -m 5 http://{in_url(one)}/name; true").startswith("web-") for one in web_addresses(bed)), 300)
        self.ask_for_ever(bed, i)

    def flannel_goes(self, bed):
        bed.kubectl("-n", "kube-flannel", "delete", "daemonset", "kube-flannel-ds")
        for i in self.nodes(bed):
            bed.on(i, page.leftovers_of_flannel())
            left = bed.on(i, "iptables-save | grep -i flannel; ip6tables-save | grep -i flannel; nft list tables | grep flannel; ip -br link | grep flannel; true").strip()
            that(not left, f"of flannel is left on node {i}:", left)
        self.all_reach_all(bed, {i: "kube-bridge" for i in self.nodes(bed)})
        self.no_request_failed(bed)

    def agents_need_nothing_of_kube_proxys(self, bed):
        """They read a ConfigMap of their own, and kubeadm's goes, as where its next upgrade is to leave kube-proxy out."""
        bed.shell(page.own_kubeconfig())
        bed.kubectl("-n", "kube-system", "rollout", "status", "daemonset/kube-router", "--timeout=900s")
        bed.kubectl("-n", "kube-system", "delete", "configmap", "kube-proxy")
        bed.kubectl("-n", "kube-system", "rollout", "restart", "daemonset/kube-router")
        bed.kubectl("-n", "kube-system", "rollout", "status", "daemonset/kube-router", "--timeout=900s")
        read = [volume["configMap"]["name"] for pod in ready_pods(bed, *AGENTS) for volume in pod["spec"]["volumes"] if volume["name"] == "kubeconfig"]
        that(read == ["kube-router-kubeconfig"] * bed.nodes, "agents read", read)
        self.all_reach_all(bed, {i: "kube-bridge" for i in self.nodes(bed)})
        self.no_request_failed(bed)

    def a_policy_is_enforced(self, bed):
        """A node reaches its own pods, as probes come from there, and not those of others: requests may fail."""
        policy = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "closed"}, "spec": {"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"]}}
        bed.apply(policy)
        pods = ready_pods(bed, "-l", "app=web")

        def said(seconds):
            """What pods are told by those of other nodes, with so much patience."""
            found = set()
            for i in self.nodes(bed):
                others = addresses_of(pod for pod in pods if pod["spec"]["nodeName"] != f"node{i}")
                for space in bed.on(i, "ls /run/netns").split():
                    found.update(*(bed.on(i, f"nsenter --net=/run/netns/{space} curl -s -m {seconds} -o /dev/null http://{in_url(one)}:8080/name && echo answered || echo silent").split() for one in others))
            return found
        bed.wait("pods do not reach pods", lambda: said(2) == {"silent"}, 300)
        bed.kubectl("delete", "networkpolicy", "closed")
        # One node is told before another is, and one pod before another.
        bed.wait("pods reach pods", lambda: said(5) == {"answered"}, 300)
        bed.wait("the Service answers every node", lambda: self.hosts_are_answered(bed), 300)
        self.forget_requests(bed)

    def hosts_are_answered(self, bed):
        """Whether the Service answers each request of each node, of many, as it does once a policy is gone everywhere."""
        said = [newcomer.answers(bed, i, f"{web_address(bed)}:80", 4 * self.pods) for i in self.nodes(bed)]
        return all(len(words) == 4 * self.pods and newcomer.FAILED not in words for words in said)

    def forget_requests(self, bed):
        """What has been asked until now may have failed, also what is on its way, which is written down later."""
        for i in self.nodes(bed):
            before = len(bed.on(i, f"cat {LOG}").splitlines())
            bed.wait(f"the request of node {i} that was on its way is over", lambda i=i, n=before: len(bed.on(i, f"cat {LOG}").splitlines()) > n, 60)
            bed.on(i, f": > {LOG}")

    def node_after_node_gets_flannels_network_back(self, bed):
        """The way back: a node has flannel's pod from its turn on, and agents go when no pod has their network any more."""
        bed.shell(page.taking_labels("flannel"))
        bed.apply(*flannel.daemonset({"flannel": "yes"}))
        if self.static and bed.kind == "native":  # where no node boots, nothing ends a static pod before flannel's file is there
            static_pods.take(bed, self.static)
            self.static = None

        def commands(i):
            that(f"node{i}" not in flannel.nodes_of_pods(bed), "flannel's pod is there too early")
            bed.kubectl("label", "node", f"node{i}", "flannel=yes")
            bed.wait("flannel's pod of the node runs", lambda: f"node{i}" in flannel.nodes_of_pods(bed), 300)
            # What its daemon does when its pod has come there.
            bed.on(i, self.flannel.start(i))
            bed.put(i, OTHERS, self.flannel.conf(i))
            if i == self.static:
                self.boots(bed, i)
                bed.wait("flannel's pod of the node runs again", lambda: f"node{i}" in flannel.nodes_of_pods(bed), 300)
                bed.on(i, self.flannel.start(i))
                static_pods.answers(bed, i)
                return
            bed.on(i, "ip link delete kube-bridge")
            bed.shell(page.making_anew_with_an_old_server(f"node{i}"))
        self.each_node(bed, commands, "kube-bridge", "cni0")
        self.sources_are_filtered_loosely(bed)  # which a boot undoes

    def its_network_takes_over(self, bed, i):
        """Before the removal on a node. Flannel's pod begins anew, and puts routes in the place of others where they are not equal; where they are, or it cannot, or tunnels would be left in
        use, the administrator has commands."""
        of_ipv6 = [one for one in self.cidrs(bed) if ":" in one and self.kind == "flannel-vxlan"]
        for one in of_ipv6:
            bed.on(i, page.leading_to_gateways(one))
        flannel.pod_begins_anew(bed, i)
        if self.kind == "flannel-vxlan" or self.has_tunnels(bed):
            bed.on(i, self.flannel.routes(i))
        if self.kind == "flannel-vxlan" or self.has_tunnels(bed):
            # What the page waits for.
            that(not self.routes_to_pods(bed, i, "unicast"), "flannel has not put its routes in the place of", self.routes_to_pods(bed, i))
        for one in of_ipv6:
            bed.on(i, page.leading_no_more_to_gateways(one))
            left = bed.on(i, f"ip -6 route show root {one} proto static; true").strip()
            that(not left, "routes of the administrator are left:", left)
        if self.kind == "flannel-host-gw":
            for one in self.cidrs(bed):
                bed.on(i, in_family(page.handing_routes(one), one))
        for one in self.cidrs(bed) if self.has_tunnels(bed) else ():
            bed.on(i, in_family(page.leaving_tunnels(), one))

    def agents_go_and_leave_nothing(self, bed):
        bed.kubectl("delete", "-f", bed.manifest())
        bed.wait("agents are gone", lambda: not bed.get("pods", *AGENTS)["items"])
        if self.serves:
            # As the page has it with a DaemonSet: one that runs does not try to listen again where nothing changes.
            bed.kube_proxy_begins_anew()
            health_checks.are_kube_proxys(bed)
        for i in self.nodes(bed) if self.has_tunnels(bed) else ():
            tunnelled = [line for line in self.routes_to_pods(bed, i) if " dev tun-" in line or " dev sluice" in line]
            that(len(tunnelled) == len(self.cidrs(bed)) * (bed.nodes - 1), "the agent of node", i, "had no tunnels:", self.routes_to_pods(bed, i))
        for i in self.nodes(bed) if self.has_tunnels(bed) else ():
            self.its_network_takes_over(bed, i)
        for i in self.nodes(bed):
            if not self.has_tunnels(bed):
                self.its_network_takes_over(bed, i)
            bed.on(i, page.removal(bed.ctr()))
            left = bed.on(i, "nft list tables | grep sluice; ip -br link | grep -E 'kube-(bridge|dummy)'; ls -A /etc/cni/net.d | grep kuberouter; ls -A /var/lib/sluice /run/sluice | grep -v :$; "
                             "ls -A /opt/cni/bin | grep sluice; ip -br link | grep -E '^(tun-|sluice)'; ip rule | grep -E 'lookup 77( |$)'; ip -6 rule | grep -E 'lookup 77( |$)'; true").split("\n") + self.routes_to_pods(bed, i)
            that(not any(left), f"left on node {i}:", left)
        self.all_reach_all(bed, {i: self.network for i in self.nodes(bed)})
        self.no_request_failed(bed)
        that(all(condition(node, "Ready") for node in bed.get("nodes")["items"]), "nodes are not ready")

    def its_daemonset_has_all_nodes_again(self, bed):
        """As before the move, and nothing is left that would decide about its pods at the next one."""
        bed.apply(*flannel.daemonset())
        bed.kubectl("-n", "kube-flannel", "rollout", "status", "daemonset/kube-flannel-ds", "--timeout=900s")
        for name in ("flannel", "sluice"):
            bed.shell(page.taking_labels(name))
        labels = {label for node in bed.get("nodes")["items"] for label in node["metadata"]["labels"]}
        that(not labels & {"flannel", "sluice"}, "nodes have", labels)
        that(flannel.nodes_of_pods(bed) == {f"node{i}" for i in self.nodes(bed)}, "flannel's pods are on", flannel.nodes_of_pods(bed))
        self.all_reach_all(bed, {i: self.network for i in self.nodes(bed)})
        self.no_request_failed(bed)
