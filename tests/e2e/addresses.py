"""Addresses for Services of type LoadBalancer: given by one agent, served by all, with a real API server."""
import contextlib
import time

import expect
from expect import PODS
from labkit import own
from labkit.api import ApiError
from labkit.objects import Port

LEASE = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/kube-router-lballoc"
POOLS = "/api/v1/namespaces/kube-system/configmaps"
FLAGS = ["--run-loadbalancer", "--loadbalancer-sync-period=5s"]
# Within what the agents' --loadbalancer-ip-range allows.
GOLD = ["198.51.100.200", "198.51.100.201"]


def _agents_give_addresses(bed):
    bed.flags += FLAGS
    bed.restore()


def _agents_give_no_addresses_any_more(bed):
    bed.flags = [flag for flag in bed.flags if flag not in FLAGS]
    bed.restore()


_begin, _end = _agents_give_addresses, _agents_give_no_addresses_any_more


def _somebody_gives(bed):
    expect.soon(lambda: _holder(bed), 40, "nobody holds the Lease")


def _holder(bed):
    try:
        return bed.source.api.get(LEASE)["spec"].get("holderIdentity") or None
    except ApiError as error:
        if error.status != 404:
            raise
        return None


def _path(name):
    return f"/api/v1/namespaces/default/services/{name}"


def _given(bed, name):
    status = bed.source.api.get(_path(name)).get("status", {}).get("loadBalancer", {})
    return [entry.get("ip") for entry in status.get("ingress", [])]


def _create(bed, name, annotations=None, labels=None, **spec):
    body = {"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": "default", "annotations": annotations or {}, "labels": labels or {}},
            "spec": {"type": "LoadBalancer", "ports": [{"port": 80}], **spec}}
    bed.source.api.request("POST", "/api/v1/namespaces/default/services", body)


@contextlib.contextmanager
def _services(bed, names):
    try:
        yield
    finally:
        for name in names:
            with contextlib.suppress(ApiError):
                bed.source.api.delete(_path(name))


def _pools(bed, data):
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "kube-router-lb-pools", "namespace": "kube-system"}, "data": data}
    path = f"{POOLS}/kube-router-lb-pools"
    if data is None:
        # The pools of a ConfigMap that is gone stay in force for minutes.
        with contextlib.suppress(ApiError):
            bed.source.api.request("PUT", path, body | {"data": {}})
            bed.source.api.delete(path)
        return
    try:
        bed.source.api.request("PUT", path, body)
    except ApiError:
        bed.source.api.request("POST", POOLS, body)


def _reasons(bed, name):
    return {e["reason"] for e in expect.events(bed, "Service", name)}


def an_address_is_given_served_and_told(bed):
    _somebody_gives(bed)
    with expect.service(bed, "given", kind="LoadBalancer", ports=[Port(80, node_port=30110)]) as s:
        expect.soon(lambda: _given(bed, s.name), 20, "no address is given")
        bed.settle(s)
        expect.share("ext", next(a for a in _given(bed, s.name) if "." in a), 80, PODS)
        expect.soon(lambda: "LoadBalancerAddressGiven" in _reasons(bed, s.name), 10, "no Event says so")


def no_address_has_two_owners_when_the_holder_of_the_lease_is_killed_again_and_again(bed):
    names, killed = [f"many-{n}" for n in range(60)], set()
    _somebody_gives(bed)
    with _services(bed, names):
        for k, name in enumerate(names):
            _create(bed, name, ipFamilyPolicy="PreferDualStack")
            if k % 25 == 10:
                # The Lease keeps the name of who was killed until somebody else has it.
                expect.soon(lambda: _holder(bed) and _holder(bed) not in killed, 40, "nobody holds the Lease but", killed)
                holder = _holder(bed)
                killed.add(holder)
                agent = next(agent for i, agent in bed.agents.items() if holder.startswith(f"node{i}_"))
                agent.kill()
                agent.start()
        expect.that(len(killed) == 2, "so many holders were killed:", killed)
        expect.soon(lambda: all(_given(bed, name) for name in names), 90, "some are left without an address")
        given = [address for name in names for address in _given(bed, name)]
        expect.that(len(given) == len(set(given)), "an address has two owners:", sorted(given))
        versions = {name: bed.source.api.get(_path(name))["metadata"]["resourceVersion"] for name in names}
        time.sleep(12)
        now = {name: bed.source.api.get(_path(name))["metadata"]["resourceVersion"] for name in names}
        expect.that(now == versions, "statuses are written without a cause")


def pools_are_followed_and_a_misspelt_field_is_named(bed):
    names = ["gold-1", "gold-2", "gold-3", "asks", "plain"]
    pool = "addresses: [" + "-".join(GOLD) + "]\nserviceSelector: {matchLabels: {tier: gold}}\n"
    since = {i: agent.position() for i, agent in bed.agents.items()}
    _somebody_gives(bed)
    with _services(bed, names):
        try:
            _pools(bed, {"gold": pool})
            time.sleep(10)
            for name in names[:3]:
                _create(bed, name, labels={"tier": "gold"})
            _create(bed, "asks", {"metallb.io/loadBalancerIPs": GOLD[0]})
            _create(bed, "plain")
            expect.soon(lambda: "RequestedAddressNotInPool" in _reasons(bed, "asks"), 20, "a pool of others is not refused")
            expect.soon(lambda: _given(bed, "plain") and _given(bed, "gold-1") and _given(bed, "gold-2"), 20, "no address is given")
            expect.that(sorted(_given(bed, "gold-1") + _given(bed, "gold-2")) == GOLD, "not of the pool:", _given(bed, "gold-1"))
            expect.that(not _given(bed, "asks"), "who asks for an address of others has it")
            before = {name: _given(bed, name) for name in names}
            _pools(bed, {"gold": pool.replace("serviceSelector", "serviceSelectors")})
            expect.soon(lambda: any("serviceSelectors is not a field" in agent.text(since[i]) for i, agent in bed.agents.items()), 20,
                        "the misspelt field is not named")
            expect.that({name: _given(bed, name) for name in names} == before, "a misspelt field moves addresses")
        finally:
            _pools(bed, None)


def a_holder_that_ends_gives_the_lease_up_at_once(bed):
    _somebody_gives(bed)
    holder = _holder(bed)
    i = next(i for i in bed.agents if holder.startswith(f"node{i}_"))
    bed.agents[i].stop()
    try:
        expect.that(own.wait(lambda: _holder(bed) not in (None, holder), 13, 0.2), "another one does not take over")
    finally:
        bed.agents[i].start()
        bed.ready(i)


def a_misspelt_annotation_is_named_in_an_event(bed):
    _somebody_gives(bed)
    with _services(bed, ["misspelt"]):
        _create(bed, "misspelt", {"metallb.io/loadBalancerIP": GOLD[0]})
        expect.soon(lambda: "UnknownAnnotation" in _reasons(bed, "misspelt"), 20, "no Event names it")
        expect.soon(lambda: _given(bed, "misspelt"), 20, "no address is given")
