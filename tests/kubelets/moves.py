"""A move from flannel to Sluice's pod network and back, step by step as docs/migration.md has it, while requests go on on every node. kube-proxy stays, in one of its modes; or
Services move too, from it and back to it.

There is no flannel here: nodes have what it makes in kernel and files, and what deletes its pods leaves that as it is. Pods answer for some seconds when they are told to end, as
servers behind a Service do. Each node has a pod of a DaemonSet, too, which a drain leaves where it is.
"""
import datetime
import json
import os
import re
import time

from labkit import net, own

import asks
import integrators
import newcomer
import page
from asks import judged, slowest
from newcomer import AGENTS, condition, container, ready_nodes, ready_pods, that, web_address
from theirs import OTHERS, PLUGINS

KINDS = ("flannel-vxlan", "flannel-host-gw")
OURS = integrators.CONFLIST
MASQUERADE = ["-N FLANNEL-POSTRTG", "-A POSTROUTING -m comment --comment 'flanneld masq' -j FLANNEL-POSTRTG",
              "-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -j RETURN", "-A FLANNEL-POSTRTG -s {mine} -d {all} -j RETURN", "-A FLANNEL-POSTRTG -s {all} -d {mine} -j RETURN",
              "-A FLANNEL-POSTRTG ! -s {all} -d {mine} -j RETURN", "-A FLANNEL-POSTRTG -s {all} ! -d 224.0.0.0/4 -j MASQUERADE --random-fully",
              "-A FLANNEL-POSTRTG ! -s {all} -d {all} -j MASQUERADE --random-fully"]
FORWARDED = ["-N FLANNEL-FWD", "-A FORWARD -m comment --comment 'flanneld forward' -j FLANNEL-FWD", "-A FLANNEL-FWD -s {all} -m comment --comment 'flanneld forward' -j ACCEPT",
             "-A FLANNEL-FWD -d {all} -m comment --comment 'flanneld forward' -j ACCEPT"]
LOG = "/var/lib/kubelet/requests"
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


FLANNELS = ("-n", "kube-flannel", "-l", "app=flannel")  # its pods


def flannels_daemonset(chosen=None):
    """As its file has it, with pods that do nothing, on nodes with the labels of `chosen`."""
    linux = {"key": "kubernetes.io/os", "operator": "In", "values": ["linux"]}
    pod = {"hostNetwork": True, "terminationGracePeriodSeconds": 1, "automountServiceAccountToken": False, "tolerations": [{"operator": "Exists", "effect": "NoSchedule"}],
           "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": [linux]}]}}},
           "containers": [container("kube-flannel", "exec sleep 1000000")], **({"nodeSelector": chosen} if chosen else {})}
    labels = {"app": "flannel", "tier": "node"}
    return [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kube-flannel"}},
            {"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "kube-flannel-ds", "namespace": "kube-flannel"},
             "spec": {"selector": {"matchLabels": {"app": "flannel"}}, "template": {"metadata": {"labels": labels}, "spec": pod}}}]


class Move:
    """`kind`: how flannel's nodes reach each other. `serves`: Services move too."""
    # Of the network that is left: its CNI file, and what its pods are on.
    conf, network = OTHERS, "cni0"
    # The range of all nodes that pods of agents have.
    cidr = net.POD_RANGES[0]

    def __init__(self, kind, serves=False):
        self.kind, self.serves = kind, serves

    def tests(self):
        every = [self.nodes_have_flannel, self.requests_go_on, self.external_addresses_are_listed, self.its_daemonset_leaves_out_nodes_of_ours, self.agents_start_beside_it, *([self.kube_proxy_goes] if self.serves else []), self.node_after_node_gets_our_network,
                 self.flannel_goes, *([self.agents_need_nothing_of_kube_proxys] if self.serves else []), self.a_policy_is_enforced, self.node_after_node_gets_flannels_network_back, *([self.kube_proxy_comes_back] if self.serves else []),
                 self.agents_go_and_leave_nothing, self.its_daemonset_has_all_nodes_again]
        return [(f"{self.kind}: {test.__name__}", test) for test in every]

    def nodes(self, bed):
        return range(1, bed.nodes + 1)

    # ------------------------------------------------------------------ flannel

    def nodes_have_flannel(self, bed):
        newcomer.nodes_wait_for_a_network(bed)
        newcomer.put_what_kubeadm_leaves(bed)
        ranges = {node["metadata"]["name"]: node["spec"]["podCIDRs"] for node in bed.get("nodes")["items"]}
        self.ranges = {i: next(one for one in ranges[f"node{i}"] if ":" not in one) for i in self.nodes(bed)}
        bed.apply(*flannels_daemonset())
        for i in self.nodes(bed):
            # As by default on Red Hat's systems.
            bed.on(i, f"sysctl -qw net.ipv4.conf.all.rp_filter=1; mkdir -p /opt/cni/bin; cd {net.CNI}; cp {PLUGINS} /opt/cni/bin/")
            self.put_flannel(bed, i)
            self.put_conf(bed, i)
        bed.kube_proxy(True)
        bed.wait("nodes are ready", lambda: len(ready_nodes(bed)) == bed.nodes)

    def put_conf(self, bed, i):
        bridge = {"type": "bridge", "bridge": "cni0", "mtu": 1450, "isDefaultGateway": True, "hairpinMode": True, "ipMasq": False,
                  "ipam": {"type": "host-local", "subnet": self.ranges[i], "dataDir": "/var/lib/cni/flannel", "routes": [{"dst": net.POD_RANGES[0]}]}}
        bed.put(i, OTHERS, json.dumps({"cniVersion": "0.3.1", "name": "cbr0", "plugins": [bridge, {"type": "portmap", "capabilities": {"portMappings": True}}]}))

    def put_flannel(self, bed, i):
        """What its daemon makes when it starts."""
        plan = net.Plan(bed.nodes, 0, 1, True)
        lines = [f"iptables -t {table} {rule.format(mine=self.ranges[i], all=net.POD_RANGES[0])}" for table, rules in (("nat", MASQUERADE), ("filter", FORWARDED)) for rule in rules]
        # As with `EnableNFTables`, so that what takes such tables away has one to take.
        lines += ["nft add table ip6 flannel-ipv6"]
        if self.kind == "flannel-vxlan":
            lines += [f"ip link add flannel.1 type vxlan id 1 local {plan.addresses(i)[0]} dev eth0 dstport 8472 nolearning", f"ip link set flannel.1 address {self.mac(i)}",
                      f"ip addr add {self.gateway(i)}/32 dev flannel.1", "ip link set flannel.1 up"]
        bed.on(i, "set -e; " + "; ".join(lines))
        self.put_routes(bed, i)

    def put_routes(self, bed, i):
        bed.on(i, self.routes(bed, i))

    def routes(self, bed, i):
        """A script with what it looks after."""
        plan, lines = net.Plan(bed.nodes, 0, 1, True), ["set -e"]
        for j in self.nodes(bed):
            if j == i:
                continue
            if self.kind == "flannel-vxlan":
                lines += [f"bridge fdb replace {self.mac(j)} dev flannel.1 dst {plan.addresses(j)[0]}", f"ip neigh replace {self.gateway(j)} lladdr {self.mac(j)} dev flannel.1 nud permanent",
                          f"ip route replace {self.ranges[j]} via {self.gateway(j)} dev flannel.1 onlink"]
            else:
                lines += [f"ip route replace {self.ranges[j]} via {plan.addresses(j)[0]}"]
        return "; ".join(lines)

    def mac(self, i):
        return f"02:00:00:00:01:{i:02x}"

    def gateway(self, i):
        return self.ranges[i].partition("/")[0]

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
            {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": {"type": "NodePort", "selector": {"app": "web"}, "ports": [
                {"name": "web", "port": 80, "targetPort": 8080, "nodePort": 30080}, {"name": "echo", "port": 9000, "targetPort": 9000}]}})
        self.all_reach_all(bed, {i: self.network for i in self.nodes(bed)})
        for i in self.nodes(bed):
            self.ask_for_ever(bed, i)
        self.no_request_failed(bed)

    def ask_for_ever(self, bed, i):
        """Requests of a node to the Service, one after the other, until it ends. One that failed says when it began."""
        ask = f"curl -sS -m {PACE[bed.kind]['patience']} -o /dev/null -w %{{time_total}} http://{web_address(bed)}/name 2>&1"
        loop = f"touch {LOG}.begun; while :; do at=$(date +%FT%T); if said=$({ask}); then echo $at ok $said; else echo $at $said; fi; sleep {PACE[bed.kind]['pause']}; done >> {LOG} 2>&1"
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
        pods = [*ready_pods(bed, "-l", "app=web"), *newcomer.pods_of_each_node(bed)]
        addresses = sorted(pod["status"]["podIP"] for pod in pods)
        for i in self.nodes(bed):
            mine = [pod for pod in pods if pod["spec"]["nodeName"] == f"node{i}"]
            ports = self.links_of_pods(bed, i, bridges[i])
            that(len(ports) == len(mine), "node", i, "has", len(mine), "pods, and on", bridges[i], ports)
            ask = "; ".join(f"curl -s -m 5 -o /dev/null http://{one} || echo {one}" for one in [*(f"{address}:8080/name" for address in addresses), f"{web_address(bed)}/name"])
            for space in [None, *bed.on(i, "ls /run/netns").split()]:
                script = f"nsenter --net=/run/netns/{space} sh -c '{ask}'" if space else ask
                silent = bed.on(i, f"{script}; true").split()
                that(not silent, f"node {i}, {space or 'itself'}, does not reach", silent, "\n" + bed.on(i, "ip route; ip -br addr"))

    def start_asking(self, bed):
        """On each node, from the host and from one of its pods."""
        self.asking = {}
        for i in self.nodes(bed):
            self.ask(bed, i, "host")
            self.ask(bed, i, "pod", bed.on(i, "ls /run/netns").split()[0])
        self.asked(bed)

    def ask(self, bed, i, who, space=None):
        """Begins requests of a node, or of one of its network namespaces, and a connection that is kept (`asks.py`)."""
        log = f"/var/lib/kubelet/asked-by-{who}"
        newcomer.start_asking(bed, i, space, (web_address(bed), log, PACE[bed.kind]["pause"], "kept"))
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
        bed.wait("its pods are ready", lambda: len(ready_pods(bed, *FLANNELS)) == bed.nodes)
        before = {pod["metadata"]["name"] for pod in bed.get("pods", *FLANNELS)["items"]}
        for command in page.leaving_out("kube-flannel-ds"):
            bed.shell(command)
        pods = ready_pods(bed, *FLANNELS)
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
            bed.wait("its routes are there", lambda i=i: "proto 17" in bed.on(i, f"ip route show root {self.cidr}"), 300)
            own.say(f"  node {i}: " + " | ".join(bed.on(i, f"ip route show root {self.cidr}").splitlines()))
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
        """Pods leave a node, its network is another one, and pods come back. That of the DaemonSet stays until the commands make it anew."""
        bridges = {i: former for i in self.nodes(bed)}
        for i in self.nodes(bed):
            bed.kubectl("drain", f"node{i}", "--ignore-daemonsets", "--delete-emptydir-data", newcomer.DRAINS)
            bed.wait("no pod is there but the DaemonSet's", lambda i=i: len(self.links_of_pods(bed, i, former)) == 1, 300)
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
            bed.wait("flannel's pod of the node is gone", lambda: f"node{i}" not in {pod["spec"]["nodeName"] for pod in bed.get("pods", *FLANNELS)["items"]}, 300)
            bed.on(i, f"set -e; test -e {OURS}; rm {OTHERS}; ip link delete cni0")
            bed.shell(page.making_anew(f"node{i}"))
        self.each_node(bed, commands, "cni0", "kube-bridge")
        bed.wait("agents are ready", lambda: len(ready_pods(bed, *AGENTS)) == bed.nodes)

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
                others = [pod["status"]["podIP"] for pod in pods if pod["spec"]["nodeName"] != f"node{i}"]
                for space in bed.on(i, "ls /run/netns").split():
                    found.update(*(bed.on(i, f"nsenter --net=/run/netns/{space} curl -s -m {seconds} -o /dev/null http://{one}:8080/name && echo answered || echo silent").split() for one in others))
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
        bed.apply(*flannels_daemonset({"flannel": "yes"}))

        def commands(i):
            that(f"node{i}" not in self.nodes_of_flannel(bed), "flannel's pod is there too early")
            bed.kubectl("label", "node", f"node{i}", "flannel=yes")
            bed.wait("flannel's pod of the node runs", lambda: f"node{i}" in self.nodes_of_flannel(bed), 300)
            # What its daemon does when its pod has come there.
            self.put_flannel(bed, i)
            self.put_conf(bed, i)
            bed.on(i, "ip link delete kube-bridge")
            bed.shell(page.making_anew_with_an_old_server(f"node{i}"))
        self.each_node(bed, commands, "kube-bridge", "cni0")
        self.sources_are_filtered_loosely(bed)  # which a boot undoes

    def nodes_of_flannel(self, bed):
        return {pod["spec"]["nodeName"] for pod in ready_pods(bed, *FLANNELS)}

    def flannel_begins_anew(self, bed, i):
        """Its pod of a node."""
        pod, = [pod["metadata"]["name"] for pod in ready_pods(bed, *FLANNELS) if pod["spec"]["nodeName"] == f"node{i}"]
        bed.kubectl("-n", "kube-flannel", "delete", "pod", pod)
        bed.wait("flannel's pod of the node runs again", lambda: f"node{i}" in self.nodes_of_flannel(bed), 300)

    def before_removal(self, bed, i):
        """Makes flannel's pod of the node anew; a script with what its daemon does then, where it puts routes in the place of the agents'; where it does not, the administrator does."""
        self.flannel_begins_anew(bed, i)
        return self.routes(bed, i) if self.kind == "flannel-vxlan" else page.handing_routes(self.cidr)

    def agents_go_and_leave_nothing(self, bed):
        bed.kubectl("delete", "-f", bed.manifest())
        bed.wait("agents are gone", lambda: not bed.get("pods", *AGENTS)["items"])
        for i in self.nodes(bed):
            bed.on(i, self.before_removal(bed, i))
            bed.on(i, page.removal(bed.ctr()))
            left = bed.on(i, "nft list tables | grep sluice; ip -br link | grep -E 'kube-(bridge|dummy)'; ls -A /etc/cni/net.d | grep kuberouter; ls -A /var/lib/sluice /run/sluice | grep -v :$; "
                             f"ls -A /opt/cni/bin | grep sluice; ip route show root {self.cidr} | grep 'proto 17'; true").split("\n")
            that(not any(left), f"left on node {i}:", left)
        self.all_reach_all(bed, {i: self.network for i in self.nodes(bed)})
        self.no_request_failed(bed)
        that(all(condition(node, "Ready") for node in bed.get("nodes")["items"]), "nodes are not ready")

    def its_daemonset_has_all_nodes_again(self, bed):
        """As before the move, and nothing is left that would decide about its pods at the next one."""
        bed.apply(*flannels_daemonset())
        bed.kubectl("-n", "kube-flannel", "rollout", "status", "daemonset/kube-flannel-ds", "--timeout=900s")
        for name in ("flannel", "sluice"):
            bed.shell(page.taking_labels(name))
        labels = {label for node in bed.get("nodes")["items"] for label in node["metadata"]["labels"]}
        that(not labels & {"flannel", "sluice"}, "nodes have", labels)
        that(self.nodes_of_flannel(bed) == {f"node{i}" for i in self.nodes(bed)}, "flannel's pods are on", self.nodes_of_flannel(bed))
        self.all_reach_all(bed, {i: self.network for i in self.nodes(bed)})
        self.no_request_failed(bed)
