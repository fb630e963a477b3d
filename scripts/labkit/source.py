"""Where the agents of the lab get their cluster from: a directory of manifests, or an API server.

Both are used in the same way: `nodes`, then `put` a Service with its pods, `put` it again when its pods change,
`delete` it. With manifests the lab itself plays the endpoint-slice controller; with an API server the real one works.
"""
import base64
import contextlib
import json
import os

from . import net, objects, outside, own
from .api import Api, ApiError


class Manifests:
    """Objects in files: `nodes.json`, and one file for each Service with its slices."""
    name = "manifests"

    def __init__(self, folder=f"{net.RUN}/manifests", families="46"):
        self.folder, self.families = folder, families
        os.makedirs(folder, exist_ok=True)

    def flags(self, _node):
        return ["--manifests", self.folder]

    def nodes(self, plan, numbers=None, families=None, annotations=None, labels=None, changes=None):
        """The Node objects of all nodes, or of some, which have addresses and pods of these families, the cluster's unless given; {number: annotations},
        {number: labels}, {number: what changes the object otherwise}."""
        notes, more = annotations or {}, labels or {}
        nodes = {i: objects.node(plan, i, families or self.families, notes.get(i), more.get(i)) for i in numbers or range(1, plan.nodes + 1)}
        for i, change in (changes or {}).items():
            change(nodes[i])
        self.write("nodes", list(nodes.values()))

    def put(self, service):
        self.write(service.name, [objects.service(service), *objects.slices(service)])

    def delete(self, service):
        os.unlink(f"{self.folder}/{service.name}.json")

    def told(self, _service):
        """What agents are told of a Service, for who waits for one to do it."""
        return "its manifest is written"

    def apply(self, name, items):
        """Puts objects of any kind there, together under a name."""
        self.write(name, items)

    def withdraw(self, name):
        os.unlink(f"{self.folder}/{name}.json")

    def write(self, name, items):
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": items}, indent=1)
        # Written aside: a file that is half there must not be seen under its name.
        own.write(f"{net.RUN}/{name}.manifest", text)
        os.rename(f"{net.RUN}/{name}.manifest", f"{self.folder}/{name}.json")

    def close(self):
        for name in os.listdir(self.folder):
            os.unlink(f"{self.folder}/{name}")


class Cluster:
    """Objects in a real API server, which nodes reach as https://192.0.2.100:6443, or by its IPv6 address where the cluster has no IPv4; the lab plays kubelet."""
    name = "api"

    def __init__(self, facts):
        self.api = Api(facts)
        self.facts = facts
        self.services_of = {}  # pod: names of its Services
        self.leaving = set()  # pods that terminate
        self.unready = set()  # pods whose readiness probe fails
        self.made = []
        self.applied = {}  # what was put there by `apply`, by name

    def flags(self, node):
        path = f"{net.RUN}/kubeconfig"
        if not os.path.exists(path):
            host = net.CONTROL[0] if "4" in self.facts["families"] else f"[{net.CONTROL[1]}]"
            own.write(path, kubeconfig(f"https://{host}:6443", self.facts["agent_token"], self.facts["authority"]), 0o600)
        return ["--kubeconfig", path]

    def nodes(self, plan, annotations=None, labels=None):
        families = self.facts["families"]
        for i in range(1, plan.nodes + 1):
            path = f"/api/v1/nodes/node{i}"
            self.api.put("/api/v1/nodes", objects.node(plan, i, families, (annotations or {}).get(i), (labels or {}).get(i)))
            self.api.patch(f"{path}/status", {"status": objects.node_status(plan, i, families)})
            if path not in self.made:
                self.made.append(path)

    def put(self, service):
        base = f"/api/v1/namespaces/{objects.NAMESPACE}"
        self.terminate(base, service)
        for pod in [p for p, names in self.services_of.items() if service.name in names and p not in (*service.pods, *service.leaving, *service.unready)]:
            self.services_of[pod].remove(service.name)
            self.api.patch(f"{base}/pods/{pod}", {"metadata": {"labels": {f"lab/{service.name}": None}}})
        for pod in (*service.pods, *service.unready):
            self.put_pod(base, pod, service.name)
            if (pod in service.unready) != (pod in self.unready):
                self.api.patch(f"{base}/pods/{pod}/status", {"status": objects.pod_status(pod, pod not in service.unready)})
                self.unready ^= {pod}
        made = objects.service(service)
        self.api.put(f"{base}/services", made)
        if service.balancer_ips:
            self.api.patch(f"{base}/services/{service.name}/status", {"status": made["status"]})
        self.made.append(f"{base}/services/{service.name}")

    def terminate(self, base, service):
        """Begins to end the pods that leave a Service, and takes those away that have left it."""
        for pod in self.leaving - set(service.leaving):
            self.api.delete(f"{base}/pods/{pod}?gracePeriodSeconds=0")
            self.leaving.remove(pod)
            del self.services_of[pod]
            self.made.remove(f"{base}/pods/{pod}")
        for pod in set(service.leaving) - self.leaving:
            self.api.delete(f"{base}/pods/{pod}")  # a kubelet would let it go; nobody does here
            self.leaving.add(pod)

    def apply(self, name, items):
        """Puts objects there: a pod that exists gets labels beside those it has."""
        for item in items:
            meta, kind = item["metadata"], item["kind"]
            if kind == "Pod" and meta["name"] in self.services_of:
                self.api.patch(self.path_of(item), {"metadata": {"labels": meta["labels"]}})
                continue
            self.api.put(os.path.dirname(self.path_of(item)), item)
            if "status" in item:
                self.api.patch(f"{self.path_of(item)}/status", {"status": item["status"]})
            paths = self.applied.setdefault(name, [])
            if self.path_of(item) not in paths:
                paths.append(self.path_of(item))

    def withdraw(self, name):
        for path in self.applied.pop(name, []):
            self.api.delete(path + ("?gracePeriodSeconds=0" if "/pods/" in path else ""))

    @staticmethod
    def path_of(item):
        group, plural = {
            "Pod": ("/api/v1", "pods"), "Service": ("/api/v1", "services"), "EndpointSlice": ("/apis/discovery.k8s.io/v1", "endpointslices"),
            "NetworkPolicy": ("/apis/networking.k8s.io/v1", "networkpolicies"),
            "ServiceCIDR": ("/apis/networking.k8s.io/v1", "servicecidrs")}[item["kind"]]
        namespace = item["metadata"].get("namespace")
        return f"{group}/{f'namespaces/{namespace}/' if namespace else ''}{plural}/{item['metadata']['name']}"

    def put_pod(self, base, pod, service):
        if pod not in self.services_of:
            self.services_of[pod] = {service}
            self.api.put(f"{base}/pods", objects.pod(pod, [service]))
            self.api.patch(f"{base}/pods/{pod}/status", {"status": objects.pod_status(pod)})
            self.made.append(f"{base}/pods/{pod}")
        elif service not in self.services_of[pod]:
            self.services_of[pod].add(service)
            self.api.patch(f"{base}/pods/{pod}", {"metadata": {"labels": {f"lab/{service}": "yes"}}})

    def delete(self, service):
        self.api.delete(f"/api/v1/namespaces/{objects.NAMESPACE}/services/{service.name}")

    def close(self):
        for path in reversed(self.made):
            try:
                self.api.delete(path + ("?gracePeriodSeconds=0" if "/pods/" in path else ""))
            except ApiError as error:
                if error.status != 404:
                    raise
        self.made.clear()
        self.services_of.clear()
        self.unready.clear()
        with contextlib.suppress(FileNotFoundError):  # the next cluster here has another authority
            os.unlink(f"{net.RUN}/kubeconfig")

    def slices(self, service):
        """(the addresses that the controller calls ready in a Service's slices, the names of their ports)"""
        path = f"/apis/discovery.k8s.io/v1/namespaces/{objects.NAMESPACE}/endpointslices?labelSelector=kubernetes.io/service-name%3D{service.name}"
        items = self.api.get(path)["items"]
        endpoints = [endpoint for item in items for endpoint in item["endpoints"] or []]
        ready = sorted(a for endpoint in endpoints if endpoint["conditions"].get("ready") for a in endpoint["addresses"])
        return ready, {port["name"] for item in items for port in item["ports"] or []}

    def told(self, service):
        """What agents are told of a Service, for who waits for one to do it."""
        try:
            return f"ready in its slices: {' '.join(self.slices(service)[0]) or 'none'}"
        except (OSError, ApiError) as error:
            return f"the API server does not say what its slices are: {error}"

    def wait_for_slices(self, service, seconds=240):
        """Until the controller has made of a Service what its pods and the names of its ports are. After an outage of the API server that may take minutes: it tries
        again after up to a minute, then refuses to work on what its own caches do not have yet, and doubles its delay each time."""
        want = sorted(net.pod_address(p, f) for f in service.families for p in service.pods), {service.port_name(port) for port in service.ports}
        if not own.wait(lambda: self.slices(service) == want, seconds, 0.2):
            raise own.LabError(f"the controller made no slices for {service.name} within {seconds} s: {self.told(service)}")

    def stop_server(self):
        """Stops the API server itself, on the machine; etcd and the controllers stay."""
        outside.control(self.facts["control"], self.facts["token"], "stop")

    def start_server(self):
        outside.control(self.facts["control"], self.facts["token"], "start")
        if not own.wait(self.api.is_ready, 60, 0.3):
            raise own.LabError("the API server did not come back within 60 s")


def kubeconfig(server, token, authority):
    """A kubeconfig as JSON, which is YAML too. `authority` is the PEM of who signed the server's certificate."""
    authority = base64.b64encode(authority.encode()).decode()
    return json.dumps({
        "apiVersion": "v1", "kind": "Config", "current-context": "lab",
        "clusters": [{"name": "lab", "cluster": {"server": server, "certificate-authority-data": authority}}],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab"}}],
        "users": [{"name": "lab", "user": {"token": token}}]}, indent=1)
