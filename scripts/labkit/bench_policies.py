"""The objects of the firewall's benchmark: pods in fifty namespaces, twenty applications in each, and policies for them.

Pods 0 to 109 are node 1's. Policy i selects application i / 50 of namespace i % 50, so that ten policies select ten of these pods,
three hundred all of them, and of a thousand most select pods of other nodes. Two pods are real, with a network namespace: pod 0, which policy 0 selects, and a client in a
namespace without policies.
"""
import concurrent.futures
import ipaddress
import threading

from . import net
from .api import Api, ApiError

NAMESPACES, APPS, LOCAL = 50, 20, 110
APP = "app.kubernetes.io/name"
SERVER, CLIENT = "n1p1", "n1p2"
CLIENTS = "clients"
NUMBER, METRICS = 8080, 9090  # the ports of every pod, by name `http` and `metrics`
FIRST = int(ipaddress.IPv4Address("10.244.2.0")), int(ipaddress.IPv6Address("fd00:10:244:2::"))
CONNECTIONS = 8


def namespace(index):
    return f"namespace-{index % NAMESPACES:02}"


def application(index):
    return index // NAMESPACES % APPS


def name(index):
    """As long as names of real pods are."""
    return f"app-{application(index)}-checkout-{application(index) * 7919:010x}-{index:05x}"


def addresses(index):
    if index == 0:
        return net.pod_addresses(SERVER)
    if index < LOCAL:
        return [f"10.244.1.{index + 9}", f"fd00:10:244:1::{index + 9:x}"]
    return [str(ipaddress.ip_address(first + index)) for first in FIRST]


def pod(index, app=None):
    app = application(index) if app is None else app
    labels = {APP: f"app-{app}", "app.kubernetes.io/part-of": "shop", "app.kubernetes.io/instance": f"instance-{app}",
              "pod-template-hash": f"{app * 7919:010x}", "tier": "back" if app % 2 else "front"}
    node = "node1" if index < LOCAL else f"far-{index // LOCAL:04}"
    return made(namespace(index), name(index), labels, node, addresses(index))


def client(app):
    return made(CLIENTS, "client", {APP: app}, "node1", net.pod_addresses(CLIENT))


def made(space, name, labels, node, addresses):
    ports = [{"name": word, "containerPort": number, "protocol": "TCP"} for word, number in (("http", NUMBER), ("metrics", METRICS))]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": space, "labels": labels},
            "spec": {"nodeName": node, "containers": [{"name": "main", "image": "registry.example/shop/main:1.2.3", "ports": ports}],
                     "terminationGracePeriodSeconds": 0, "automountServiceAccountToken": False},
            "status": {"phase": "Running", "hostIP": "192.0.2.11" if node == "node1" else "192.0.2.99", "podIP": addresses[0],
                       "podIPs": [{"ip": address} for address in addresses],
                       "conditions": [{"type": "Ready", "status": "True"}]}}


def labelled(app):
    return {"matchLabels": {APP: f"app-{app}"}}


def policy(index):
    app = application(index)
    one = lambda port: [{"protocol": "TCP", "port": port}]  # noqa: E731
    ingress = [
        {"from": [{"podSelector": labelled((app + 1) % APPS)}], "ports": one(NUMBER)},
        {"from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace(index + 1)}}}], "ports": one("http")},
        {"from": [{"namespaceSelector": {}, "podSelector": labelled(0)}], "ports": one("metrics")},
        {"from": [{"ipBlock": {"cidr": "203.0.113.0/24", "except": [f"203.0.113.{app}/32"]}}], "ports": one(NUMBER)}]
    egress = [{"to": [{"namespaceSelector": {}, "podSelector": labelled(1)}], "ports": one("http")},
              {"to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}], "ports": one(443)}]
    return network_policy(namespace(index), f"policy-{index:04}", labelled(app), ingress, egress)


def guard(index, of, step):
    """One of so many policies that all select the server; only the last allows the client. Those of each step are other ones."""
    other = {"podSelector": labelled(APPS + index)}
    peer = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": CLIENTS}}} if index == of - 1 else other
    ports = [{"protocol": "TCP", "port": NUMBER}, {"protocol": "TCP", "port": METRICS}]
    return network_policy(namespace(0), f"guard-{step}-{index:04}", labelled(0), [{"from": [peer], "ports": ports}])


def everybody(index, turn):
    """A policy for all pods of a namespace."""
    peer = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace(index + turn)}}}
    return network_policy(namespace(index), f"everybody-{turn:04}", {}, [{"from": [peer], "ports": [{"protocol": "TCP", "port": NUMBER}]}])


def passing(count):
    """A ClusterNetworkPolicy of the Admin tier with so many rules, each of which passes on what nobody sends: a packet is asked by all of them."""
    rules = [{"name": f"pass-{i}", "action": "Pass", "from": [{"pods": {"podSelector": labelled(2 * APPS + i)}}]} for i in range(count)]
    return {"apiVersion": "policy.networking.k8s.io/v1beta1", "kind": "ClusterNetworkPolicy", "metadata": {"name": "passing"},
            "spec": {"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}, "ingress": rules}}


def cluster_wide(turn):
    """One ClusterNetworkPolicy of the Admin tier that concerns all pods of all namespaces."""
    of = lambda index: [{"namespaces": {"matchLabels": {"kubernetes.io/metadata.name": namespace(index)}}}]  # noqa: E731
    rules = [{"name": "accepted", "action": "Accept", "from": of(turn)}, {"name": "denied", "action": "Deny", "from": of(turn + 1)}]
    return {"apiVersion": "policy.networking.k8s.io/v1beta1", "kind": "ClusterNetworkPolicy", "metadata": {"name": f"cluster-wide-{turn:04}"},
            "spec": {"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}, "ingress": rules}}


def blocks(count):
    """One policy for the server with so many blocks, of which the last is the client's."""
    own = f"{net.pod_addresses(CLIENT)[0]}/32"
    cidrs = [*(f"198.{18 + i // 256 % 2}.{i % 256}.0/25" for i in range(count - 1) if i < 512),
             *(f"203.{i // 256}.{i % 256}.128/25" for i in range(512, count - 1)), own]
    return network_policy(namespace(0), "blocks", labelled(0), [{"from": [{"ipBlock": {"cidr": c}} for c in cidrs]}])


def network_policy(space, name, selector, ingress, egress=None):
    spec = {"podSelector": selector, "policyTypes": ["Ingress"] + (["Egress"] if egress else []), "ingress": ingress}
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": name, "namespace": space},
            "spec": {**spec, **({"egress": egress} if egress else {})}}


def namespaces():
    names = [CLIENTS, *map(namespace, range(NAMESPACES))]
    return [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": n, "labels": {"kubernetes.io/metadata.name": n}}} for n in names]


def node():
    ranges = ["10.244.1.0/24", "fd00:10:244:1::/64"]
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node1", "labels": {"kubernetes.io/hostname": "node1"}},
            "spec": {"podCIDR": ranges[0], "podCIDRs": ranges},
            "status": {"addresses": [{"type": "InternalIP", "address": a} for a in ("192.0.2.11", "2001:db8:2::11")]}}


def collection(item):
    meta = item["metadata"]
    if item["kind"] == "NetworkPolicy":
        return f"/apis/networking.k8s.io/v1/namespaces/{meta['namespace']}/networkpolicies"
    return f"/api/v1/namespaces/{meta['namespace']}/pods"


def fill(facts, items):
    """Puts objects into an API server, over several connections."""
    own_api = threading.local()

    def put(item):
        if not hasattr(own_api, "api"):
            own_api.api = Api(facts)
        try:
            own_api.api.request("POST", collection(item), item)
        except ApiError as error:
            if error.status != 409:
                raise
        if "status" in item:
            own_api.api.patch(f"{collection(item)}/{item['metadata']['name']}/status", {"status": item["status"]})

    with concurrent.futures.ThreadPoolExecutor(CONNECTIONS) as pool:
        list(pool.map(put, items))
