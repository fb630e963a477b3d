"""Kubernetes objects of the lab, as the API server would give them out: Node, Service, EndpointSlice, Pod."""
import dataclasses
import zlib

from . import net

NAMESPACE = "default"
TARGET = 8080  # where every pod of the lab answers


@dataclasses.dataclass
class Port:
    """One entry of `spec.ports`."""
    port: int
    protocol: str = "TCP"
    node_port: int = 0
    target: int = TARGET
    name: str = ""


@dataclasses.dataclass
class Service:
    """A Service of the lab and the pods behind it. `number` gives its addresses: 10.96.1.N and fd00:10:96::1:N."""
    name: str
    number: int
    pods: list
    ports: list = dataclasses.field(default_factory=lambda: [Port(80)])
    families: str = "46"
    kind: str = "ClusterIP"
    annotations: dict = dataclasses.field(default_factory=dict)
    affinity: int = 0  # seconds of ClientIP affinity
    external_ips: list = dataclasses.field(default_factory=list)
    balancer_ips: list = dataclasses.field(default_factory=list)
    source_ranges: list = dataclasses.field(default_factory=list)
    internal_policy: str = "Cluster"
    external_policy: str = "Cluster"
    leaving: list = dataclasses.field(default_factory=list)  # pods that terminate and still serve
    unready: list = dataclasses.field(default_factory=list)  # pods whose readiness probe fails
    health_port: int = 0  # healthCheckNodePort
    near: str = ""  # "Zone" or "Node": PreferSameZone or PreferSameNode, with the hints that the endpoint-slice controller writes

    def address(self, family="4"):
        return f"10.96.1.{self.number}" if family == "4" else f"fd00:10:96::1:{self.number:x}"

    def port_name(self, port):
        return port.name or f"{port.protocol.lower()}-{port.port}"


def service(s):
    spec = {
        "type": s.kind,
        "clusterIP": s.address(s.families[0]),
        "clusterIPs": [s.address(f) for f in s.families],
        "ipFamilies": [f"IPv{f}" for f in s.families],
        "ipFamilyPolicy": "RequireDualStack" if len(s.families) == 2 else "SingleStack",
        "internalTrafficPolicy": s.internal_policy,
        "ports": [port_entry(s, p) for p in s.ports],
        "selector": {f"lab/{s.name}": "yes"},
        "sessionAffinity": "None",
    }
    if s.kind != "ClusterIP" or s.external_ips:
        spec["externalTrafficPolicy"] = s.external_policy
    if s.affinity:
        spec["sessionAffinity"] = "ClientIP"
        spec["sessionAffinityConfig"] = {"clientIP": {"timeoutSeconds": s.affinity}}
    if s.external_ips:
        spec["externalIPs"] = s.external_ips
    if s.health_port:
        spec["healthCheckNodePort"] = s.health_port
    if s.near:
        spec["trafficDistribution"] = f"PreferSame{s.near}"
    if s.source_ranges:
        spec["loadBalancerSourceRanges"] = s.source_ranges
    meta = {"name": s.name, "namespace": NAMESPACE, "annotations": s.annotations}
    return {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": spec, "status": balancer_status(s)}


def port_entry(s, p):
    entry = {"name": s.port_name(p), "port": p.port, "protocol": p.protocol, "targetPort": p.target}
    return {**entry, "nodePort": p.node_port} if p.node_port else entry


def balancer_status(s):
    return {"loadBalancer": {"ingress": [{"ip": a, "ipMode": "VIP"} for a in s.balancer_ips]} if s.balancer_ips else {}}


def slices(s):
    """The slices that the endpoint-slice controller would make of a Service: one for each family."""
    ready, terminating = ({"ready": not leaves, "serving": True, "terminating": leaves} for leaves in (False, True))
    unready = {"ready": False, "serving": False, "terminating": False}
    made = []
    for family in s.families:
        suffix = f"{zlib.crc32((s.name + family).encode()) % 46656:05d}"
        made.append({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": f"IPv{family}",
            "metadata": {"name": f"{s.name}-{suffix}", "namespace": NAMESPACE, "labels": {
                "kubernetes.io/service-name": s.name, "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io"}},
            "ports": [{"name": s.port_name(p), "port": p.target, "protocol": p.protocol} for p in s.ports],
            "endpoints": [{
                "addresses": [net.pod_address(pod, family)], "nodeName": node_of(pod), "zone": zone_of(node_of(pod)),
                **({"hints": hints(s, node_of(pod))} if s.near else {}),
                "conditions": conditions, "targetRef": {"kind": "Pod", "name": pod, "namespace": NAMESPACE}}
                for conditions, pods in ((ready, s.pods), (terminating, s.leaving), (unready, s.unready)) for pod in pods],
        })
    return made


def hints(s, node_name):
    """PreferSameNode comes with both sorts, so that those who do not know hints for nodes have those for zones."""
    zones = {"forZones": [{"name": zone_of(node_name)}]}
    return zones if s.near == "Zone" else {**zones, "forNodes": [{"name": node_name}]}


def node_of(pod):
    """The name of the node that a pod of the lab runs on: n2p1 is on node2."""
    return "node" + pod[1:].split("p")[0]


def zone_of(node_name):
    return "zone-a" if node_name == "node1" else "zone-b"


def node(plan, i, families="46", annotations=None, labels=None):
    ranges = [r for r in plan.pod_ranges(i) if family_of(r) in families]
    return {
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": f"node{i}", "labels": {"kubernetes.io/hostname": f"node{i}", "topology.kubernetes.io/zone": zone_of(f"node{i}"), **(labels or {})},
                     "annotations": annotations or {}},
        "spec": {"podCIDR": ranges[0], "podCIDRs": ranges},
        "status": node_status(plan, i, families),
    }


def family_of(address):
    return "6" if ":" in address else "4"


def node_status(plan, i, families="46"):
    addresses = [{"type": "InternalIP", "address": a} for a in plan.addresses(i) if family_of(a) in families]
    return {"addresses": [*addresses, {"type": "Hostname", "address": f"node{i}"}],
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "the lab plays kubelet"}]}


def pod(name, services):
    labels = {f"lab/{s}": "yes" for s in services}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": NAMESPACE, "labels": labels},
            "spec": {"nodeName": node_of(name), "containers": [{"name": "main", "image": "lab", "ports": [{"containerPort": TARGET}]}],
                     "terminationGracePeriodSeconds": 5, "automountServiceAccountToken": False}}


def pod_status(name, ready=True):
    addresses = net.pod_addresses(name)
    state = "True" if ready else "False"
    return {"phase": "Running", "podIP": addresses[0], "podIPs": [{"ip": a} for a in addresses],
            "conditions": [{"type": t, "status": state} for t in ("Ready", "ContainersReady")]}
