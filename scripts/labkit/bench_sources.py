"""Where the proxy that is measured has its Services from: a directory of manifests, or a real API server.

Both are changed in the same ways: `renew` one Service, `renew_many` at a pace, `roll` many at once, and `repeat`, after which everything is read
anew. An API server is written to by the keeper of the cluster, on the machine itself, as soon as it is about more than one object: the processor
of a guest would not do.
"""
import json
import os
import shutil
import time

from . import bench_objects, net, outside, own
from .api import Api
from .bench import ADDRESS, NODE
from .place import OUTSIDE
from .source import kubeconfig

# Writes of one wave, between which the keeper looks at the clock.
WAVE = 50
# Addresses of a rolling update begin there; single changes take those before.
ROLLED = 20_000


class Source:
    """`turn` counts the changes, so that each brings addresses that no Service had before."""

    def __init__(self, plan):
        self.plan, self.turn = plan, plan.get("turn", 0)

    def of(self, index, turn):
        return bench_objects.slice_of(index, self.plan["endpoints"], turn)

    def rolled(self, index):
        """With other endpoints, all of them."""
        return bench_objects.slice_of(index, self.plan["endpoints"], numbers=range(ROLLED, ROLLED + self.plan["endpoints"]))

    def renew(self, index):
        """One endpoint of a Service goes and another one comes."""
        self.turn += 1
        self.put(index, self.of(index, self.turn))

    def turns(self):
        """Two states in turn: the kernel keeps what was deleted for minutes, and finds few such destinations if they come back."""
        self.turn += 2
        return self.turn - 1, self.turn


class Manifests(Source):
    def __init__(self, plan):
        super().__init__(plan)
        self.folder = f"{net.RUN}/bench-manifests"
        shutil.rmtree(self.folder, ignore_errors=True)
        os.makedirs(self.folder)
        self.flags = ["--manifests", self.folder]
        self.apply("nodes", [bench_objects.node(ADDRESS)])
        for index in range(plan["services"]):
            self.put(index, self.of(index, 0))

    def reach(self):
        """Files need no way to them."""

    def put(self, index, made):
        self.apply(bench_objects.name(index), [bench_objects.service(index), made])

    def apply(self, name, items):
        self.replace(name, self.text(items).encode())

    def withdraw(self, name):
        os.unlink(f"{self.folder}/{name}.{self.plan['format']}")

    def text(self, items):
        if self.plan["format"] == "json":
            return "\n".join(json.dumps(item) for item in items)
        return "".join("---\n" + yaml(item) for item in items)

    def replace(self, name, text):
        """As a whole: what is half there must not be seen."""
        aside = f"{net.RUN}/bench.manifest"
        handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.write(handle, text)
        os.close(handle)
        os.rename(aside, f"{self.folder}/{name}.{self.plan['format']}")

    def all_of(self, indices, made):
        return [(bench_objects.name(index), self.text([bench_objects.service(index), made(index)]).encode()) for index in indices]

    def renew_many(self, indices, per_second, seconds):
        """A function that does it."""
        texts = [pair for turn in self.turns() for pair in self.all_of(indices, lambda index: self.of(index, turn))]

        def write():
            began, count = time.monotonic(), 0
            while count < per_second * seconds and time.monotonic() < began + seconds:
                self.replace(*texts[count % len(texts)])
                count += 1
                time.sleep(max(0.0, began + count / per_second - time.monotonic()))
            return {"writes": count, "seconds": time.monotonic() - began, "ended": time.time()}
        return write

    def roll(self, indices):
        texts = self.all_of(indices, self.rolled)

        def write():
            began = time.monotonic()
            for pair in texts:
                self.replace(*pair)
            return {"writes": len(texts), "seconds": time.monotonic() - began, "ended": time.time()}
        return write

    def repeat(self):
        """All files are written again as they are."""
        for name in os.listdir(self.folder):
            with open(f"{self.folder}/{name}", "rb") as handle:
                text = handle.read()
            self.replace(name.rsplit(".", 1)[0], text)


class Cluster(Source):
    def __init__(self, plan):
        super().__init__(plan)
        self.facts = plan["cluster"]
        self.api = Api(self.facts)
        self.api.put("/api/v1/nodes", bench_objects.node(ADDRESS))
        self.api.patch("/api/v1/nodes/node1/status", {"status": bench_objects.node(ADDRESS)["status"]})
        self.path = f"{net.RUN}/bench-kubeconfig"
        self.flags = ["--kubeconfig", self.path]

    def reach(self):
        token = self.facts["token" if "peer" in self.plan else "agent_token"]
        own.write(self.path, kubeconfig(f"https://{way_to(self.facts['port'])}", token, self.facts["authority"]), 0o600)

    def put(self, index, made):
        self.api.patch(f"{bench_objects.SLICES}/{made['metadata']['name']}", {"endpoints": made["endpoints"]})

    def apply(self, _name, items):
        for item in items:
            self.api.put(self.collection(item), item)
        self.applied = items

    def withdraw(self, _name):
        for item in self.applied:
            self.api.delete(f"{self.collection(item)}/{item['metadata']['name']}")

    @staticmethod
    def collection(item):
        return bench_objects.SLICES if item["kind"] == "EndpointSlice" else bench_objects.SERVICES

    def order(self, waves, **more):
        """What the keeper said, with the moment at which it did."""
        found = outside.order(self.facts["control"], self.facts["token"], {"waves": waves, **more})
        if found["refused"]:
            raise own.LabError(f"the API server refused writes: {found['refused']}")
        return {**found, "ended": time.time()}

    @staticmethod
    def patch(made, patch):
        return ["PATCH", f"{bench_objects.SLICES}/{made['metadata']['name']}", patch, "application/json-patch+json"]

    def renew_many(self, indices, per_second, seconds):
        def one(index, turn):
            made = self.of(index, turn)
            return self.patch(made, [{"op": "replace", "path": "/endpoints/0/addresses/0", "value": made["endpoints"][-1]["addresses"][0]}])
        tasks = [one(index, turn) for turn in self.turns() for index in indices]
        waves = [tasks[first:first + WAVE] for first in range(0, len(tasks), WAVE)]
        return lambda: self.order(waves, every=WAVE / per_second, seconds=seconds)

    def roll(self, indices):
        made = [self.rolled(index) for index in indices]
        tasks = [self.patch(one, [{"op": "replace", "path": "/endpoints", "value": one["endpoints"]}]) for one in made]
        return lambda: self.order([tasks])

    def repeat(self):
        """The server crashes and comes back. It has no memory of what was before: a watch from then is refused, and everything listed anew. (One
        that ends in peace takes its own endpoint away, which would be a change.)"""
        self.api.patch("/api/v1/nodes/node1", {"metadata": {"annotations": {"bench/repeated": str(time.time())}}})
        outside.control(self.facts["control"], self.facts["token"], "crash")
        outside.control(self.facts["control"], self.facts["token"], "start")
        if not own.wait(self.api.is_ready, 120, 0.2):
            raise own.LabError("the API server did not come back within two minutes")


def way_to(port):
    """The address by which the node reaches a port of the machine's loopback. In a guest the kernel forwards, because a
    relay of ours would share the two processors with what is measured."""
    if os.environ.get(OUTSIDE):
        return f"{net.CONTROL[0]}:6443"
    net.ip(None, f"link add machine type veth peer name machine netns n{NODE}", "addr add 198.18.0.1/30 dev machine", "link set machine up")
    net.ip(f"n{NODE}", "addr add 198.18.0.2/30 dev machine", "link set machine up", "route add 10.0.2.2 via 198.18.0.1")
    with open("/proc/sys/net/ipv4/ip_forward", "w") as handle:
        handle.write("1")
    own.run("/usr/sbin/iptables", "-t", "nat", "-F", "POSTROUTING")
    own.run("/usr/sbin/iptables", "-t", "nat", "-A", "POSTROUTING", "-s", "198.18.0.0/30", "-j", "MASQUERADE")
    return f"10.0.2.2:{port}"


def yaml(value, indent=0):
    """Block style, as people write it."""
    pad = " " * indent
    if isinstance(value, dict):
        lines = []
        for key, inner in value.items():
            if inner and isinstance(inner, (dict, list)):
                lines.append(f"{pad}{key}:\n{yaml(inner, indent + (2 if isinstance(inner, dict) else 0))}")
            else:
                lines.append(f"{pad}{key}: {json.dumps(inner)}\n")
        return "".join(lines)
    return "".join(f"{pad}- {yaml(item, indent + 2).lstrip()}" if isinstance(item, dict) else f"{pad}- {json.dumps(item)}\n" for item in value)
