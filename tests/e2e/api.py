"""With a real API server and its own controllers, on nodes in two subnets; node 2 has legacy iptables."""
import contextlib
import json
import os
import signal
import subprocess
import time

import expect
from asking import SOCKET
from expect import FAMILIES, PODS
from health_checks import _listens_on
from labkit import kernel, net, own
from labkit.objects import Port
from router import everyone


def services_reach_every_node_and_balance(bed):
    with expect.service(bed, "from-api", kind="NodePort", ports=[Port(80, node_port=30100), Port(53, "UDP")]) as s:
        for family in FAMILIES:
            for client in ("n1p2", "n2p2", "n3p2"):
                expect.share(client, s.address(family), 80, PODS)
                expect.share(client, s.address(family), 53, PODS, "udp")
        for i in bed.agents:
            for address in bed.plan.addresses(i):
                expect.share("ext", address, 30100, PODS)


def load_balancer_addresses_come_from_the_status(bed):
    with expect.service(bed, "status", kind="LoadBalancer", balancer_ips=["198.51.100.80"], ports=[Port(80, node_port=30101)]):
        expect.share("ext", "198.51.100.80", 80, PODS)


def an_endpoint_whose_readiness_goes_and_comes_is_followed_without_a_failed_request(bed):
    with expect.service(bed, "moving") as s, expect.load(("n1p2", s.address(), 80), ("n3p2", s.address("6"), 80), pause=0.1):
        for pods in (PODS[:2], PODS, PODS[1:], PODS):
            bed.put(s.name, pods, unready=[pod for pod in PODS if pod not in pods])
            bed.settle(s)


def pods_of_all_nodes_reach_each_other_by_routes_of_the_agents(bed):
    everyone(bed, sizes={"4": 1480, "6": 1460})


def _has_network(bed, i):
    found = bed.source.api.get(f"/api/v1/nodes/node{i}")["status"]["conditions"]
    expect.that("Ready" in [c["type"] for c in found], "what others said of the Node is gone:", found)
    return any(c["type"] == "NetworkUnavailable" and c["status"] == "False" for c in found)


def a_node_without_the_condition_of_its_network_is_given_none(bed):
    for i in bed.agents:
        expect.that(not _has_network(bed, i), f"node {i} has a condition that no cloud has put there")


def a_node_that_somebody_calls_unreachable_says_that_its_network_is_there(bed):
    unavailable = {"type": "NetworkUnavailable", "status": "True", "reason": "Somebody", "message": "said so"}
    for i in (1, 2):
        body, kind = {"status": {"conditions": [unavailable]}}, "application/strategic-merge-patch+json"
        bed.source.api.request("PATCH", f"/api/v1/nodes/node{i}/status", body, kind)
    for i in (1, 2):
        expect.soon(lambda: _has_network(bed, i), 60, f"node {i} does not")


PEERS = "kube-router.io/peers"
_OURSELVES = "- remoteip: 192.0.2.13\n  remoteasn: 65001\n"


def a_problem_of_the_router_becomes_one_event_about_its_node(bed):
    def events():
        return [e for e in expect.events(bed, "Node", "node3", reason="RouterProblem") if e["metadata"]["name"] not in earlier]
    earlier = []
    earlier = [e["metadata"]["name"] for e in events()]
    node, of_another = "/api/v1/nodes/node3", "/api/v1/namespaces/default/events/about-nothing"
    bed.source.api.put(of_another.rpartition("/")[0], {"apiVersion": "v1", "kind": "Event", "metadata": {"name": "about-nothing"}, "reason": "Other",
                                                       "involvedObject": {"kind": "Node", "namespace": "default"}})
    bed.source.api.patch(node, {"metadata": {"annotations": {PEERS: _OURSELVES}}})
    try:
        expect.soon(events, 30, "there is no Event")
        bed.source.api.patch(node, {"metadata": {"annotations": {"unrelated": "yes"}}})
        time.sleep(2)
        expect.that(len(events()) == 1 and "an address of this node" in events()[0]["message"], "not one that says it:", events())
    finally:
        bed.source.api.patch(node, {"metadata": {"annotations": {PEERS: None, "unrelated": None}}})
        bed.source.api.delete(of_another)


def _service_events(bed, name):
    """Those of the agents: the API server tells of a cluster IP itself where its repair comes while a Service is being made."""
    found = expect.events(bed, "Service", name, source="kube-router")
    return sorted((e["reason"], e["message"], e["metadata"]["resourceVersion"]) for e in found)


def _forget_events(bed):
    """Where a guest stopped answering and everything is done once more in another one, the cluster still has those of Services of the same names."""
    bed.source.api.delete("/api/v1/namespaces/default/events")


@contextlib.contextmanager
def _service_without_a_local_endpoint(bed, name):
    """A Service with the internal policy Local, whose one endpoint names no node."""
    services, slices = "/api/v1/namespaces/default/services", "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"
    bed.source.api.put(services, {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": {
        "internalTrafficPolicy": "Local", "ports": [{"name": "http", "port": 80}]}})
    bed.source.api.put(slices, {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
                                "metadata": {"name": f"{name}-1", "labels": {"kubernetes.io/service-name": name}},
                                "ports": [{"name": "http", "port": 8080}],
                                "endpoints": [{"addresses": ["10.244.1.2"], "conditions": {"ready": True}}]})
    try:
        yield
    finally:
        bed.source.api.delete(f"{services}/{name}")
        bed.source.api.delete(f"{slices}/{name}-1")


@contextlib.contextmanager
def _taken(bed, i, port):
    """Another program has the port at each address of a node; what comes out ends the one of IPv4."""
    pids = [_listens_on(i, address, port) for address in bed.plan.addresses(i)]

    def end():
        pid = pids.pop(0)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    try:
        yield end
    finally:
        while pids:
            end()


def a_problem_of_a_service_becomes_one_event_that_no_restart_repeats(bed):
    annotations = {"kube-router.io/service.schedular": "lc", "kube-router.io/service.scheduler": "fastest"}
    more = {"kind": "LoadBalancer", "external_policy": "Local", "health_port": 30141, "ports": [Port(80, node_port=30142)]}
    _forget_events(bed)
    with _taken(bed, 2, 30141) as free_one, _service_without_a_local_endpoint(bed, "events-nowhere"), \
            expect.service(bed, "events", external_ips=["203.0.113.77"], annotations=annotations, **more) as s:
        def told():
            return _service_events(bed, s.name), _service_events(bed, "events-nowhere")
        # Where the node that tells is down another one does, minutes later; here all are up. A node tells of its own port a little later than of what all find.
        expect.soon(lambda: [len(of) for of in told()] == [4, 1], 60, "these are not five Events:", told())
        (refused, in_use, *fields), [nowhere] = told()
        reasons = [reason for reason, _, _ in (refused, in_use, *fields, nowhere)]
        expected = ["ExternalAddressRefused", "HealthCheckPortInUse", "InvalidServiceField", "InvalidServiceField", "NoLocalEndpoint"]
        expect.that(reasons == expected, "not one for each problem:", told())
        expect.that("203.0.113.77" in refused[1] and "30141" in in_use[1] and "internalTrafficPolicy" in nowhere[1], "they do not say it:", told())
        texts = " ".join(text for _, text, _ in fields)
        expect.that("service.scheduler may be meant" in texts and 'no scheduler is called "fastest"' in texts, "they do not say it:", fields)
        uid = bed.source.api.get(f"/api/v1/namespaces/default/services/{s.name}")["metadata"]["uid"]
        about = {e["involvedObject"]["uid"] for e in expect.events(bed, "Service", s.name)}
        expect.that(about == {uid}, "kubectl describe would not find them:", about)
        before = told()
        free_one()  # the other family is still in use
        for agent in bed.agents.values():
            agent.stop()
            agent.start()
        bed.ready(*bed.agents)
        time.sleep(25)  # a problem is told after ten seconds, one of node 2 alone after nineteen
        expect.that(told() == before, "told again:", told())


def of_two_services_with_one_address_the_later_one_gets_one_event_that_names_the_other(bed):
    address = ["198.51.100.81"]
    _forget_events(bed)
    with expect.service(bed, "first", external_ips=address) as first:
        time.sleep(1.5)  # times of creation count in seconds
        with expect.service(bed, "second", external_ips=address) as second:
            def told():
                return [(reason, text) for reason, text, _ in _service_events(bed, second.name) if reason == "ServiceAddressConflict"]
            expect.soon(told, 60, "there is no Event")
            time.sleep(3)
            expect.that(len(told()) == 1 and address[0] in told()[0][1] and f"default/{first.name}" in told()[0][1], "not one that says it:", told())
            expect.that(not _service_events(bed, first.name), "the one that has the address has an Event:", _service_events(bed, first.name))


def _refused(agent, since=0):
    return [line for line in agent.text(since).splitlines() if "forbidden" in line.lower() or "(403)" in line]


def each_file_that_users_apply_gives_the_rights_that_its_flags_need(bed):
    """The lab has shown every file to the API server with strict validation; the agents have had the rights of the largest one."""
    for i, agent in bed.agents.items():
        expect.that(not _refused(agent), f"the agent of node {i} was refused something:", _refused(agent))
    role, agent = "/apis/rbac.authorization.k8s.io/v1/clusterroles/kube-router", bed.agents[3]
    usual = bed.source.api.get(role)["rules"]
    held = set()
    bed.source.api.patch("/api/v1/nodes/node3", {"metadata": {"annotations": {PEERS: _OURSELVES}}})
    try:
        for name, file in bed.facts["installed"].items():
            # The bed gives the agents its own.
            given = ("--kubeconfig", "--master", "--service-cluster-ip-range")
            flags = [arg for arg in file["args"] if not arg.startswith(given)]
            if repr((sorted(flags), file["rules"])) in held:
                continue
            held.add(repr((sorted(flags), file["rules"])))
            agent.stop()
            bed.source.api.patch(role, {"rules": file["rules"]})
            time.sleep(1)  # the authorizer follows
            since = agent.position()
            agent.extra = flags
            agent.start()
            bed.ready(3)
            if "--run-router=true" in file["args"]:
                # The Node has no condition of its network, so none is written and the right to it is not missed.
                own.wait(lambda: _refused(agent, since), 5, 0.2)
            expect.that(not _refused(agent, since), name, "does not give enough rights:", _refused(agent, since))
    finally:
        bed.source.api.patch(role, {"rules": usual})
        bed.source.api.patch("/api/v1/nodes/node3", {"metadata": {"annotations": {PEERS: None}}})


def a_deleted_service_disappears(bed):
    with expect.service(bed, "short") as s:
        held = s.address()
    for i in bed.agents:
        expect.soon(lambda: not [k for k in kernel.ipvs(i) if k[1] == held], 30, f"node {i} still has it")


def _changes(before, after):
    """The lines in which two snapshots differ."""
    return [] if after == before else kernel.difference(before, after).splitlines()


def an_outage_of_the_api_server_with_a_restart_in_it_fails_no_request(bed):
    with expect.service(bed, "outage", kind="NodePort", ports=[Port(80, node_port=30102)]) as s:
        targets = [("n1p2", s.address(), 80), ("n2p2", s.address("6"), 80), ("n3p2", s.address(), 80),
                   ("ext", bed.plan.addresses(1)[0], 30102), ("ext", bed.plan.addresses(2)[1], 30102)]
        # That of a new node is on no disk yet.
        expect.soon(lambda: all(bed.agents[i].remembers("kubernetes") for i in (1, 2)), 90, "nothing of what is known is on disk")
        with expect.load(*targets, pause=0.1), expect.stream({"n1p1": ["n2p1", "n3p1"]}):
            bed.source.stop_server()
            try:
                time.sleep(3)
                before = {i: kernel.snapshot(i) for i in (1, 2)}
                bed.agents[1].kill()
                bed.agents[2].stop()
                time.sleep(1)
                bed.agents[1].extra = [*bed.flags_of(1), SOCKET]
                for i in (1, 2):
                    bed.agents[i].start()
                time.sleep(_OUTAGE)
                for i in bed.agents:
                    expect.that(bed.agents[i].is_alive(), f"the agent of node {i} does not live through it")
                    # The answer may be late where guests share two processors.
                    expect.soon(lambda: bed.agents[i].healthy(), 20, f"the agent of node {i} does not live through it:", kernel.http_get(i, "/healthz"))
                for i in (1, 2):
                    # A server that ends takes its endpoint away, which the state on disk may not say yet: the way to the server is put back.
                    changes = _changes(before[i], kernel.snapshot(i))
                    changes = [it for it in changes if not it.startswith("+ ipvs: -a -t 10.96.0.1:443 -r ")]
                    expect.that(not changes, f"node {i}:", *changes)
                # Who asks the agent is answered without the API server too; what was made in its last seconds the restarted one may not remember.
                said = json.loads(net.node(1, bed.binary, "svc", "default/kubernetes", "-o", "json", SOCKET))
                expect.that(said["known"] == "remembered" and said["services"], "not answered from memory:", said)
                how = _status(bed)
                expect.that({one["cluster"] for one in how["known"]} == {"remembered"} and 0 < how["unread_seconds"] < 600, "how the node stands without a server:", how)
            finally:
                bed.source.start_server()
            bed.put(s.name, PODS[:2], unready=PODS[2:])
            bed.source.wait_for_slices(s)
            bed.settle(s)
        expect.share("n1p2", s.address(), 80, PODS[:2])
        expect.share("n2p2", s.address("6"), 80, PODS[:2])


def _status(bed):
    """How node 1 stands, whether or not it is ready (by the exit status)."""
    done = subprocess.run(net.node_command(1, bed.binary, "status", "-o", "json", SOCKET), capture_output=True, text=True, timeout=60)
    expect.that(done.returncode in (0, 1) and done.stdout, done.returncode, done.stdout, done.stderr)
    return json.loads(done.stdout)


_OUTAGE = 15  # seconds that the server stays away after the restarts


def _long(function):
    function.long = True
    return function


@_long
def an_outage_of_minutes_changes_nothing_either(bed):
    global _OUTAGE
    _OUTAGE = 240
    try:
        an_outage_of_the_api_server_with_a_restart_in_it_fails_no_request(bed)
    finally:
        _OUTAGE = 15
