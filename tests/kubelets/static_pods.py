"""A static pod with a network of its own and a port of its node (`hostPort`): a drain leaves it there, and no API object makes it anew."""
import json

from newcomer import condition, container, in_url, that

from labkit import net

NAME, PORT = "static", 8089
FOLDER = "/var/lib/kubelet/static"  # of the kubelet (nodes.py)
# Of the plugin portmap: one line for each pod whose port is served.
SERVED = f"{{tables}}-save -t nat | grep -E -- '-A CNI-HOSTPORT-DNAT .*--dports {PORT}'; true"


def put(bed, i):
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": NAME, "namespace": "default"}, "spec": {
        "terminationGracePeriodSeconds": 1, "containers": [container("web", "echo static > /www/name; exec httpd -f -p 8080 -h /www", ports=[{"containerPort": 8080, "hostPort": PORT}])]}}
    bed.put(i, f"{FOLDER}/{NAME}.json", json.dumps(pod))
    answers(bed, i)


def take(bed, i):
    bed.on(i, f"rm {FOLDER}/{NAME}.json")
    bed.wait("the static pod is gone", lambda: not bed.get("pods", "--field-selector", f"metadata.name={NAME}-node{i}")["items"], 300)


def pod(bed, i):
    """What the API server knows of it."""
    return bed.get("pod", f"{NAME}-node{i}")


def answers(bed, i):
    """At its own address, which the API server may learn late, and at the port of its node; no rule of a pod that is gone is before its own."""
    hosts = net.Plan(bed.nodes, 0, 1, True).addresses(i)[:1 + bed.has_ipv6]
    bed.wait("the static pod is there", lambda: bed.get("pods", "--field-selector", f"metadata.name={NAME}-node{i}")["items"], 300)

    def says_its_name():
        own = [one["ip"] for one in pod(bed, i)["status"].get("podIPs", [])]
        where = [*(f"{in_url(one)}:8080" for one in own), *(f"{in_url(one)}:{PORT}" for one in hosts)]
        return len(own) == len(hosts) and all(bed.on(i, f"curl -s -m 5 http://{one}/name; true").strip() == NAME for one in where)
    bed.wait("it answers", lambda: condition(pod(bed, i), "Ready") and says_its_name(), 300)
    for tables in ("iptables", "ip6tables")[:len(hosts)]:
        rules = bed.on(i, SERVED.format(tables=tables)).splitlines()
        that(len(rules) == 1, "rules for the port of one pod:", rules)
