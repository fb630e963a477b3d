"""Odd input is said once, clearly, and everything else goes on."""
import json
import os

import expect
from expect import FAMILIES, PODS
from labkit import kernel, net, objects, own
from labkit.objects import Port

SCHEDULER = "kube-router.io/service.scheduler"


def _write(bed, name, items):
    bed.source.write(name, items)


def _remove(bed, name):
    os.unlink(f"{bed.source.folder}/{name}.json")


def a_manifest_that_does_not_parse_is_named_and_its_last_good_version_stays(bed):
    with expect.service(bed, "broken") as s, expect.service(bed, "beside") as other:
        since = bed.agents[1].position()
        path = f"{bed.source.folder}/{s.name}.json"
        with open(path) as handle:
            lines = handle.read().splitlines()
        own.write(f"{net.RUN}/broken", "\n".join(lines[:5] + ["{{{ not JSON"] + lines[5:]))
        os.rename(f"{net.RUN}/broken", path)
        expect.logged(bed, 1, since, f"{s.name}.json")
        expect.share("n1p2", s.address(), 80, PODS)
        bed.put(other.name, PODS[:2])
        # While one file cannot be read nothing is taken away, because its absence proves nothing; what is new comes.
        third = bed.put(other.name, [*PODS, "n1p2"])
        bed.settle(third, nodes=[1])
        bed.put(s.name, PODS)
        bed.settle(s, other)


def an_unknown_scheduler_becomes_round_robin_and_is_said(bed):
    since = bed.agents[1].position()
    with expect.service(bed, "odd-scheduler", annotations={SCHEDULER: "fastest"}) as s:
        expect.that(kernel.ipvs(1)[("TCP", s.address(), 80)]["scheduler"] == "rr", "not rr")
        expect.logged(bed, 1, since, "odd-scheduler", "fastest")
        expect.share("n1p2", s.address(), 80, PODS)


def slices_without_conditions_or_ports_are_understood(bed):
    s = objects.Service("bare", 251, PODS)
    items = [objects.service(s), *objects.slices(s)]
    for item in items[1:]:
        for endpoint in item["endpoints"]:
            del endpoint["conditions"]  # absent means ready
    portless = json.loads(json.dumps(items[1]))
    portless["metadata"]["name"] = "bare-portless"
    portless["ports"] = [{"name": "tcp-80", "protocol": "TCP"}]
    empty = {**portless, "metadata": {**portless["metadata"], "name": "bare-empty"}, "ports": None, "endpoints": None}
    _write(bed, "bare", [*items, portless, empty])
    try:
        bed.settle(s)
        for family in FAMILIES:
            expect.share("n1p2", s.address(family), 80, PODS)
    finally:
        _remove(bed, "bare")


def impossible_objects_do_not_disturb_the_others(bed):
    since = bed.agents[1].position()
    odd = [
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "odd-port", "namespace": "default"},
         "spec": {"clusterIP": "10.96.1.252", "clusterIPs": ["10.96.1.252"], "ports": [{"port": 99999, "protocol": "TCP"}]}},
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "odd-address", "namespace": "default"},
         "spec": {"clusterIP": "10.96.1.999", "clusterIPs": ["10.96.1.999"], "ports": [{"port": 80}]}},
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "headless", "namespace": "default"},
         "spec": {"clusterIP": "None", "clusterIPs": ["None"], "ports": [{"port": 80}]}},
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "elsewhere", "namespace": "default"},
         "spec": {"type": "ExternalName", "externalName": "example.com"}},
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "unrelated"}, "data": {}},
    ]
    _write(bed, "odd", odd)
    try:
        with expect.service(bed, "sane") as s:
            expect.share("n1p2", s.address(), 80, PODS)
            expect.logged(bed, 1, since, "odd-port")
            expect.logged(bed, 1, since, "odd-address")
            held = {a for _, a, _ in kernel.ipvs(1)}
            expect.that("10.96.1.252" not in held, "a port that does not exist is served")
            expect.that(all(agent.is_alive() for agent in bed.agents.values()), "an agent died")
    finally:
        _remove(bed, "odd")


def the_older_of_two_services_keeps_an_address_that_both_claim(bed):
    since = bed.agents[1].position()
    old, new = objects.Service("claim-old", 253, PODS[:1], external_ips=["198.51.100.70"]), objects.Service(
        "claim-new", 254, PODS[1:2], external_ips=["198.51.100.70"])
    for s, year in ((new, 2026), (old, 2020)):
        service = objects.service(s)
        service["metadata"]["creationTimestamp"] = f"{year}-01-01T00:00:00Z"
        _write(bed, s.name, [service, *objects.slices(s)])
    try:
        bed.settle(old, new)
        expect.soon(lambda: list(kernel.destinations(1, "TCP", "198.51.100.70", 80) or {}) == [expect.pod(PODS[0], "4")], 30, "the newer has it")
        expect.logged(bed, 1, since, "claim-new")
        expect.share("n1p2", new.address(), 80, PODS[1:2])
        _remove(bed, old.name)
        expect.soon(lambda: list(kernel.destinations(1, "TCP", "198.51.100.70", 80) or {}) == [expect.pod(PODS[1], "4")], 30, "not handed over")
        _write(bed, old.name, [])
    finally:
        _remove(bed, old.name)
        _remove(bed, new.name)


def a_service_with_a_thousand_ports_is_served(bed):
    ports = [Port(1000 + n, name=f"p{n}") for n in range(1000)]
    with expect.service(bed, "thousand", families="4", ports=ports) as s:
        for port in (1000, 1500, 1999):
            expect.share("n1p2", s.address(), port, PODS)
        expect.refused("n1p2", s.address(), 2000)


def a_scheduler_that_the_kernel_lacks_is_said_and_the_others_go_on(bed):
    # The kernel asks modprobe, which asks this file; the module must not be there already.
    path = "/etc/modprobe.d/sluice-lab.conf"
    own.run("sh", "-c", "! grep -q ^ip_vs_ovf /proc/modules || rmmod ip_vs_ovf")
    own.write(path, "install ip_vs_ovf /bin/false\n")
    since = bed.agents[1].position()
    try:
        with expect.service(bed, "lacking", annotations={SCHEDULER: "ovf"}, settle=False), expect.service(bed, "not-lacking") as other:
            expect.share("n1p2", other.address(), 80, PODS)
            expect.logged(bed, 1, since, "ovf")
            # It is a note: one Service must not make all nodes unready.
            ready = lambda: kernel.http_get(1, "/readyz")  # noqa: E731
            expect.soon(lambda: ready()[0] == 200 and "no scheduler ovf" in ready()[1], 30, "not ready, or nothing said")
            expect.that(bed.agents[1].is_alive(), "the agent died")
    finally:
        os.unlink(path)


def flags_that_make_no_sense_end_with_one_clear_sentence(bed):
    agent = bed.agents[3]
    for flags, status, words in (
            (["--no-such-flag"], 2, ["no-such-flag"]),
            (["--ipvs-sync-period=soon"], 2, ["ipvs-sync-period"]),
            (["--run-router=false", "--run-firewall=false", "--service-cluster-ip-range=10.96.0.0/99"], 1, ["service-cluster-ip-range"]),
            (["--run-router=false", "--run-loadbalancer"], 1, ["run-loadbalancer"])):
        found, text = agent.once(*flags, patience=30)
        expect.that(found == status, flags, f"ended with {found}:", text)
        for word in words:
            expect.that(word in text, flags, "did not name", word, "but said:", text)
