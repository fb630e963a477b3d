#!/usr/bin/python3
"""The part of scripts/bench addresses that runs where the node is: addresses for Services of type LoadBalancer from a real API server.

It prints how long an agent takes to give all of them, what it occupies, and how often the API server was asked, as that server counts; then the
same for a restart, which must write nothing, and how long a new Service waits. No two Services may have one address.
"""
import collections
import concurrent.futures
import http.client
import json
import os
import re
import subprocess
import sys
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
from labkit import net, own  # noqa: E402
from labkit.api import Api  # noqa: E402
from labkit.bench import NODE, Agent, Node, at, nearby  # noqa: E402
from labkit.bench_sources import Cluster  # noqa: E402

NAMESPACE = "bench"
SERVICES = f"/api/v1/namespaces/{NAMESPACE}/services"
METRICS = 20241
FLAGS = ["--run-router=false", "--run-firewall=false", "--run-service-proxy=false", "--run-loadbalancer", "--enable-ipv6=false",
         f"--hostname-override=node{NODE}", f"--service-cluster-ip-range={net.SERVICE_RANGES[0]}", "--loadbalancer-ip-range=198.18.0.0/15",
         f"--metrics-port={METRICS}", "--log-format=json"]
ACQUIRED = "Lease acquired; this agent gives load balancer addresses"
NEW = 20
# A restart waits for the Lease of the process before (15 s, and a look at it), and has then listed all and found nothing to do.
RESTART, REST = 60, 20
CONNECTIONS = 8


def service(index):
    # Node ports are fewer than Services may be.
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": f"service-{index:05}", "namespace": NAMESPACE},
            "spec": {"type": "LoadBalancer", "allocateLoadBalancerNodePorts": False, "ports": [{"port": 80, "targetPort": 8080}]}}


def fill(facts, numbers):
    Api(facts).put("/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
    kept = threading.local()

    def create(index):
        if not hasattr(kept, "api"):
            kept.api = Api(facts)
        kept.api.request("POST", SERVICES, service(index))

    with concurrent.futures.ThreadPoolExecutor(CONNECTIONS) as pool:
        list(pool.map(create, numbers))


def metric(name):
    """The sum of a metric of the agent; None while it does not answer."""
    try:
        with net.Inside(f"n{NODE}"):
            connection = http.client.HTTPConnection("127.0.0.1", METRICS, timeout=20)
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
    except (OSError, http.client.HTTPException):
        return None
    found = [float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if re.match(rf"{name}[{{ ]", line)]
    return sum(found) if found else None


def asked(api):
    """How many requests of these objects the API server has answered, by verb and object; watches that go on are not among them."""
    counts = collections.Counter()
    for line in api.get("/metrics").splitlines():
        if line.startswith("apiserver_request_total{"):
            labels = dict(re.findall(r'(\w+)="([^"]*)"', line))
            name = "/".join(filter(None, (labels["resource"], labels.get("subresource", ""))))
            if name in ("services", "services/status", "leases", "configmaps", "events"):
                counts[f"{labels['verb']} {name}"] += int(float(line.rsplit(" ", 1)[1]))
    return counts


def calls(before, after, ours=("services", "services/status", "events")):
    """What was asked meanwhile; leases and ConfigMaps are mostly others'."""
    grown = {name: count - before[name] for name, count in after.items() if count > before[name] and name.split()[1] in ours}
    return ", ".join(f"{name} {count:,}" for name, count in sorted(grown.items())) or "none"


def given(api):
    """The address of each Service that has one."""
    found, more = {}, ""
    while True:
        page = api.get(f"{SERVICES}?limit=500{more}")
        for item in page["items"]:
            for entry in item.get("status", {}).get("loadBalancer", {}).get("ingress", []):
                found[item["metadata"]["name"]] = entry["ip"]
        token = page["metadata"].get("continue")
        if not token:
            return found
        more = f"&continue={token}"


def first(plan, source, api):
    before = asked(api)
    with Agent(plan["binary"], source.flags, flags=FLAGS) as agent:
        agent.wait_for(ACQUIRED)
        begun = time.monotonic()
        half = None
        while (count := metric('sluice_load_balancer_writes_total{outcome="written"}') or 0) < plan["services"]:
            half = half or (count >= plan["services"] / 2 and time.monotonic() - begun) or None
            if time.monotonic() > begun + 3600:
                raise own.LabError(f"after an hour {count:,.0f} Services have an address")
            time.sleep(0.5)
        took = time.monotonic() - begun
        say("all have an address", f"{took:.1f} s after the Lease was taken, {plan['services'] / took:,.0f} a second")
        resident, most = agent.memory()
        say("resident, MiB", f"{resident:.0f}, at most {most:.0f}; {agent.processor_seconds():.1f} s of a processor")
        say("API server answered", calls(before, asked(api)))
        alone(plan, given(api))
        waits = [one_more(api, plan["services"] + number) for number in range(NEW)]
        say("a new Service waits", f"{at(waits, 0.5) * 1000:.0f} ms (median of {NEW}), at most {max(waits) * 1000:.0f} ms")
    return given(api)


def one_more(api, index):
    begun = time.monotonic()
    made = api.request("POST", SERVICES, service(index))
    path = f"{SERVICES}/{made['metadata']['name']}"
    while not api.get(path)["status"]["loadBalancer"].get("ingress"):
        if time.monotonic() > begun + 60:
            raise own.LabError("a new Service has no address after 60 s")
    return time.monotonic() - begun


def again(plan, source, api, had):
    before = asked(api)
    with Agent(plan["binary"], source.flags, flags=FLAGS) as agent:
        line, _ = agent.wait_for(ACQUIRED, seconds=RESTART)
        waited = time.time() - agent.began
        time.sleep(REST)
        count = metric("sluice_load_balancer_pool_addresses_used")
        resident, most = agent.memory()
        say("restart", f"Lease after {waited:.1f} s; {REST} s later {count:,.0f} addresses are in use, {resident:.0f} MiB resident, at most {most:.0f}; "
            f"{agent.processor_seconds():.1f} s of a processor")
        say("API server answered", calls(before, asked(api)))
        if metric("sluice_load_balancer_writes_total"):
            raise own.LabError("a restart writes statuses")
    if given(api) != had:
        raise own.LabError("a restart moves addresses")


def alone(plan, found):
    if len(found) != plan["services"] or len(set(found.values())) != len(found):
        raise own.LabError(f"{len(found):,} Services have {len(set(found.values())):,} addresses")


def say(what, text):
    print(f"  {what:<24}{text}", flush=True)


def main():
    plan = json.loads(os.environ["SLUICE_BENCH"])
    plan["binary"] = nearby(plan["binary"])
    print(f"\n{plan['services']:,} Services of type LoadBalancer, from a real API server", flush=True)
    source, api = Cluster(plan), Api(plan["cluster"])
    fill(plan["cluster"], range(plan["services"]))
    with Node(source):
        again(plan, source, api, first(plan, source, api))


if __name__ == "__main__":
    try:
        main()
    except (own.LabError, subprocess.SubprocessError) as error:
        own.say(f"bench: {error}")
        sys.exit(1)
