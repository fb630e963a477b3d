"""What others apply (`integrators.py`), with our image, one after the other on nodes that are as a new host each time: their agents become Ready by their probes, pods
get addresses and answer, Services are served by whom the integrator has for that, a policy holds, nobody is asked again and again for what is not allowed, and nothing stays. With several
nodes, pods of all of them reach each other, where they have their network from the agents.
"""
import base64
import collections
import functools
import json
import os
import re
import subprocess
import time

from labkit import cluster, image, net, own

import bed as beds
import integrators
import newcomer
import page
from newcomer import condition, ready_nodes, ready_pods, that

PLUGINS = "bridge host-local loopback portmap"
# As flannel leaves it: another bridge, and a name before kube-router's.
OTHERS = "/etc/cni/net.d/10-flannel.conflist"
KUBE_ROUTERS = "docker.io/cloudnativelabs/kube-router:v2.11.0"
MINUTE = 60
# Most requests without a right, and most warnings, of one agent in a minute that begins when everything has been asked for once.
MOST_REFUSED, MOST_WARNINGS = 8, 2
# Of pods whose nodes have one emulated processor.
SLOW = {"periodSeconds": 5, "timeoutSeconds": 10, "failureThreshold": 10}
# Of agents, where there are more nodes.
SLOWER = {"periodSeconds": 30, "timeoutSeconds": 25, "failureThreshold": 5}
COMPLAINS = re.compile(r" (stderr|stdout) F ([WE]\d{4}.*)")


class Theirs:
    def __init__(self, name, nodes):
        self.name = name
        # Those of kube-router, and that of kops, are applied as they are, with its image, which no node has, and moved as the page says.
        is_upstreams = name.startswith("upstream-")
        self.moves = is_upstreams or name == "kops"
        self.made = integrators.RENDERINGS[name](KUBE_ROUTERS if self.moves else f"sluice:{image.version()}")
        agent = self.made.daemonset()
        if nodes > 1:
            # All nodes have one emulated processor: a probe that starts three programs each few seconds, as the chart's does, would have it for itself.
            container = agent["spec"]["template"]["spec"]["containers"][0]
            container.update({kind: {**container[kind], **SLOWER} for kind in ("livenessProbe", "readinessProbe") if kind in container})
        if is_upstreams:
            pod = agent["spec"]["template"]["spec"]
            for container in [*pod["initContainers"], *pod["containers"]]:
                container["imagePullPolicy"] = "Always"
        self.labels = agent["spec"]["selector"]["matchLabels"]
        self.has_failed = False
        # Of daemonset/, where it can be applied as it is.
        file = os.path.join(cluster.INSTALLED, f"{name.removeprefix('upstream-')}.yaml")
        self.ours = file if name.startswith("upstream-kubeadm-") and os.path.exists(file) else None
        self.enforces = any(flag.lower() == "--run-firewall=true" for flag in self.made.flags())
        self.joins_nodes = nodes > 1 and not self.made.network_of_others
        self.asks_for_neighbours = "gobgp neighbor" in json.dumps(agent["spec"]["template"]["spec"]["containers"][0].get("readinessProbe", {}))

    def tests(self):
        every = [self.the_host_is_prepared, self.its_agents_become_ready, self.pods_get_addresses_and_pass_their_probes, self.a_service_answers,
                 *([self.pods_of_all_nodes_reach_each_other] if self.joins_nodes else []), *([self.a_policy_closes_the_pods] if self.enforces else []), self.nobody_is_asked_again_and_again,
                 *([self.neighbours_are_there_and_a_restart_comes_through] if self.joins_nodes and self.asks_for_neighbours else []),
                 *([self.our_file_of_the_same_name_takes_its_place] if self.ours else []), self.the_removal_leaves_nothing]
        return [(f"{self.name}: {test.__name__}", functools.partial(self.go, test)) for test in every]

    def go(self, test, bed):
        """Each test needs those before it, but for the removal, which makes room for the next integrator."""
        that(not self.has_failed or test == self.the_removal_leaves_nothing, "not run: one before it has failed")
        self.has_failed = True
        test(bed)
        self.has_failed = False

    def agents(self, bed):
        chosen = ",".join(f"{key}={value}" for key, value in self.labels.items())
        return bed.get("pods", "-n", integrators.NAMESPACE, "-l", chosen)["items"]

    def ranges(self, bed):
        """Of IPv4, by the nodes' numbers."""
        found = {node["metadata"]["name"]: node["spec"]["podCIDRs"] for node in bed.get("nodes")["items"]}
        return {i: next(one for one in found[f"node{i}"] if ":" not in one) for i in range(1, bed.nodes + 1)}

    # ------------------------------------------------------------------ the tests

    def the_host_is_prepared(self, bed):
        """A kubelet that waits for a network, or has another's; files and plugins that the integrator brings; kube-proxy where it has no proxy."""
        bed.wait("kubelets register", lambda: len(bed.get("nodes")["items"]) == bed.nodes)
        newcomer.put_what_kubeadm_leaves(bed)
        words = {"%AUTHORITY%": bed.cluster["authority"]}
        if any("%KEY%" in text for text in self.made.files.values()):
            words["%CERTIFICATE%"], words["%KEY%"] = cluster.certificate(beds.NAME, integrators.USER)
        ranges = self.ranges(bed)
        for i, mine in ranges.items():
            for path, text in self.made.files.items():
                for word, pem in words.items():
                    text = text.replace(word, base64.b64encode(pem.encode()).decode())
                bed.put(i, path, text.replace("%RANGE%", mine))
            if self.made.has_plugins or self.made.network_of_others:
                bed.on(i, f"mkdir -p /opt/cni/bin; cd {net.CNI}; cp {PLUGINS} /opt/cni/bin/")
            if self.made.network_of_others:
                bridge = {"type": "bridge", "bridge": "cni0", "isDefaultGateway": True, "hairpinMode": True, "ipam": {"type": "host-local", "subnet": mine}}
                bed.put(i, OTHERS, json.dumps({"cniVersion": "0.3.1", "name": "cbr0", "plugins": [bridge, {"type": "portmap", "capabilities": {"portMappings": True}}]}))
                bed.on(i, "; ".join(["true", *(f"ip route replace {of} via {address(bed, j)}" for j, of in ranges.items() if j != i)]))
        bed.kube_proxy(not self.made.serves_services())

    def its_agents_become_ready(self, bed):
        self.before = len(bed.refused())
        if self.made.first_conf:
            bed.wait("nodes are ready at first", lambda: len(ready_nodes(bed)) == bed.nodes)
        bed.apply(*self.made.objects)
        if self.moves:
            has_init = bool(self.made.daemonset()["spec"]["template"]["spec"]["initContainers"])
            bed.shell(page.setting_image() if self.name == "kops" else page.patching(has_init))
        if self.made.first_conf:
            bed.wait("agents have nodes", lambda: len([pod for pod in self.agents(bed) if pod["spec"].get("nodeName")]) == bed.nodes)
            for i in range(1, bed.nodes + 1):
                bed.on(i, f"rm {self.made.first_conf}")

        def all_are():
            found = [pod for pod in self.agents(bed) if condition(pod, "Ready")]
            return len(found) == bed.nodes
        bed.wait("agents are ready", all_are)
        self.since = time.monotonic()
        bed.wait("nodes are ready", lambda: len(ready_nodes(bed)) == bed.nodes)
        for i in range(1, bed.nodes + 1):
            names = bed.on(i, "ls /etc/cni/net.d").split()
            that("10-flannel.conflist" in names if self.made.network_of_others else names == [os.path.basename(self.made.conf)], "CNI files of node", i, names)

    def pods_get_addresses_and_pass_their_probes(self, bed):
        newcomer.pods_get_addresses_and_pass_their_probes(bed)

    def a_service_answers(self, bed):
        newcomer.a_service_answers_on_every_node_and_its_node_port(bed)

    def pods_of_all_nodes_reach_each_other(self, bed):
        """Each pod asks each pod, and the kubelet of each node."""
        newcomer.put_one_pod_on_each_node(bed, SLOW)
        bed.wait("each node has a pod", lambda: newcomer.pods_of_each_node(bed))
        pods = [pod["status"]["podIP"] for pod in [*newcomer.pods_of_each_node(bed), *ready_pods(bed, "-l", "app=web")]]
        asked = [*(f"http://{one}:8080/name" for one in pods), *(f"https://{address(bed, i)}:10250/healthz/ping" for i in range(1, bed.nodes + 1))]
        ask = "; ".join(f"curl -s -k -f -m 20 -o /dev/null {one} || echo {one}" for one in asked)
        asking = 0
        for i in range(1, bed.nodes + 1):
            for space in bed.on(i, "ls /run/netns").split():
                silent = bed.on(i, f"nsenter --net=/run/netns/{space} sh -c '{ask}'; true", timeout=60 + 20 * len(asked)).split()
                that(not silent, f"a pod of node {i} does not reach", silent, "\n" + bed.on(i, "ip route; ip -br addr"))
                asking += 1
        that(asking == len(pods), "of", len(pods), "pods", asking, "have asked")
        own.say(f"  {asking} pods on {bed.nodes} nodes reached {len(asked)} pods and nodes each")
        bed.kubectl("delete", "daemonset", newcomer.EACH)

    def established(self, bed):
        """The neighbours of each agent by its own client, which the probe asks, too: for each of its pods the lines that say so."""
        names = [pod["metadata"]["name"] for pod in self.agents(bed) if condition(pod, "Ready")]
        said = {name: bed.kubectl("-n", integrators.NAMESPACE, "exec", name, "-c", integrators.NAME, "--", "/usr/local/bin/gobgp", "neighbor").splitlines() for name in names}
        return {name: [line for line in lines if "Establ" in line] for name, lines in said.items()}

    def neighbours_are_there_and_a_restart_comes_through(self, bed):
        """A probe that wants all neighbours established has something to see here: it takes its own agent out while another one starts."""
        def have_neighbours():
            found = self.established(bed)
            return len(found) == bed.nodes and all(len(lines) == bed.nodes - 1 for lines in found.values())
        bed.wait("agents have all their neighbours", have_neighbours, 300)
        for name, lines in self.established(bed).items():
            own.say(f"  {name}: {lines}")
        before = {pod["metadata"]["name"] for pod in self.agents(bed)}
        bed.kubectl("-n", integrators.NAMESPACE, "rollout", "restart", f"daemonset/{integrators.NAME}")
        bed.kubectl("-n", integrators.NAMESPACE, "rollout", "status", f"daemonset/{integrators.NAME}", "--timeout=900s")
        that(not before & {pod["metadata"]["name"] for pod in self.agents(bed)}, "agents of before are there:", before)
        bed.wait("agents have all their neighbours again", have_neighbours, 300)
        that(all(pod["status"]["containerStatuses"][0]["restartCount"] == 0 for pod in self.agents(bed)), "an agent was started again")
        self.a_service_answers(bed)

    def a_policy_closes_the_pods(self, bed):
        newcomer.a_policy_closes_the_pods(bed)

    def complaints(self, bed):
        lines = [line for i in range(1, bed.nodes + 1) for line in bed.on(i, "cat /var/log/pods/kube-system_kube-router*/kube-router/*.log").splitlines()]
        return [found[2] for found in map(COMPLAINS.search, lines) if found]

    def nobody_is_asked_again_and_again(self, bed):
        """Whoever has no right is told so, and goes on; probes have passed all the time."""
        began = bed.refused()[self.before:]
        time.sleep(max(0.0, MINUTE - (time.monotonic() - self.since)))
        refused, said = len(bed.refused()), collections.Counter(self.complaints(bed))
        time.sleep(MINUTE)
        later, complaints = bed.refused()[refused:], self.complaints(bed)
        own.say(f"  refused: {counted(began)} at first, then in a minute {counted(later)}")
        for line in complaints:
            own.say(f"  {line[:300]}")
        # One that starts again asks for everything once more.
        for pod in self.agents(bed):
            status = pod["status"]["containerStatuses"][0]
            about = bed.get("events", "-n", integrators.NAMESPACE, "--field-selector", f"involvedObject.name={pod['metadata']['name']}")["items"]
            events = [f"{event.get('count', 1)} {event['reason']}: {event['message']}" for event in about]
            that(status["restartCount"] == 0 and condition(pod, "Ready"), "restarted, or not ready:", json.dumps(status), *events)
        that(len(later) <= MOST_REFUSED * bed.nodes, "refused in a minute:", counted(later))
        since = list((collections.Counter(complaints) - said).elements())
        that(len(since) <= MOST_WARNINGS * bed.nodes, "in the log in a minute:\n" + "\n".join(since))

    def our_file_of_the_same_name_takes_its_place(self, bed):
        """The step of docs/migration.md behind another image: pods stay, and the agents have the rights that they lacked. Those of the allocator, which kube-router's file gives, are there
        before and behind it by a file of their own, and would not be without that."""
        that(self.may_allocate(bed) == {"yes"}, "kube-router's file does not let agents allocate:", self.may_allocate(bed))
        bed.shell(page.rights_of_the_allocator())
        before = {pod["metadata"]["name"] for pod in self.agents(bed)}
        pods = {pod["metadata"]["uid"] for pod in ready_pods(bed, "-l", "app=web")}
        bed.kubectl("apply", "--validate=strict", "-f", self.ours)

        def are_others():
            found = [pod["metadata"]["name"] for pod in self.agents(bed) if condition(pod, "Ready")]
            return len(found) == bed.nodes and not before & set(found)
        bed.wait("agents of our file are ready", are_others)
        self.a_service_answers(bed)
        that(pods == {pod["metadata"]["uid"] for pod in ready_pods(bed, "-l", "app=web")}, "pods were made anew:", pods)
        refused = len(bed.refused())
        time.sleep(MINUTE)
        that(len(bed.refused()) == refused, "refused in a minute:", counted(bed.refused()[refused:]))
        that(self.may_allocate(bed) == {"yes"}, "behind our file agents may not allocate:", self.may_allocate(bed))
        bed.kubectl("delete", "-f", f"{cluster.INSTALLED}/kube-router-load-balancer.yaml")
        # The API server answers by what it has watched, which follows.
        bed.wait("our file alone does not let agents allocate", lambda: self.may_allocate(bed) == {"no"}, 60)

    def may_allocate(self, bed):
        """What the API server says of the rights of `--run-loadbalancer`."""
        account = f"--as=system:serviceaccount:{integrators.NAMESPACE}:kube-router"
        asked = ("update services --subresource=status", "create leases.coordination.k8s.io -n kube-system", "update leases.coordination.k8s.io/kube-router-lballoc -n kube-system")
        kubectl = [bed.cluster["programs"]["kubectl"], "--kubeconfig", bed.cluster["kubeconfig"], "auth", "can-i"]
        # It ends with 1 where the answer is no.
        return {subprocess.run([*kubectl, *words.split(), account], stdin=subprocess.DEVNULL, capture_output=True, text=True).stdout.strip() for words in asked}

    def the_removal_leaves_nothing(self, bed):
        """By what is documented for kube-router: the objects go, and the image runs once with --cleanup-config."""
        newcomer.client_goes(bed)
        bed.kubectl("delete", "deployment,service", "web", "--ignore-not-found")
        bed.kubectl("delete", "daemonset", newcomer.EACH, "--ignore-not-found")
        bed.wait("pods are gone", lambda: not bed.get("pods", "-n", "default")["items"])
        bed.kubectl("delete", "--wait=false", "--ignore-not-found", "-f", "-", text_in=json.dumps({"apiVersion": "v1", "kind": "List", "items": self.made.objects}))
        if self.ours:
            bed.kubectl("delete", "--wait=false", "--ignore-not-found", "-f", self.ours)
        bed.wait("agents are gone", lambda: not self.agents(bed))
        bed.kube_proxy(False)
        for i in range(1, bed.nodes + 1):
            # Where no manifest mounts the lock, nobody has made it; a host whose own iptables has run has one.
            lock = "/run/xtables.lock"
            mounts = page.mounts_of_removal() if self.ours else (("/lib/modules", "ro"), ("/etc/cni/net.d", "rw"), (lock, "rw"))
            once = bed.once("--cleanup-config", mounts=mounts, conf=self.made.conf)
            folders = " ".join(path for path, _ in mounts if path != lock)
            # As the pages have it; the folders of a host that has none of ours are not there.
            bed.on(i, f"rm -rf /var/lib/sluice /run/sluice; mkdir -p {folders}; touch {lock}; {once}")
            left = bed.on(i, "nft list tables; iptables-nft-save; ip6tables-nft-save; iptables-legacy-save 2>/dev/null; ipset list -n; ipvsadm -Ln | grep -E '^(TCP|UDP|FWM)'; "
                             "ip -br link | grep -E 'kube-(bridge|dummy)'; ip rule | grep -E 'lookup (7[0-9]|kube)'; ls -A /etc/cni/net.d; ls -A /opt/cni/bin | grep sluice; true")
            foreign = r"table ip6? (filter|nat|mangle|raw)$|^#|^\*|^COMMIT|^:|10-flannel.conflist$"
            left = [line for line in left.splitlines() if line and (not re.search(foreign, line) or "KUBE-ROUTER" in line or "KUBE-POD-FW" in line or "KUBE-NWPLCY" in line)]
            left = [line for line in left if not re.match(r"-A (KUBE-FIREWALL|OUTPUT -j KUBE-FIREWALL|INPUT -j KUBE-FIREWALL)", line)]  # the kubelet's
            that(not left, f"left on node {i}:", left)
            routes = bed.on(i, f"ip route show root {net.POD_RANGES[0]} | grep 'proto 17'; true").split("\n")
            that(not any(routes), f"routes to pods are left on node {i}:", routes)
            # The next one meets a new host.
            others = "; ".join(f"ip route del {of} 2>/dev/null" for j, of in self.ranges(bed).items() if j != i)
            bed.on(i, f"rm -rf /etc/cni/net.d/* /opt/cni /var/lib/kube-router/*; ip link del cni0 2>/dev/null; {others or 'true'}; true")


def address(bed, i):
    """By which others reach a node."""
    return net.Plan(bed.nodes, 0, 1, True).addresses(i)[0]


def counted(words):
    return ", ".join(f"{words.count(word)} {word}" for word in sorted(set(words))) or "nothing"


def tests(names, nodes):
    return [test for name in names for test in Theirs(name, nodes).tests()]
