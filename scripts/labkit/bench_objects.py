"""The objects of the benchmarks: Services with one port and one address, and one slice with their endpoints each."""
import concurrent.futures
import ipaddress
import threading

from .api import Api

NAMESPACE = "bench"
FIRST_SERVICE = int(ipaddress.IPv4Address("10.96.1.0"))
FIRST_POD = int(ipaddress.IPv4Address("10.244.0.1"))
SERVICES = f"/api/v1/namespaces/{NAMESPACE}/services"
SLICES = f"/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices"
CONNECTIONS = 8
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
        list(pool.map(put, range(services)))
