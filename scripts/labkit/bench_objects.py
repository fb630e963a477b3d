"""The objects of the benchmarks: Services with one port and one address, and one slice with their endpoints each."""
import base64
import concurrent.futures
import http.client
import ipaddress
import json
import threading

from . import own
from .api import Api, ApiError

NAMESPACE = "bench"
FIRST_SERVICE = int(ipaddress.IPv4Address("10.96.1.0"))
FIRST_POD = int(ipaddress.IPv4Address("10.244.0.1"))
SERVICES = f"/api/v1/namespaces/{NAMESPACE}/services"
SLICES = f"/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices"
CONNECTIONS = 8
# An API server counts all addresses that it has given with each one that it gives, so of more Services than this the first ones are written by it, and the
# others, with their addresses, into its store.
BY_THE_SERVER = 2_000
# Operations in one transaction of etcd.
TOGETHER = 120
# Numbers of endpoints that take the place of others begin there; no Service has as many at its start.
ANOTHER = 1000


def name(index):
    return f"service-{index:05}"


def address(index):
    """Of a Service."""
    return str(ipaddress.IPv4Address(FIRST_SERVICE + index))


def pod(index, number):
    """The address of an endpoint."""
    return str(ipaddress.IPv4Address(FIRST_POD + (index * 7 + number) % 60000))


def service(index):
    return {
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name(index), "namespace": NAMESPACE, "labels": {"app": name(index)},
                     "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"type": "ClusterIP", "clusterIP": address(index), "clusterIPs": [address(index)], "ipFamilies": ["IPv4"],
                 "ipFamilyPolicy": "SingleStack", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
                 "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080}]},
        "status": {"loadBalancer": {}},
    }


def slice_of(index, endpoints, turn=0, numbers=None):
    """`turn` 0 is the slice at the start; every other one has another address in place of the first. Or with endpoints of these numbers."""
    numbers = numbers or ([*range(endpoints)] if turn == 0 else [*range(1, endpoints), ANOTHER + turn])
    return {
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": f"{name(index)}-a", "namespace": NAMESPACE,
                     "labels": {"kubernetes.io/service-name": name(index),
                                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io"}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
        "endpoints": [{
            "addresses": [pod(index, number)],
            "conditions": {"ready": True, "serving": True, "terminating": False},
            "nodeName": f"node{2 + number % 5}",
            "targetRef": {"kind": "Pod", "namespace": NAMESPACE, "name": f"{name(index)}-{number}",
                          "uid": f"00000000-0000-4000-8000-{index:08}{number:04}"},
        } for number in numbers],
    }


def node(address):
    return {
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "node1", "labels": {"kubernetes.io/hostname": "node1"}},
        "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24"]},
        "status": {"addresses": [{"type": "InternalIP", "address": address}, {"type": "Hostname", "address": "node1"}]},
    }


def fill(facts, services, endpoints):
    """Puts everything but the Node into a new API server, over several connections."""
    Api(facts).put("/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
    own_api = threading.local()

    def put(index):
        if not hasattr(own_api, "api"):
            own_api.api = Api(facts)
        own_api.api.request("POST", SERVICES, service(index))
        own_api.api.request("POST", SLICES, slice_of(index, endpoints))

    with concurrent.futures.ThreadPoolExecutor(CONNECTIONS) as pool:
        list(pool.map(put, range(min(services, BY_THE_SERVER))))
    if services > BY_THE_SERVER:
        store(facts, services, endpoints)


def store(facts, services, endpoints):
    """Writes Services, their addresses and slices into the API server's etcd, as it would; the server reads JSON there as well as its own form."""
    connection = http.client.HTTPConnection("127.0.0.1", facts["etcd"], timeout=60)
    texts = [pair for index in range(BY_THE_SERVER, services) for pair in stored(index, endpoints)]
    for first in range(0, len(texts), TOGETHER):
        puts = [{"request_put": {"key": coded(key), "value": coded(json.dumps(value))}} for key, value in texts[first:first + TOGETHER]]
        connection.request("POST", "/v3/kv/txn", json.dumps({"success": puts}), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
        if answer.status != 200 or not json.loads(text).get("succeeded"):
            raise own.LabError(f"etcd took no objects: {answer.status} {text[:200]}")
    api = Api(facts)
    # The server has all of them once its cache has the last one.
    last = f"{SLICES}/{name(services - 1)}-a?resourceVersion=0"
    if not own.wait(lambda: is_there(api, last), 300, 1):
        raise own.LabError("the API server does not know what was written into its store")


def stored(index, endpoints):
    """[(key, object)] of one Service: its address first, because a server that finds none gives one."""
    address_of = {"apiVersion": "networking.k8s.io/v1", "kind": "IPAddress",
                  "metadata": {"name": address(index), "labels": {"ipaddress.kubernetes.io/ip-family": "IPv4", "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io"}},
                  "spec": {"parentRef": {"group": "", "resource": "services", "namespace": NAMESPACE, "name": name(index)}}}
    made = [(f"/registry/ipaddresses/{address(index)}", address_of),
            (f"/registry/services/specs/{NAMESPACE}/{name(index)}", service(index)),
            (f"/registry/endpointslices/{NAMESPACE}/{name(index)}-a", slice_of(index, endpoints))]
    for number, (_, item) in enumerate(made):
        item["metadata"] |= {"uid": f"00000000-0000-4000-9000-{index:08}{number:04}", "creationTimestamp": "2026-01-01T00:00:00Z"}
    return made


def coded(text):
    return base64.b64encode(text.encode()).decode()


def is_there(api, path):
    try:
        return api.get(path)
    except ApiError as error:
        if error.status != 404:
            raise
        return None
