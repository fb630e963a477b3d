"""The cluster's DNS as kubeadm has it: CoreDNS in pods, which follows the API by its Service and answers by one of its own."""
import json

from labkit import net

from bed import DNS_ADDRESS
from integrators import READ
from newcomer import LATEST, condition, ready_pods, that, web_addresses

COREFILE = """.:53 {
  errors
  health
  ready
  kubernetes cluster.local in-addr.arpa ip6.arpa {
    pods insecure
    fallthrough in-addr.arpa ip6.arpa
  }
  cache 30
  loop
  loadbalance
}
"""
MANY = 50
# For how many seconds who asks waits for an answer, by the place of the nodes. No question by UDP is sent twice, so patience is for a server that had no processor: a lost datagram is lost
# after any time. A connection is the kernels' alone and has no more time than any other (`LATEST`), as its packets are sent again.
PATIENCE = {"native": LATEST["native"], "guest": 20}
# Asks by UDP and by TCP for an address record, as often as is said, and prints the answers' addresses, `lost` for none: what a resolver does, without the host's and without its second tries.
# A datagram has a port and a number of its own each time. With the fifth that is lost it ends, as patience is long.
ASK = """
import socket, struct, sys
server, name, times, patience, connects = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), float(sys.argv[5])
question = b"".join(bytes([len(one)]) + one.encode() for one in name.split(".")) + b"\\0" + struct.pack("!HH", 1, 1)
query, lost = b"", 0

def addresses(answer):
    count, at = struct.unpack("!H", answer[6:8])[0], 12 + len(question)
    for _ in range(count):
        while answer[at] and answer[at] < 192:
            at += 1 + answer[at]
        at += 2 if answer[at] else 1
        kind, _, _, size = struct.unpack("!HHIH", answer[at:at + 10])
        if kind == 1:
            yield socket.inet_ntoa(answer[at + 10:at + 14])
        at += 10 + size

def by_udp():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.settimeout(patience)
        udp.sendto(query, (server, 53))
        return udp.recv(4096)

def by_tcp():
    with socket.create_connection((server, 53), connects) as tcp:
        tcp.settimeout(patience)
        tcp.sendall(struct.pack("!H", len(query)) + query)
        stream = tcp.makefile("rb")
        return stream.read(struct.unpack("!H", stream.read(2))[0])

for number in range(1, times + 1):
    query = struct.pack("!HHHHHH", number, 0x100, 1, 0, 0, 0) + question
    for ask in (by_udp, by_tcp):
        try:
            answer = ask()
            print(*(addresses(answer) if answer[:2] == query[:2] else ["another"]))
        except (OSError, struct.error):
            print("lost")
            lost += 1
            if lost == 5:
                sys.exit()
"""


def put(bed):
    labels = {"k8s-app": "kube-dns"}
    account = {"name": "coredns", "namespace": "kube-system"}
    rules = [{"apiGroups": [""], "resources": ["endpoints", "services", "pods", "namespaces"], "verbs": READ},
             {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": READ}]
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:coredns"}
    slow = {"timeoutSeconds": 10, "failureThreshold": 10}
    container = {"name": "coredns", "image": "dns:lab", "imagePullPolicy": "Never", "args": ["-conf", "/etc/coredns/Corefile"],
                 "volumeMounts": [{"name": "config", "mountPath": "/etc/coredns"}],
                 "readinessProbe": {"httpGet": {"path": "/ready", "port": 8181}, **slow}, "livenessProbe": {"httpGet": {"path": "/health", "port": 8080}, **slow}}
    pod = {"metadata": {"labels": labels}, "spec": {
        "serviceAccountName": "coredns", "dnsPolicy": "Default", "terminationGracePeriodSeconds": 1, "containers": [container],
        "volumes": [{"name": "config", "configMap": {"name": "coredns"}}]}}
    items = [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account},
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": role["name"]}, "rules": rules},
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": role["name"]}, "roleRef": role,
         "subjects": [{"kind": "ServiceAccount", **account}]},
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": account, "data": {"Corefile": COREFILE}},
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": account, "spec": {"replicas": 1, "selector": {"matchLabels": labels}, "template": pod}},
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "kube-dns", "namespace": "kube-system"}, "spec": {
            "selector": labels, "clusterIP": DNS_ADDRESS,
            "ports": [{"name": name.lower(), "port": 53, "protocol": name} for name in ("UDP", "TCP")]}}]
    bed.apply(*items)
    return items


def names_of_services_are_found(bed):
    """From the node and from every pod on it, by UDP and by TCP; the DNS itself finds the API server by its Service. Once it was answered, nobody loses one of many questions."""
    items = put(bed)
    bed.wait("the DNS is ready", lambda: len(ready_pods(bed, "-n", "kube-system", "-l", "k8s-app=kube-dns")) == 1)
    expected = [web_addresses(bed)[0]] * 2
    for i in range(1, bed.nodes + 1):
        bed.put(i, f"{net.RUN}/n{i}/ask.py", ASK)
        asking = f"/usr/bin/python3 -B {net.RUN}/n{i}/ask.py {DNS_ADDRESS} web.default.svc.cluster.local {{}} {{}} {{}}"
        spaces = [None, *bed.on(i, "ls /run/netns").split()]
        that(len(spaces) > 1, "no pod on node", i)
        for space in spaces:
            script = f"nsenter --net=/run/netns/{space} {asking}" if space else asking
            bed.wait(f"node {i}, {space or 'itself'}", lambda i=i, script=script: bed.on(i, f"{script.format(1, 10, 10)}; true").split() == expected, 300)
            said = bed.on(i, f"{script.format(MANY, PATIENCE[bed.kind], LATEST[bed.kind])}; true", timeout=60 + 2 * MANY * PATIENCE[bed.kind]).split()
            that(said == expected * MANY, f"node {i}, {space or 'itself'}: of {len(said)} questions {said.count('lost')} were lost; answers:", sorted(set(said)))
    bed.kubectl("delete", "-f", "-", text_in=json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
    bed.wait("the DNS is gone", lambda: not any(condition(pod, "Ready") for pod in bed.get("pods", "-n", "kube-system", "-l", "k8s-app=kube-dns")["items"]))
