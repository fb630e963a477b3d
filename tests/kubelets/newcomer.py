"""The newcomer's way, whole: a manifest of `daemonset/` applied to nodes that are NotReady, pods, Services, policies, an update, and the removal."""
import io
import ipaddress
import json
import os
import re
import subprocess
import tarfile
import time

from labkit import image, net, own
from labkit.source import kubeconfig

import asks
import bed as beds
import page
from integrators import CONFLIST

ASKS = os.path.realpath(asks.__file__)
AGENTS = ("-n", "kube-system", "-l", "k8s-app=kube-router")
# After how many seconds an answer counts as none, by the place of the nodes. A first packet that is lost is sent again after one second (RFC 6298), so on this machine's own kernel an
# answer that came later has lost one. In a guest all nodes have one emulated processor, which may be elsewhere for a while: there an answer to the second repetition, after three seconds, counts.
LATEST = {"native": 1, "guest": 5}
# For how many seconds behind pods that are Ready a Service may not answer yet: agents, or kube-proxy, have to be told by the API server.
SETTLES = {"native": 5, "guest": 60}


def that(true, *words):
    if not true:
        raise AssertionError(" ".join(str(word) for word in words))


def condition(item, kind):
    found = [one for one in item["status"].get("conditions", []) if one["type"] == kind]
    return bool(found) and found[0]["status"] == "True"


def ready_nodes(bed):
    return [node["metadata"]["name"] for node in bed.get("nodes")["items"] if condition(node, "Ready")]


def ready_pods(bed, *words):
    return [pod for pod in bed.get("pods", *words)["items"] if condition(pod, "Ready") and "deletionTimestamp" not in pod["metadata"]]


def nodes_wait_for_a_network(bed):
    bed.wait("kubelets register", lambda: len(bed.get("nodes")["items"]) == bed.nodes)

    def waiting():
        nodes = bed.get("nodes")["items"]
        messages = [one["message"] for node in nodes for one in node["status"]["conditions"] if one["type"] == "Ready"]
        return len(messages) == bed.nodes and all("cni plugin not initialized" in message for message in messages)
    bed.wait("they say that the network is missing", waiting)
    that(all(node["spec"].get("podCIDRs") for node in bed.get("nodes")["items"]), "nodes without ranges")


def a_host_is_asked_before_an_agent_starts(bed):
    """The guide's command, by the image, on a node that has nothing of ours yet."""
    admin = kubeconfig(f"https://{net.CONTROL[0]}:6443", bed.cluster["token"], bed.cluster["authority"])
    for i in range(1, bed.nodes + 1):
        bed.put(i, "/etc/kubernetes/admin.conf", admin)
        folders = ("/etc/cni/net.d", "/var/lib/sluice", "/run/sluice")
        mounts = (("/lib/modules", "ro"), *((folder, "rw") for folder in folders), ("/etc/kubernetes", "ro"))
        words = ("preflight", "-o", "json", "--kubeconfig=/etc/kubernetes/admin.conf", f"--hostname-override=node{i}")
        # Exit status 1 where something is worth knowing, 2 where an agent would not work.
        said = bed.on(i, f"mkdir -p {' '.join(folders)}; {bed.once(*words, mounts=mounts, conf=CONFLIST, pids=True)}; status=$?; rm -r /etc/kubernetes; test $status -le 1")
        that(not bed.on(i, f"find {' '.join(folders)} -type f").split(), "preflight wrote files")
        found = json.loads(said)
        that(found["node"] == f"node{i}" and len(found["findings"]) > 10, said)
        worse = [one for one in found["findings"] if one["level"] != "ok"]
        for one in worse:
            own.say(f"  node {i}: {one['level']}: {one['subject']}: {one['what']}")
        that(found["level"] != "fatal", said)  # the worst of all
        about = " ".join(one["subject"] for one in found["findings"])
        that("API server" in about and "kernel modules" in about, about)


def put_what_kubeadm_leaves(bed, cidr=net.POD_RANGES[0]):
    """In a cluster, and some manifests read. `cidr`: the range of pods that kube-proxy is told."""
    config = {"apiVersion": "v1", "kind": "Config", "current-context": "default",
              "clusters": [{"name": "default", "cluster": {"server": f"https://{net.CONTROL[0]}:6443",
                                                           "certificate-authority": "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt"}}],
              "contexts": [{"name": "default", "context": {"cluster": "default", "namespace": "default", "user": "default"}}],
              "users": [{"name": "default", "user": {"tokenFile": "/var/run/secrets/kubernetes.io/serviceaccount/token"}}]}
    bed.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "kube-proxy", "namespace": "kube-system"},
               "data": {"kubeconfig.conf": json.dumps(config),
                        "config.conf": f"apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nclusterCIDR: {cidr}\nmode: \"\"\n"}})


def the_manifest_makes_the_nodes_ready(bed):
    """Where it has no service proxy, kube-proxy serves Services: agents reach the API server by one."""
    put_what_kubeadm_leaves(bed)
    bed.kube_proxy(not bed.serves_services())
    bed.install()
    bed.wait("agents are ready", lambda: len(ready_pods(bed, *AGENTS)) == bed.nodes)
    bed.wait("nodes are ready", lambda: len(ready_nodes(bed)) == bed.nodes)
    for i in range(1, bed.nodes + 1):
        that("kube-bridge" in bed.on(i, f"cat {CONFLIST}"), "no CNI file on node", i)
        that(set(bed.on(i, "ls /opt/cni/bin").split()) >= {"bridge", "host-local", "loopback", "portmap", "sluice-cni"}, "plugins of node", i)


def container(name, script, **more):
    return {"name": name, "image": "probe:lab", "imagePullPolicy": "Never", "command": ["/bin/sh", "-c", script], **more}


PROBE = {"httpGet": {"path": "/name", "port": 8080}, "periodSeconds": 2, "timeoutSeconds": 5, "failureThreshold": 10}
# For how many seconds a pod may go on to answer while others are told that it goes, by the place of the nodes: who tells them, agents or kube-proxy on every node, has the one processor of a
# guest beside containers that start.
GRACE = {"native": 10, "guest": 40}
DRAINS = "--timeout=900s"  # one pod after the other, each behind the start of another one
BUDGET = {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "web"}, "spec": {"maxUnavailable": 1, "selector": {"matchLabels": {"app": "web"}}}}


def goes_on_for_a_while(bed):
    """The lifecycle of a container that answers until shortly before its time is over."""
    return {"preStop": {"exec": {"command": ["sleep", str(GRACE[bed.kind] - 3)]}}}


def pods_get_addresses_and_pass_their_probes(bed):
    # Only where pods leave a node under requests do they have to go on for a while: all others end at once, which keeps the rest short.
    leaves = bed.nodes + bed.joining > 1
    more = {"lifecycle": goes_on_for_a_while(bed)} if leaves else {}
    serve = 'echo "$NAME" > /www/name; exec httpd -f -p 8080 -h /www'
    name = {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}
    pod = {"metadata": {"labels": {"app": "web"}}, "spec": {
        "terminationGracePeriodSeconds": GRACE[bed.kind] if leaves else 1, "automountServiceAccountToken": False,
        "containers": [container("web", serve, env=[name], readinessProbe=PROBE, livenessProbe=PROBE, **more)]}}
    bed.apply(
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
         "spec": {"replicas": bed.nodes + 1, "selector": {"matchLabels": {"app": "web"}}, "template": pod}},
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
         "spec": {"type": "NodePort", "ipFamilyPolicy": "PreferDualStack" if bed.has_ipv6 else "SingleStack", "selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080, "nodePort": 30080}]}})
    bed.wait("pods are ready", lambda: len(ready_pods(bed, "-l", "app=web")) == bed.nodes + 1)
    ranges = {node["metadata"]["name"]: node["spec"]["podCIDRs"] for node in bed.get("nodes")["items"]}
    for pod in ready_pods(bed, "-l", "app=web"):
        mine = [ipaddress.ip_network(one) for one in ranges[pod["spec"]["nodeName"]]]
        found = [ipaddress.ip_address(one["ip"]) for one in pod["status"]["podIPs"]]
        that(len(found) == 1 + bed.has_ipv6, pod["metadata"]["name"], "has", found)
        that(all(any(address in one for one in mine) for address in found), pod["metadata"]["name"], found, "not in", mine)


EACH = "each"  # of which every node has one pod


def put_one_pod_on_each_node(bed, probe):
    """A DaemonSet on the pod network, whose pods serve as the others do."""
    pod = {"metadata": {"labels": {"app": EACH}}, "spec": {
        "terminationGracePeriodSeconds": 1, "automountServiceAccountToken": False,
        "containers": [container("web", f"echo {EACH} > /www/name; exec httpd -f -p 8080 -h /www", readinessProbe={"httpGet": {"path": "/name", "port": 8080}, **probe})]}}
    bed.apply({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": EACH}, "spec": {"selector": {"matchLabels": {"app": EACH}}, "template": pod}})


def pods_of_each_node(bed):
    """Those of that DaemonSet that are ready; nothing while one is missing, or one goes."""
    found = ready_pods(bed, "-l", f"app={EACH}")
    places = {pod["spec"]["nodeName"] for pod in found}
    return found if len(places) == len(found) == len(bed.get("pods", "-l", f"app={EACH}")["items"]) == bed.nodes else []


def web_address(bed):
    return web_addresses(bed)[0]


def web_addresses(bed):
    """The cluster IPs, the one of IPv4 first."""
    return sorted(bed.get("service", "web")["spec"]["clusterIPs"], key=lambda address: ":" in address)


def in_url(address):
    return f"[{address}]" if ":" in address else address


FAILED = "failed"  # in the place of an answer
SETTLED = 20  # requests in a row, none of which may fail once all pods have been reached


def answers(bed, i, where, requests):
    """What a node is answered, one request after the other, each by a connection of its own: the name of a pod each, or `failed`."""
    # One process asks them all: in an emulator its start takes longer than a request.
    ask = f"curl -g -s -f -m 20 -H 'Connection: close' -w '=%{{http_code}}\\n' {' '.join([f'http://{where}/name'] * requests)}; true"
    return told(bed.on(i, ask, timeout=60 + 20 * requests))


def told(text):
    """The answers in what curl prints: the body, if there is any, and `=` with the status behind it."""
    bodies = re.findall(r"(.*?)=(\d{3})\n", text, flags=re.DOTALL)
    return [body.strip() if status == "200" and body.strip() else FAILED for body, status in bodies]


def every_request_is_answered(bed, i, where, names, requests=6):
    """A node reaches all of these pods, for which it has some time. No request fails that begins later than a few seconds after the first one (`SETTLES`). `requests`: as many as reach all
    of them."""
    began, early = time.monotonic(), []

    def reaches_all():
        since = time.monotonic() - began
        said = answers(bed, i, where, requests)
        early.extend(one for one in said if one == FAILED)
        that(FAILED not in said or since <= SETTLES[bed.kind], f"node {i}: of {requests} requests to {where} {said.count(FAILED)} failed, which began {since:.0f} s behind pods that are ready")
        return set(said) == names
    bed.wait(f"node {i} reaches every pod by {where}", reaches_all, 300)
    if early:
        own.say(f"  {len(early)} requests had failed before")
    said = answers(bed, i, where, SETTLED)
    that(len(said) == SETTLED and set(said) <= names, f"of {SETTLED} requests of node {i} to {where} {said.count(FAILED)} failed; answers:", said, "and not only of", names)


def a_service_answers_on_every_node_and_its_node_port(bed):
    names = {pod["metadata"]["name"] for pod in ready_pods(bed, "-l", "app=web")}
    that(len(web_addresses(bed)) == 1 + bed.has_ipv6, "cluster IPs:", web_addresses(bed))
    for i in range(1, bed.nodes + 1):
        own_addresses = net.Plan(bed.nodes, 0, 1, True).addresses(i)[:1 + bed.has_ipv6]
        for where in [f"{in_url(one)}:80" for one in web_addresses(bed)] + [f"{in_url(one)}:30080" for one in own_addresses]:
            every_request_is_answered(bed, i, where, names)


def a_pod_answers_on_a_port_of_its_node(bed):
    """By the plugin portmap, which the agent's CNI file names."""
    bed.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "host-port"}, "spec": {
        "nodeName": "node1", "terminationGracePeriodSeconds": 1, "automountServiceAccountToken": False,
        "containers": [container("web", "echo host-port > /www/name; exec httpd -f -p 8080 -h /www",
                                 ports=[{"containerPort": 8080, "hostPort": 8088}])]}})
    bed.wait("the pod runs", lambda: condition(bed.get("pod", "host-port"), "Ready"))
    for i in range(1, bed.nodes + 1):
        every_request_is_answered(bed, i, "192.0.2.11:8088", {"host-port"})
    bed.kubectl("delete", "pod", "host-port")


def pods_leave_a_node_that_is_drained_and_services_go_on(bed):
    """No request of a pod of another node fails meanwhile, nor while a node that is there again gets pods."""
    that(bed.nodes > 1, "with one node there is nowhere to go to")
    name = f"node{bed.nodes}"
    bed.apply(BUDGET)
    client(bed)
    every = families(bed)
    bed.wait("the client is answered", lambda: all(outcomes(bed, one)[-bed.nodes - 1:] == ["ok"] * (bed.nodes + 1) for one in every))
    before = {one: len(outcomes(bed, one)) for one in every}
    bed.kubectl("drain", name, "--ignore-daemonsets", "--force", DRAINS)

    def moved():
        pods = ready_pods(bed, "-l", "app=web")
        return len(pods) == bed.nodes + 1 and all(pod["spec"]["nodeName"] != name for pod in pods)
    bed.wait("pods run elsewhere", moved)
    names = {pod["metadata"]["name"] for pod in ready_pods(bed, "-l", "app=web")}
    every_request_is_answered(bed, bed.nodes, f"{web_address(bed)}:80", names, 12)
    bed.kubectl("uncordon", name)
    bed.kubectl("rollout", "restart", "deployment", "web")
    bed.wait("a pod runs there again", lambda: any(pod["spec"]["nodeName"] == name for pod in ready_pods(bed, "-l", "app=web")))
    bed.wait("its update is over", lambda: len(bed.get("pods", "-l", "app=web")["items"]) == len(ready_pods(bed, "-l", "app=web")) == bed.nodes + 1)
    for one in every:
        bed.wait("requests behind it", lambda one=one, n=len(outcomes(bed, one)): len(outcomes(bed, one)) > n + 3)
        no_request_of_the_client_failed(bed, one, before[one])
    bed.kubectl("delete", "poddisruptionbudget", "web")


def a_policy_closes_the_pods(bed):
    """Denied between pods, and open again; the node itself may, so that probes pass. As many requests in a row as there are pods reach each of them (round robin)."""
    client(bed)
    count = bed.nodes + 1

    def clients_are(word):
        return all(outcomes(bed, one)[-count:] == [word] * count for one in families(bed))
    bed.wait("the client is answered", lambda: clients_are("ok"))
    policy = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "closed"},
              "spec": {"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"]}}
    bed.apply(policy)
    bed.wait("the client is refused", lambda: clients_are("failed"))
    probes_pass_under_the_policy(bed)
    bed.wait("the client is refused still", lambda: clients_are("failed"))
    bed.kubectl("delete", "networkpolicy", "closed")
    bed.wait("the client is answered again", lambda: clients_are("ok"))


# Of pods that begin under a policy, by the place of the nodes: two probes in a row that have no answer in time end that they are Ready. And for how many seconds that is looked at, which is
# more than two such probes take, with the pause before the first and the kubelet's word to the API server.
LATE_PROBE = {"native": {"periodSeconds": 1, "timeoutSeconds": 2, "failureThreshold": 2}, "guest": {"periodSeconds": 2, "timeoutSeconds": LATEST["guest"], "failureThreshold": 2}}
PROBED = {"native": 8, "guest": 24}
# For how many seconds pods that are Ready may not have their policy yet.
HAS_POLICY = {"native": 60, "guest": 300}


def ready_since(bed):
    """Since when each pod is Ready, by its name."""
    return {pod["metadata"]["name"]: [one["lastTransitionTime"] for one in pod["status"]["conditions"] if one["type"] == "Ready"] for pod in ready_pods(bed, "-l", "app=web")}


def failed_probes(bed):
    """By the Event of it: of which pod, how often, when last and how a probe has failed."""
    return {event["metadata"]["uid"]: (event["involvedObject"]["name"], event.get("count", 1), event["lastTimestamp"], event["message"])
            for event in bed.get("events", "-n", "default", "--field-selector", "reason=Unhealthy")["items"]}


def failed_since(before, now):
    """Of these (`failed_probes`), those that are new or have grown. The API server drops an Event after an hour, so one that is not there any more says nothing."""
    return [one for uid, one in now.items() if uid not in before or one[1] > before[uid][1]]


def probes_pass_under_the_policy(bed):
    """A pod of each node that begins while the policy is in force is Ready by its own probe, and stays so once the policy has it, without a probe that fails: two in a row that were refused or
    had no answer would end it. Pods of before are Ready as they were, and no probe of theirs has failed meanwhile."""
    before, failed = ready_since(bed), failed_probes(bed)
    names = [f"late{i}" for i in range(1, bed.nodes + 1)]
    served = container("web", "echo late > /www/name; exec httpd -f -p 8080 -h /www", readinessProbe={**PROBE, **LATE_PROBE[bed.kind]})
    bed.apply(*({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": "web"}}, "spec": {
        "nodeName": f"node{i}", "terminationGracePeriodSeconds": 1, "automountServiceAccountToken": False, "containers": [served]}} for i, name in enumerate(names, 1)))
    bed.wait("pods that begin under the policy are ready", lambda: set(names) <= set(ready_since(bed)), 300)
    addresses = [bed.get("pod", name)["status"]["podIP"] for name in names]
    # Whether the policy has them is asked from the pod of the client, whose address is no node's.
    bed.wait("the client is refused by these, too", lambda: all(asked_by_the_client(bed, one) == "refused" for one in addresses), HAS_POLICY[bed.kind])
    began, started = {name: since for name, since in ready_since(bed).items() if name in names}, failed_probes(bed)
    time.sleep(PROBED[bed.kind])
    now, ended = ready_since(bed), failed_probes(bed)
    that({name: since for name, since in now.items() if name in names} == began and set(began) == set(names), "Ready under the policy at first, and then:", began, now)
    that({name: since for name, since in now.items() if name in before} == before, "Ready before, and then:", before, now)
    # A starved guest may be late with an answer while containers start; what a policy refuses is refused at once.
    wrong = [one for one in failed_since(failed, ended) if one[0] not in names and (bed.kind == "native" or "refused" in one[3])]
    # Behind `started` nothing starts any more, so of these pods every probe counts that fails, for want of an answer too. One that failed before its pod was Ready may be told late, with its time.
    wrong += [one for one in failed_since(started, ended) if one[0] in names and one[2] > began[one[0]][0]]
    that(not wrong, "probes failed under a policy:", wrong)
    bed.kubectl("delete", "pod", *names)


LOG = "/var/lib/kubelet/asked-by-client"  # and its family


def families(bed):
    """Of which clients ask: IPv4 first."""
    return (4, 6) if bed.has_ipv6 else (4,)


def space_of(bed, i, address):
    """The network namespace on a node of the pod that has this address."""
    space, = bed.on(i, f"for n in $(ls /run/netns); do ip -n $n -o addr | grep -qF ' {address}/' && echo $n; done; true").split()
    return space


def client(bed):
    """A pod in whose network the Service is asked on and on, in each family by its address (`asks.py`). Who asks times the request alone, without programs that start around it, which in a guest
    take longer. What was written down before is gone."""
    bed.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "client"}, "spec": {
        "nodeName": "node1", "terminationGracePeriodSeconds": 1, "automountServiceAccountToken": False, "containers": [container("client", "exec sleep 1000000")]}})
    bed.wait("the client runs", lambda: condition(bed.get("pod", "client"), "Ready"))
    space = space_of(bed, 1, bed.get("pod", "client")["status"]["podIP"])
    nobody_asks(bed)
    for family, address in zip(families(bed), web_addresses(bed)):
        start_asking(bed, 1, space, (address, f"{LOG}{family}", 0.3))


def start_asking(bed, i, space, words):
    """Begins requests (`asks.py` with these words) on a node, or in one of its network namespaces; what was in the log before is gone."""
    log, enter = words[1], f"nsenter --net=/run/netns/{space} " if space else ""
    # What has not begun a session of its own ends with the command.
    bed.on(i, f"rm -f {log} {log}.end; setsid {enter}{own.PYTHON} -B {ASKS} {' '.join(map(str, words))} < /dev/null > /dev/null 2>&1 & echo $! > {log}.pid; until test -e {log}; do sleep 0.1; done")


def nobody_asks(bed):
    """Ends those who ask in the client's network, if there are any."""
    for family in families(bed):
        log = f"{LOG}{family}"
        bed.on(1, f"if pid=$(cat {log}.pid 2>/dev/null) && grep -qsF {log} /proc/$pid/cmdline; then kill $pid; fi; rm -f {log} {log}.pid")


def client_goes(bed):
    nobody_asks(bed)
    bed.kubectl("delete", "pod", "client", "--wait=false", "--ignore-not-found")


def asked_by_the_client(bed, address):
    """What its pod says of a server's port at this address: `answered` or `refused`."""
    script = f"printf 'GET /name HTTP/1.0\\r\\n\\r\\n' | nc -w 5 {address} 8080 | grep -q . && echo answered || echo refused"
    return bed.kubectl("exec", "client", "--", "/bin/sh", "-c", script).strip()


def timed_outcomes(bed, family):
    """Of each request what came of it, and after how many seconds (`asks.judged`); of one that is written down just now there is nothing yet."""
    lines = bed.on(1, f"cat {LOG}{family} 2>/dev/null || true").split("\n")[:-1]
    return [asks.judged(line, LATEST[bed.kind]) for line in lines]


def in_words(timed):
    """`ok`, `failed`, or `late` of an answer that took too long (`LATEST`)."""
    return ["ok" if said == "ok" else "late" if asks.LATE in said else "failed" for said, _ in timed]


def outcomes(bed, family=4):
    return in_words(timed_outcomes(bed, family))


def no_request_of_the_client_failed(bed, family, before):
    """Of those behind so many."""
    timed = timed_outcomes(bed, family)[before:]
    said, slowest = in_words(timed), asks.slowest(timed)
    that(set(said) == {"ok"}, said.count("failed"), "of", len(said), f"requests by IPv{family} failed, and {said.count('late')} were answered after more than {LATEST[bed.kind]} s:",
         [one for one, _ in timed if one != "ok"][:40])
    own.say(f"  {len(said)} requests by IPv{family}, none failed, the slowest {slowest:.2f} s")


ANSWERS = "/var/lib/kubelet/pings"


def pings(bed, family=4):
    """The numbers of the answers that a pod of the first node has had from one of the last node."""
    return sorted(map(int, re.findall(r"seq=(\d+) ", bed.on(1, f"cat {ANSWERS}/answers{family} 2>/dev/null || true"))))


def ping(bed):
    """A pod that sends a numbered packet of each family to a pod of the last node five times a second, and writes down each answer."""
    target = next(pod for pod in ready_pods(bed, "-l", "app=web") if pod["spec"]["nodeName"] == f"node{bed.nodes}")
    addresses = sorted((one["ip"] for one in target["status"]["podIPs"]), key=lambda address: ":" in address)
    loops = [f"ping -i 0.2 {address} > /log/answers{family}" for family, address in zip(families(bed), addresses)]
    bed.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pings"}, "spec": {
        "nodeName": "node1", "terminationGracePeriodSeconds": 1, "automountServiceAccountToken": False,
        "containers": [container("pings", " & ".join([*loops[1:], f"exec {loops[0]}"]), volumeMounts=[{"name": "log", "mountPath": "/log"}])],
        "volumes": [{"name": "log", "hostPath": {"path": ANSWERS, "type": "DirectoryOrCreate"}}]}})
    bed.wait("a pod of another node answers" if bed.nodes > 1 else "another pod answers", lambda: all(len(pings(bed, family)) > 5 for family in families(bed)))


def an_update_of_the_agents_fails_no_request_and_loses_no_packet(bed):
    """To an image with another program, also for what an agent leaves on the host."""
    ping(bed)
    every = families(bed)
    before, first = {one: len(outcomes(bed, one)) for one in every}, {one: pings(bed, one)[-1] for one in every}
    following = f"sluice:{image.version()}{beds.NEXT}"
    bed.kubectl("-n", "kube-system", "set", "image", "daemonset/kube-router", f"kube-router={following}", f"install-cni={following}")

    def updated():
        found = bed.get("daemonset", "kube-router", "-n", "kube-system")["status"]
        return found.get("updatedNumberScheduled") == bed.nodes and found.get("numberReady") == bed.nodes and not found.get("numberUnavailable")
    bed.wait("agents are replaced", updated)
    for one in every:
        bed.wait("requests after the update", lambda one=one, n=len(outcomes(bed, one)): len(outcomes(bed, one)) > n + 3)
        bed.wait("packets after the update", lambda one=one, n=len(pings(bed, one)): len(pings(bed, one)) > n + 5)
        no_request_of_the_client_failed(bed, one, before[one])
        answered = [number for number in pings(bed, one) if number > first[one]]
        lost = sorted(set(range(first[one] + 1, answered[-1])) - set(answered))
        that(not lost, "of", len(answered), f"packets of IPv{one} between pods these were lost:", lost)
        own.say(f"  {len(answered)} packets of IPv{one} between pods, none lost")
    bed.kubectl("delete", "pod", "pings")
    names = [pod["spec"]["containers"][0]["image"] for pod in ready_pods(bed, *AGENTS)]
    that(all(name.endswith(beds.NEXT) for name in names), names)
    agents_have_never_ended(bed)


def all_nodes_say_how_they_stand_and_one_makes_a_bundle(bed):
    """As an operator outside asks, by the API server; the bundle has everything and no secret."""
    said = own.run(bed.binary, "status", "--all", f"--kubeconfig={bed.cluster['kubeconfig']}").splitlines()
    that(all(any(line.startswith(f"node{i}: ready (kube-system/") for line in said) for i in range(1, bed.nodes + 1)), "status --all:", said)
    own.say("  " + said[-1])
    pod = bed.get("pods", *AGENTS)["items"][0]["metadata"]["name"]
    inside = [bed.cluster["programs"]["kubectl"], "--kubeconfig", bed.cluster["kubeconfig"], "-n", "kube-system", "exec", pod, "-c", "kube-router", "--"]
    made = subprocess.run([*inside, "sluice", "bundle", "-f", "-"], stdin=subprocess.DEVNULL, capture_output=True)
    that(made.returncode == 0, "sluice bundle:", made.stderr.decode())
    with tarfile.open(fileobj=io.BytesIO(made.stdout)) as archive:
        texts = {one.name.partition("/")[2]: archive.extractfile(one).read().decode() for one in archive if one.isfile()}
    that({"parts.json", "about.json", "config.txt", "kernel/firewall.txt", "kernel/router.txt"} <= set(texts), list(texts))
    parts = json.loads(texts["parts.json"])["parts"]
    own.say(f"  a bundle of {len(texts)} files, {len(made.stdout) / 2**20:.1f} MiB: " + ", ".join(f"{one['part']} ({one.get('bytes', one.get('why'))})" for one in parts))
    that(len(parts) > 10 and all(one["state"] != "failed" for one in parts), parts)
    for address in web_addresses(bed) if bed.serves_services() else ():
        that(address in texts["kernel/proxy.txt"], "kernel/proxy.txt does not have", address, "\n" + texts["kernel/proxy.txt"][:2000])
    token = own.run(*inside, "cat", "/var/run/secrets/kubernetes.io/serviceaccount/token").strip()
    that(len(token) > 100 and token.encode() not in made.stdout, "the token is in the bundle, or was not read")
    a_bundle_brings_its_cluster_up_elsewhere(bed, made.stdout)


# What an agent on a machine without IPVS needs, beside a cluster that is somebody else's: nobody of that is reached.
ELSEWHERE = ["--run-service-proxy=false", "--netfilter=nftables", "--node-routes=api", "--enable-overlay=false", "--health-port=0", "--metrics-port=0",
             "--gobgp-admin-port=0", "--hostname-override=node1"]


def a_bundle_brings_its_cluster_up_elsewhere(bed, bundle):
    """An agent on this machine, in a network of its own with the node's address, starts from it: its policies and its routes to the other nodes."""
    folder = own.fresh(f"{bed.folder}/elsewhere")
    with open(f"{folder}/bundle.tar", "wb") as handle:
        handle.write(bundle)
    nodes = {node["metadata"]["name"]: node for node in bed.get("nodes")["items"]}
    address = next(one["address"] for one in nodes["node1"]["status"]["addresses"] if one["type"] == "InternalIP")
    links = f"ip link set lo up; ip link add eth0 type veth peer name wire; ip link set wire up; ip link set eth0 up; ip address add {address}/24 dev eth0"
    flags = [*ELSEWHERE, f"--manifests={folder}/bundle.tar", f"--socket={folder}/sluice.sock", f"--state-dir={folder}/state"]
    env = {**os.environ, "KUBE_ROUTER_CNI_CONF_FILE": f"{folder}/net.d/10-kuberouter.conflist"}
    with open(f"{folder}/log", "wb") as log:
        agent = subprocess.Popen(["unshare", "--net", "sh", "-c", f'{links}; exec "$@"', "sh", bed.binary, *flags], env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        def text():
            with open(f"{folder}/log", errors="replace") as handle:
                return handle.read()
        synced = ["First sync of network policies finished", "First sync of the router finished"]
        that(own.wait(lambda: all(line in text() for line in synced) or agent.poll() is not None, 60, 0.5) and agent.poll() is None, text()[-3000:])
        routes = own.run("nsenter", "-t", str(agent.pid), "--net", "ip", "route")
        ranges = [node["spec"]["podCIDR"] for name, node in nodes.items() if name != "node1"]
        that(all(f"{one} via " in routes for one in ranges), ranges, routes)
    finally:
        agent.kill()
        agent.wait()


# With which status an agent ends that is asked to, by SIGTERM and then by SIGKILL.
ENDED_BY_KUBELET = (0, 137)
# How each line of an agent's log begins.
LOGGED = re.compile(r"[IWE]\d{4} \d\d:\d\d:\d\d\.\d{6} +\d+ \S+:\d+\] ")


def lines_of_log(text):
    """The lines that a container has written, from what its runtime keeps of them: a time, the stream and `F` before each, or `P` where it goes on in the next one."""
    found, begun = [], {}
    for line in text.splitlines():
        _, stream, tag, *words = line.split(" ", 3)
        begun[stream] = begun.get(stream, "") + "".join(words)
        if tag == "F":
            found.append(begun.pop(stream))
    return [*found, *begun.values()]


def logs_of_agents(bed, i):
    """Also of a container that ended: a node keeps the log of the one before."""
    return lines_of_log(bed.on(i, "cat /var/log/pods/kube-system_kube-router*/kube-router/*.log"))


def agents_have_nothing_to_complain_of(bed):
    """The rights, mounts and capabilities of the manifest are enough: a first start on a new node logs no warning."""
    wrong = []
    for i in range(1, bed.nodes + 1):
        # A neighbour whose agent starts later refuses the connection until then.
        wrong += [f"node {i}: {line}" for line in logs_of_agents(bed, i) if re.match(r"[WE]\d{4}", line) and "subject=Dialling(" not in line]
    that(not wrong, "\n".join(wrong[:40]))
    agents_have_never_ended(bed)


def agents_have_never_ended(bed):
    """No container of an agent's pod has ended by itself, but for the boots of its node; the first ones have done what they are for; and the logs have nothing but what the
    agent's log writes, as the words of a panic or of a refused start are not. A kubelet may end an agent of a starved guest once, whose probes have no answer in time."""
    for pod in bed.get("pods", *AGENTS)["items"]:
        name, status, boots = pod["metadata"]["name"], pod["status"], bed.boots.get(pod["spec"]["nodeName"], 0)
        for one in [*status.get("initContainerStatuses", []), *status["containerStatuses"]]:
            if one["restartCount"] == boots + 1 and was_ended_by_its_kubelet(bed, name, one):
                own.say(f"  {name} was ended by its kubelet, as its liveness probe had no answer in time, and started again")
                continue
            that(one["restartCount"] <= boots, name, one["name"], "was started again:", json.dumps(one), "\n" + last_words(bed, pod, one["name"]))
        for one in status.get("initContainerStatuses", []):
            that(one["state"].get("terminated", {}).get("exitCode") == 0, name, one["name"], "has not ended well:", json.dumps(one))
    for i in range(1, bed.nodes + 1):
        others = [line for line in logs_of_agents(bed, i) if not LOGGED.match(line)]
        that(not others, f"in the log of node {i}'s agent, and not written by its log:\n" + "\n".join(others[:40]))


def was_ended_by_its_kubelet(bed, name, status):
    """Because its liveness probe failed, and not by what it did itself or for want of memory."""
    ended = status.get("lastState", {}).get("terminated", {})
    events = bed.get("events", "-n", "kube-system", "--field-selector", f"involvedObject.name={name},reason=Killing")["items"]
    is_liveness = any("failed liveness probe" in event.get("message", "") for event in events)
    return bed.kind == "guest" and is_liveness and ended.get("exitCode") in ENDED_BY_KUBELET and ended.get("reason") != "OOMKilled"


def last_words(bed, pod, name):
    """Of a container of a pod, also before it was started again."""
    return bed.on(int(pod["spec"]["nodeName"].removeprefix("node")), f"tail -n 30 /var/log/pods/*_{pod['metadata']['name']}_*/{name}/*.log; true")


def the_removal_leaves_nothing(bed, with_tunnels=False, without_agents=lambda: None, stays="$^"):
    """`with_tunnels`: agents had direct server return. `without_agents` is called when they are gone, and all else is there. `stays`: which lines about a node may be there all the same."""
    agents_have_never_ended(bed)
    client_goes(bed)
    bed.kubectl("delete", "deployment", "web")
    bed.wait("pods are gone", lambda: not bed.get("pods", "-n", "default")["items"])
    bed.uninstall()
    bed.wait("agents are gone", lambda: not bed.get("pods", *AGENTS)["items"])
    without_agents()
    bed.kube_proxy(False)
    for i in range(1, bed.nodes + 1):
        bed.on(i, page.removal(bed.ctr(), with_tunnels))
        # The kubelet has chains of its own that begin with KUBE-, and the plugin portmap its CNI- ones.
        ours = "'KUBE-(ROUTER|NWPLCY|POD-FW|SVC-|DEFAULT)|kube-router|sluice'"
        rules = "; ".join(f"{program}-{flavour}-save 2>/dev/null | grep -E {ours}" for program in ("iptables", "ip6tables") for flavour in ("nft", "legacy"))
        rest = "; ".join(f"ip route show root {one}" for one in net.POD_RANGES)
        left = bed.on(i, f"nft list tables; {rules}; ipset list -n; ipvsadm -Ln | grep -E '^(TCP|UDP|SCTP|FWM)'; "
                         "ip -br link | grep -E '^(kube-|tun-|sluice)'; for f in 4 6; do ip -$f rule | grep -vE 'lookup (local|main|default)'; done; "
                         f"{rest}; ls -A /etc/cni/net.d; ls -A /var/lib/sluice /run/sluice | grep -v :$; ls -A /opt/cni/bin | grep sluice; true")
        left = [line for line in left.splitlines() if line and not re.search(rf"table ip6? (filter|nat|mangle|raw)$|{stays}", line)]
        that(not left, f"left on node {i}:", left)
