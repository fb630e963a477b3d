"""Services change under load, and no request fails: what kube-proxy promises, in both families, and in one where the cluster has no other.

The pods of these tests end as programs do that end gracefully: once the kernel gives them no new connections they refuse any, and keep
those that they have. Datagrams they answer until they are gone. Connections of the load outlast the pods' places in the slices, so where pods
go the agents give these time (`--ipvs-graceful-termination`); everywhere else they run with the flags that they have by themselves.
"""
import contextlib
import itertools
import json
import os
import signal
import time

import expect
from expect import FAMILIES, PODS
from labkit import kernel, net, objects, outside, own, traffic
from labkit.objects import Port, Service

NEXT = ["n1p2", "n2p2", "n3p2"]
BALANCER = ["198.51.100.60", "2001:db8:51::60"]
FLIPPED = ["198.51.100.61", "2001:db8:51::61"]
MANAGED_BY = "endpointslice.kubernetes.io/managed-by"
PORT = 8082  # of the programs that end; the others of the bed stay


@contextlib.contextmanager
def _programs(pods):
    """One in each pod: {pod: process}."""
    running = {pod: traffic.serve(pod, [("tcp", PORT), ("udp", PORT)]) for pod in pods}
    try:
        yield running
    finally:
        for pid in running.values():
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _becomes(bed, s, pods, leaving=()):
    bed.put(s.name, pods, leaving=list(leaving))
    bed.settle(s)


def _hands_over(bed, s, programs, pods, leaving):
    """Pods terminate while these are ready, and go."""
    _becomes(bed, s, pods, leaving)
    for pod in leaving:
        os.kill(programs[pod], signal.SIGUSR1)
    _becomes(bed, s, pods)
    time.sleep(1)
    for pod in leaving:
        os.kill(programs[pod], signal.SIGUSR2)


def _of(bed, s, family):
    """The cluster address of a Service, of this family or of the cluster's only one."""
    return s.address(expect.family(bed, family))


def _node(bed, i, family):
    """The address of node i, of this family or of the cluster's only one."""
    return expect.of_family(bed, bed.plan.addresses(i), family)


def _ports(number):
    return [Port(80, node_port=number, target=PORT), Port(53, "UDP", target=PORT)]


def all_endpoints_are_replaced_one_after_the_other(bed):
    with expect.graceful(bed), _programs(PODS + NEXT) as programs, expect.service(bed, "rolled", kind="NodePort", ports=_ports(30094)) as s:
        targets = [("n1p3", _of(bed, s, "4"), 80), ("n2p3", _of(bed, s, "6"), 80), ("n3p3", _of(bed, s, "4"), 53, "udp"),
                   ("ext", _node(bed, 1, "6"), 30094), ("ext", _node(bed, 2, "4"), 30094)]
        with expect.load(*targets, pause=0.1, resends=True):
            pods = PODS
            for old, new in zip(PODS, NEXT):
                pods = [*(pod for pod in pods if pod != old), new]
                _becomes(bed, s, [*pods, old])
                _hands_over(bed, s, programs, pods, [old])
        for client, family in (("n1p3", "4"), ("n2p3", "6")):
            expect.share(client, _of(bed, s, family), 80, NEXT)


def the_pods_of_a_node_that_is_drained_hand_over(bed):
    """To those of other nodes; clients come from the same node and from outside by it."""
    pods, leaving = ["n1p1", "n2p1"], ["n3p1", "n3p2"]
    with expect.graceful(bed), _programs(pods + leaving) as programs, expect.service(bed, "drained-node", pods + leaving, kind="NodePort", ports=_ports(30095)) as s:
        targets = [("n3p3", _of(bed, s, "4"), 80), ("n1p3", _of(bed, s, "6"), 80), *(("ext", address, 30095) for address in net.of_families(bed.plan.addresses(3), bed.families))]
        with expect.load(*targets, pause=0.1):
            _hands_over(bed, s, programs, pods, leaving)
        expect.share("n3p3", _of(bed, s, "6"), 80, pods)


def the_only_pod_serves_while_it_terminates_until_another_is_ready(bed):
    with expect.graceful(bed), _programs(["n1p1", "n2p1"]) as programs, expect.service(bed, "only", ["n1p1"], kind="NodePort", ports=_ports(30096)) as s:
        targets = [("n1p3", _of(bed, s, "4"), 80), ("n3p3", _of(bed, s, "6"), 80), ("n2p3", _of(bed, s, "6"), 53, "udp"),
                   ("ext", _node(bed, 3, "4"), 30096)]
        with expect.load(*targets, pause=0.1, resends=True):
            _becomes(bed, s, [], ["n1p1"])
            time.sleep(2)
            _hands_over(bed, s, programs, ["n2p1"], ["n1p1"])
        expect.share("n1p3", _of(bed, s, "6"), 80, ["n2p1"])


def the_last_pod_of_a_node_serves_its_clients_while_it_terminates_although_the_policy_is_local(bed):
    """Load balancers outside need a while until they know that the node is to be left out."""
    with expect.service(bed, "last-local", ["n1p1", "n2p1"], kind="NodePort", external_policy="Local", ports=[Port(80, node_port=30097)]) as s:
        with expect.load(*(("ext", address, 30097) for address in net.of_families(bed.plan.addresses(1), bed.families)), pause=0.1) as outcomes:
            _becomes(bed, s, ["n2p1"], ["n1p1"])
            time.sleep(2)
        expect.that(all(set(outcome["answers"]) == {"n1p1"} for _, outcome in outcomes), "another pod than the local one answered:", outcomes)


def policies_change_and_change_back(bed):
    """Clients outside, and those of the cluster address, on nodes that have an endpoint; those of an external address on one that has none."""
    here = PODS[:2]
    with expect.service(bed, "flipped", here, kind="NodePort", external_ips=net.of_families(FLIPPED, bed.families), ports=[Port(80, node_port=30098)]) as s:
        outside = list(zip(("n1p1", "n2p1"), (_node(bed, 1, "4"), _node(bed, 2, "6"))))
        inside = list(zip(("n1p1", "n2p1"), ("n1p2", "n2p2"), FAMILIES))

        def become(external, internal):
            bed.put(s.name, here, external_policy=external, internal_policy=internal)
            for pod, address in outside:
                expect.soon(lambda: _answer("ext", address, 30098) == ({pod} if external == "Local" else set(here)), 30, address, external)
            for pod, client, family in inside:
                expect.soon(lambda: _answer(client, _of(bed, s, family), 80) == ({pod} if internal == "Local" else set(here)), 30, client, internal)
            for client, address in without:
                expect.soon(lambda: _answer(client, address, 80) == set(here), 30, client, external)

        without = [(client, expect.of_family(bed, FLIPPED, family)) for client, family in (("n3p2", "4"), ("n3", "6"))]
        targets = [*((client, address, 80) for client, address in without), *(("ext", address, 30098) for _, address in outside), *((client, _of(bed, s, family), 80) for _, client, family in inside)]
        with expect.load(*targets, pause=0.1):
            become("Local", "Cluster")
            become("Cluster", "Local")
            become("Cluster", "Cluster")


def _answer(*target):
    """Which pods answer; enough connections for each to have its turn while others ask too."""
    return set(expect.many(*target, count=9)["answers"])


def the_type_changes_and_changes_back(bed):
    balancer = net.of_families(BALANCER, bed.families)
    with expect.service(bed, "typed", ports=[Port(80), Port(53, "UDP")]) as s:
        node_ports = [("ext", address, 30099) for address in (_node(bed, 1, "4"), _node(bed, 2, "6"))]
        with_node_port = [Port(80, node_port=30099), Port(53, "UDP")]

        def become(kind, ports, balancer_ips=()):
            bed.put(s.name, PODS, kind=kind, ports=ports, balancer_ips=list(balancer_ips))
            opened = {30099} if ports is with_node_port else set()
            for i in bed.agents:
                expect.soon(lambda: {p for _, _, p in kernel.ipvs(i)} & {30099} == opened, 30, f"node {i}, type {kind}:", kernel.ipvs(i))
                expect.soon(lambda: {a for _, a, _ in kernel.ipvs(i)} & set(BALANCER) == set(balancer_ips), 30, f"node {i}, type {kind}")

        with expect.load(("n1p2", _of(bed, s, "4"), 80), ("n2p2", _of(bed, s, "6"), 80), ("n3p2", _of(bed, s, "6"), 53, "udp"), pause=0.1):
            become("NodePort", with_node_port)
            with expect.load(*node_ports, pause=0.1):
                become("LoadBalancer", with_node_port, balancer)
                for address in balancer:
                    expect.share("ext", address, 80, PODS)
            become("ClusterIP", [Port(80), Port(53, "UDP")])
        for _, address, port in node_ports:
            expect.silent("ext", address, port)


def a_port_is_renamed(bed):
    """With its endpoints, which an API server's controller renames a moment later: until then nobody serves the new name, with kube-proxy too."""
    with expect.service(bed, "renamed", kind="NodePort", ports=[Port(80, node_port=30100, name="http")]) as s:
        with expect.load(("n1p2", _of(bed, s, "4"), 80), ("n2p2", _of(bed, s, "6"), 80), ("ext", _node(bed, 3, "6"), 30100), pause=0.05):
            for name in ("web", "http", "www", "web"):
                bed.put(s.name, PODS, ports=[Port(80, node_port=30100, name=name)])
                time.sleep(0.5)
        bed.put(s.name, PODS[:2])
        bed.settle(s)  # the new name is followed


a_port_is_renamed.source = "manifests"


def a_port_is_renamed_to_a_name_that_its_endpoints_have_already(bed):
    """Whoever writes slices himself names both ports while the Service goes over."""
    s = Service("both-names", bed.free_number(), PODS, families=bed.families, kind="NodePort", ports=[Port(80, node_port=30102, name="http")])
    bed.source.apply(s.name, _with_port_names(s, "http", "web"))
    try:
        bed.settle(s)
        with expect.load(("n1p2", _of(bed, s, "4"), 80), ("n2p2", _of(bed, s, "6"), 80), ("ext", _node(bed, 3, "6"), 30102), pause=0.05):
            for name in ("web", "http", "web"):
                s.ports[0].name = name
                bed.source.apply(s.name, _with_port_names(s, "http", "web"))
                time.sleep(0.5)
        s.pods = PODS[:2]
        bed.source.apply(s.name, _with_port_names(s, "web"))
        bed.settle(s)  # the new name is followed
    finally:
        bed.source.withdraw(s.name)


def _with_port_names(s, *names):
    """A Service without a selector, and slices with a port of each of these names."""
    made = objects.service(s)
    del made["spec"]["selector"]
    slices = objects.slices(s)
    for one in slices:
        one["metadata"]["labels"][MANAGED_BY] = "lab"
        one["ports"] = [{**port, "name": name} for port in one["ports"] for name in names]
    return [made, *slices]


def connections_outlast_a_renamed_port_whose_endpoints_follow_a_moment_later(bed):
    with expect.graceful(bed), expect.service(bed, "renamed-later", ports=[Port(80, name="http")]) as s, \
            expect.held("n1p2", _of(bed, s, "4"), 80) as some, expect.held("n2p2", _of(bed, s, "6"), 80) as others:
        for name in ("web", "www", "http"):
            bed.put(s.name, PODS, ports=[Port(80, name=name)])
            bed.source.wait_for_slices(s)
            bed.settle(s)
            for client, family in (("n1p2", "4"), ("n2p2", "6")):
                # An agent may hear of the new name when the controller has followed it already.
                expect.soon(lambda: set(traffic.many(client, _of(bed, s, family), 80, count=9)["answers"]) == set(PODS), 30, client, "is not served on the port", name)
            expect.go_on([*some, *others])


connections_outlast_a_renamed_port_whose_endpoints_follow_a_moment_later.source = "api"


def a_new_service_that_has_answered_is_not_refused_any_more(bed):
    """The guard, the virtual service and its address come in an order."""
    for turn, family in enumerate([*bed.families] * 3):
        with expect.service(bed, f"new-{turn}", settle=False) as s, net.Inside("n1p2"):
            expect.soon(lambda: _answers(s.address(family)), 30, s.address(family), "is not served")
            refused = slow = 0
            for _ in range(30):
                begun = time.monotonic()
                refused += not _answers(s.address(family), traffic.PATIENCE)
                slow += time.monotonic() - begun > 0.9  # TCP asks again after a second
            expect.that(refused == 0, f"{refused} of 30 connections to {s.address(family)} failed after the first one that did not")
            expect.that(slow <= 1, f"{slow} of 30 connections to {s.address(family)} were slow after the first one")


def _answers(address, patience=1.0):
    """From the network namespace that this is called in."""
    try:
        with traffic.connect(address, 80, patience=patience) as sock:
            return bool(traffic.exchange(sock))
    except OSError:
        return False


class _Passing(Service):
    """One of many, with addresses apart from those of the others."""

    def address(self, family="4"):
        return f"10.97.{self.number // 250}.{self.number % 250 + 1}" if family == "4" else f"fd00:10:96::2:{self.number:x}"


AT_ONCE, WAVES, SETS = 100, 8, 3


def two_hundred_services_are_made_and_two_hundred_removed_a_second(bed):
    """A hundred of each every half second; a Service beside them answers, and nothing of theirs stays."""
    source = (_PassingByApi if bed.source.name == "api" else _PassingByFiles)(bed)
    computed = {i: kernel.metric(i, "sluice_proxy_services_computed_total") for i in bed.agents}
    with expect.service(bed, "beside", kind="NodePort", ports=[Port(80, node_port=30101), Port(53, "UDP")]) as s:
        targets = [("n1p2", _of(bed, s, "4"), 80), ("n2p2", _of(bed, s, "6"), 80), ("n3p2", _of(bed, s, "4"), 53, "udp"), ("ext", _node(bed, 2, "6"), 30101)]
        with expect.load(*targets, pause=0.1):
            seconds = source.make_and_remove()
            last = source.waves[(WAVES - 1) % SETS]
            bed.settle(*last[-2:])
        computed = {i: int(kernel.metric(i, "sluice_proxy_services_computed_total") - computed[i]) for i in bed.agents}
        print(f"       {WAVES * AT_ONCE} in {seconds:.1f} s; computed by the nodes: {computed}", flush=True)
        for one in last[-2:]:
            expect.share("n2p2", one.address(one.families[-1]), 80, one.pods)
        source.remove_last()
    # Those of the test before may be going still, so it is not their number that counts.
    addresses = {one.address(family) for wave in source.waves for one in wave for family in one.families}
    for i in bed.agents:
        expect.soon(lambda: not any(address in addresses for _, address, _ in kernel.ipvs(i)), 120, f"node {i} keeps virtual services of deleted Services")


def _waves(families):
    """Services of these families in turn, a wave for each set."""
    def one(n):
        return _Passing(f"passing-{n}", n, [PODS[n % 3], NEXT[n % 3]], families=families[n % len(families)])
    return [[one(n) for n in range(first, first + AT_ONCE)] for first in range(0, SETS * AT_ONCE, AT_ONCE)]


class _PassingByFiles:
    """One file, which a wave takes over from the one before."""

    def __init__(self, bed):
        self.bed, self.waves = bed, _waves([bed.families])

    def make_and_remove(self):
        texts = [self.text(wave) for wave in self.waves]
        began = time.monotonic()
        for turn, text in zip(range(WAVES), itertools.cycle(texts)):
            own.write(f"{net.RUN}/passing.manifest", text)
            os.rename(f"{net.RUN}/passing.manifest", f"{self.bed.source.folder}/passing.json")
            time.sleep(max(0.0, began + (turn + 1) / 2 - time.monotonic()))
        return time.monotonic() - began

    @staticmethod
    def text(services):
        items = [item for s in services for item in (objects.service(s), *objects.slices(s))]
        return json.dumps({"apiVersion": "v1", "kind": "List", "items": items})

    def remove_last(self):
        self.bed.source.withdraw("passing")


class _PassingByApi:
    """The keeper of the API server writes, because a guest is too slow for it. Of one family each, with slices of their own: the server's controller
    makes fewer in a second than these."""
    SERVICES = f"/api/v1/namespaces/{objects.NAMESPACE}/services"
    SLICES = f"/apis/discovery.k8s.io/v1/namespaces/{objects.NAMESPACE}/endpointslices"
    SET = "lab/set"

    def __init__(self, bed):
        self.bed, self.waves = bed, _waves(bed.families)

    def make_and_remove(self):
        made = [self.making(number) for number in range(SETS)]
        waves = [made[turn % SETS] + (self.removing((turn - 1) % SETS) if turn else []) for turn in range(WAVES)]
        found = self.order(waves)
        return found["seconds"]

    def order(self, waves):
        found = outside.order(self.bed.facts["control"], self.bed.facts["token"], {"waves": waves, "every": 0.5})
        expect.that(not found["refused"], "the API server refused writes:", found)
        return found

    def making(self, number):
        tasks = []
        for s in self.waves[number]:
            item = objects.service(s)
            del item["spec"]["selector"]
            tasks.append(["POST", self.SERVICES, self.labelled(item, number)])
            tasks += [["POST", self.SLICES, self.labelled(one, number)] for one in objects.slices(s)]
        return tasks

    def labelled(self, item, number):
        more = {MANAGED_BY: "lab"} if item["kind"] == "EndpointSlice" else {}
        item["metadata"]["labels"] = {**item["metadata"].get("labels", {}), **more, self.SET: str(number)}
        return item

    def removing(self, number):
        return [["DELETE", f"{path}?labelSelector={self.SET}%3D{number}"] for path in (self.SERVICES, self.SLICES)]

    def remove_last(self):
        self.order([self.removing((WAVES - 1) % SETS)])
