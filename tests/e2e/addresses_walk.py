"""Addresses for Services of type LoadBalancer, given by three agents that have a bad way to a real API server, while Services and pools change by chance."""
import collections
import contextlib
import itertools
import json
import os
import random
import subprocess
import threading
import time

import expect
from addresses import LEASE, POOLS
from api_way import LATE, LATEST_WRITE, STEPS, Way
from labkit import net, own
from labkit.api import Api, ApiError, Connection
from labkit.source import kubeconfig

NAMESPACE = "walk"
SERVICES = f"/api/v1/namespaces/{NAMESPACE}/services"
NAMES = [f"s{number}" for number in range(9)]
# Fewer addresses than Services may want: six and three.
RANGES = ["198.18.0.0/29", "2001:db8:18::/126"]
V4, V6 = [f"198.18.0.{n}" for n in range(1, 7)], [f"2001:db8:18::{n}" for n in range(1, 4)]
GOLD = "addresses: [198.18.0.4-198.18.0.5]\nserviceSelector: {matchLabels: {tier: gold}}\n"
FIRST_PORT = 7441
ACQUIRED = "Lease acquired"
FLAGS = ["--run-router=false", "--run-firewall=false", "--run-service-proxy=false", "--run-loadbalancer", "--enable-ipv6", "--health-port=0",
         "--metrics-port=0", "--socket=", "--loadbalancer-sync-period=5s", f"--loadbalancer-ip-range={','.join(RANGES)}",
         f"--service-cluster-ip-range={','.join(net.SERVICE_RANGES)}"]
STORM, LONG_STORM = 20, 40  # seconds
# Two Services with it may have one address, if their ports differ; nobody's class but ours gets one.
KEY, SHARED, OTHERS = "metallb.io/allow-shared-ip", "web", "example.com/balancer"
FEW = 3  # statuses written in a storm
QUIET, REST = 120, 7  # at most; and for how long nothing may be written then, which is more than the period of the audits


class Allocator:
    """An agent that does nothing but contend for the Lease and give addresses, with a way of its own."""

    def __init__(self, bed, dice, i):
        self.bed, self.i, self.process, self.lock = bed, i, None, threading.Lock()
        self.way = Way(bed.facts, dice, FIRST_PORT + i)
        self.log = f"{net.RUN}/n{i}/allocator.log"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.log)
        self.config = f"{net.RUN}/n{i}/allocator.kubeconfig"
        own.write(self.config, kubeconfig(self.way.url, bed.facts["agent_token"], bed.facts["authority"]), 0o600)

    def start(self):
        with self.lock, open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                net.node_command(self.i, self.bed.binary, *FLAGS, f"--hostname-override=node{self.i}", f"--kubeconfig={self.config}",
                                 f"--state-dir={net.RUN}/n{self.i}/allocator-state"), stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def kill(self, patience=0):
        """Ends it at once, or lets it give the Lease up before."""
        with self.lock:
            process, self.process = self.process, None
        if process and patience:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(patience)
        if process:
            process.kill()
            process.wait()

    def close(self):
        self.way.is_quiet = True
        self.kill(patience=10)
        self.way.close()

    def text(self):
        with open(self.log, errors="replace") as handle:
            return handle.read()


class Watch:
    """Follows all statuses past the bad ways: every version that there ever was."""

    def __init__(self, facts):
        self.api = Api(facts)
        listed = self.api.get(SERVICES)
        self.now = {item["metadata"]["name"]: item for item in listed["items"]}
        self.twice, self.written, self.shared, self.failed = [], 0, 0, None
        self.thread = threading.Thread(target=self.follow, args=(facts, listed["metadata"]["resourceVersion"]), daemon=True)
        self.thread.start()

    def follow(self, facts, version):
        try:
            connection = Connection("127.0.0.1", facts["port"], timeout=600, context=self.api.context)
            connection.request("GET", f"{SERVICES}?watch=1&resourceVersion={version}&timeoutSeconds=900",
                               headers={"Authorization": f"Bearer {facts['token']}"})
            answer = connection.getresponse()
            while line := answer.readline():
                event = json.loads(line)
                if event["type"] == "ERROR":
                    raise own.LabError(str(event["object"]))
                self.see(event["type"], event["object"])
        except Exception as error:  # of which the test has to know
            self.failed = error

    def see(self, kind, item):
        name = item["metadata"]["name"]
        had, has = _addresses(self.now.get(name, {})), _addresses(item) if kind != "DELETED" else []
        self.written += had != has and bool(has)
        for address in set(has) - set(had):
            owners = [other for other, theirs in self.now.items() if other != name and address in _addresses(theirs)]
            self.twice += [f"{address} of {other} is given to {name}" for other in owners if not _may_share(item, self.now[other])]
            self.shared += any(_may_share(item, self.now[other]) for other in owners)
        self.now[name] = item
        if kind == "DELETED":
            del self.now[name]


def _key(item):
    return item["metadata"].get("annotations", {}).get(KEY)


def _may_share(one, other):
    return _key(one) is not None and _key(one) == _key(other) and _ports(one) != _ports(other)


def _ports(item):
    """Each Service of the walk has one."""
    return [(port.get("protocol", "TCP"), port["port"]) for port in item["spec"]["ports"]]


def _addresses(item):
    return [entry["ip"] for entry in item.get("status", {}).get("loadBalancer", {}).get("ingress", []) if "ip" in entry]


def _change(api, dice):
    """What a user may do with a Service: make it, take it away, ask for another address, or for none. Its port, its key and its class stay: what
    changes while an agent has an older view of it is shown on an API in memory."""
    name = dice.choice(NAMES)
    asked = {"metallb.io/loadBalancerIPs": dice.choice([*V4, "198.18.0.9"])} if dice.random() < 0.2 else {}
    shares = {KEY: SHARED} if dice.random() < 0.4 else {}
    body = {"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": NAMESPACE, "annotations": {**asked, **shares}, "labels": {"tier": dice.choice(["gold", "plain"])}},
            "spec": {"type": "LoadBalancer", "allocateLoadBalancerNodePorts": False, "ports": [{"port": dice.choice([80, 443])}],
                     **({"loadBalancerClass": OTHERS} if dice.random() < 0.1 else {}),
                     "ipFamilyPolicy": dice.choice(["SingleStack", "PreferDualStack", "RequireDualStack"])}}
    kind = dice.random()
    try:
        if kind < 0.25:
            api.delete(f"{SERVICES}/{name}")
        elif kind < 0.5:
            api.patch(f"{SERVICES}/{name}", {"metadata": {"annotations": {"metallb.io/loadBalancerIPs": None, **asked}, "labels": body["metadata"]["labels"]},
                                             "spec": {"type": dice.choice(["ClusterIP", "LoadBalancer", "LoadBalancer"])}})
        else:
            api.request("POST", SERVICES, body)
    except ApiError as error:
        # It is not there, or is there already, or has changed meanwhile.
        expect.that(error.status in (404, 409), "a change is refused:", error)


def _wrong(api):
    """What is not as it should be when nothing has happened for long, or nothing."""
    services = {item["metadata"]["name"]: item for item in api.get(SERVICES)["items"]}
    wanting = {name: item for name, item in services.items()
               if item["spec"]["type"] == "LoadBalancer" and item["spec"].get("loadBalancerClass") != OTHERS}
    owners = collections.defaultdict(list)
    for item in services.values():
        for address in _addresses(item):
            owners[address].append(item)
    for address, its in owners.items():
        if any(not _may_share(one, other) for one, other in itertools.combinations(its, 2)):
            return f"{address} has owners that may not share it: {[one['metadata']['name'] for one in its]}"
    for name, item in services.items():
        has = _addresses(item)
        if name not in wanting:
            if has:
                return f"{name} keeps {has}"
            continue
        asked = item["metadata"].get("annotations", {}).get("metallb.io/loadBalancerIPs")
        families = item["spec"]["ipFamilies"]
        is_whole = item["spec"]["ipFamilyPolicy"] == "RequireDualStack"
        free = {}
        for family, addresses in (("IPv4", V4), ("IPv6", V6)):
            mine = [address for address in has if (":" in address) == (family == "IPv6")]
            if len(mine) > (family in families):
                return f"{name} has {mine} of {family}"
            if asked and family == "IPv4" and mine and mine != [asked]:
                return f"{name} has {mine}, not {asked}"
            if family in families and not mine:
                offered = [asked] if asked and family == "IPv4" else addresses
                free[family] = [address for address in offered if address in addresses and all(_may_share(item, other) for other in owners[address])]
        if is_whole and has and len(has) < len(families):
            return f"{name} has a part: {has}"
        if free and (all(free.values()) if is_whole else any(free.values())):
            return f"{name} waits for what is free: {free}"
    return None


def _settle(api, watch):
    """Until everything is as it should be, and then nothing may be written any more; how long that took."""
    # What was on its way at the end of the storm, requests and events, still comes.
    time.sleep(LATE + LATEST_WRITE)
    began, found = time.monotonic(), "nothing was looked at"
    while found:
        expect.that(time.monotonic() < began + QUIET, f"not settled after {QUIET} s:", found)
        time.sleep(0.5)
        found = _wrong(api)
    took = time.monotonic() - began

    before = {item["metadata"]["name"]: item for item in api.get(SERVICES)["items"]}
    time.sleep(REST)
    after = {item["metadata"]["name"]: item for item in api.get(SERVICES)["items"]}
    written = [(before.get(name), item) for name, item in after.items()
               if item["metadata"]["resourceVersion"] != before.get(name, item)["metadata"]["resourceVersion"]]
    expect.that(not written and set(before) == set(after), "statuses are written without a cause:",
                [[(one["metadata"].get("annotations"), one["spec"], one["status"]) for one in both] for both in written], "beside",
                {name: (_key(item), _ports(item), _addresses(item)) for name, item in after.items()})
    expect.that(_wrong(api) is None, "what was settled is not any more:", _wrong(api))
    expect.that(watch.failed is None, "the watch failed:", watch.failed)
    return took


@contextlib.contextmanager
def _allocators(bed, dice):
    made = []
    try:
        for i in bed.agents:
            made.append(Allocator(bed, dice, i))
            made[-1].start()
        yield {f"node{one.i}": one for one in made}
    except BaseException:
        for one in made:
            print(f"log of the allocator of node {one.i}:\n" + "\n".join(one.text().splitlines()[-30:]), flush=True)
        raise
    finally:
        for one in made:
            one.close()


def _holder(api):
    try:
        return (api.get(LEASE)["spec"].get("holderIdentity") or "").split("_")[0]
    except ApiError as error:
        if error.status != 404:
            raise
        return ""


def _put_pools(api, data):
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "kube-router-lb-pools", "namespace": "kube-system"}, "data": data}
    api.put(POOLS, body)


def _storm(bed, dice, allocators, seconds, changed, is_enough):
    """Changes by chance, for so long and until they are enough, which takes longer on a busy machine; the holder of the Lease is killed once, at a step,
    and comes back after a while."""
    api, until, back = bed.source.api, time.monotonic() + seconds, []
    latest = until + 3 * seconds
    kill_at = time.monotonic() + min(seconds / 3, 15)
    while time.monotonic() < until or not is_enough() and time.monotonic() < latest:
        now = time.monotonic()
        _change(api, dice)
        changed["count"] += 1
        if dice.random() < 0.03:
            _put_pools(api, dice.choice([{}, {"gold": GOLD}]))
        if kill_at and now > kill_at and (holder := _holder(api)) in allocators:
            victim, kill_at = allocators[holder], None
            changed["killed"] = f"{holder} at {(step := dice.choice(STEPS))}, {'before' if (is_before := dice.random() < 0.5) else 'behind'} it"
            victim.way.at_step = (step, is_before, victim.kill)
            back.append(victim)
        for one in [one for one in back if one.process is None]:
            if dice.random() < 0.1:
                back.remove(one)
                one.start()
        time.sleep(dice.random() * 0.5)
    for one in back:
        one.way.at_step = None
        one.kill()
        one.start()


@contextlib.contextmanager
def _walk(bed):
    """Dice, the allocators, and what sees all that they write; nothing is left behind it."""
    seed = random.randrange(1 << 32)
    print(f"       seed {seed}", flush=True)
    dice, api = random.Random(seed), bed.source.api
    api.put("/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    try:
        watch = Watch(bed.facts)
        with _allocators(bed, dice) as allocators:
            # The Lease may still have the name of one that was killed.
            expect.soon(lambda: any(ACQUIRED in one.text() for one in allocators.values()), 120, "nobody holds the Lease")
            yield dice, allocators, watch
    finally:
        for item in api.get(SERVICES)["items"]:
            api.delete(f"{SERVICES}/{item['metadata']['name']}")
        with contextlib.suppress(ApiError):
            _put_pools(api, {})
            api.delete(f"{POOLS}/kube-router-lb-pools")


def _go(bed, dice, allocators, watch, seconds, old_lists):
    api, changed, ways = bed.source.api, {"count": 0, "killed": "nobody"}, [one.way for one in allocators.values()]
    for way in ways:
        way.done.clear()
        way.is_quiet, way.gives_old_lists = False, old_lists
    written, twice, shared = watch.written, len(watch.twice), watch.shared
    _storm(bed, dice, allocators, seconds, changed, lambda: watch.written - written > FEW)
    for way in ways:
        way.is_quiet, way.gives_old_lists = True, False
    _put_pools(api, {})
    took = _settle(api, watch)
    done = sum((way.done for way in ways), start=type(ways[0].done)())
    print(f"       {changed['count']} changes, killed: {changed['killed']}; {watch.written - written} statuses written, "
          f"{watch.shared - shared} of them with an address that is shared, {len(watch.twice) - twice} with one of others; settled after {took:.1f} s; {dict(sorted(done.items()))}", flush=True)
    expect.that(sum(done.values()) > 10, "the way is not bad:", dict(done))
    expect.that(watch.written - written > FEW, "few addresses were given:", watch.written - written)
    return watch.twice[twice:]


def no_address_is_ever_given_twice_by_agents_with_a_bad_way_to_the_api_server(bed):
    with _walk(bed) as (dice, allocators, watch):
        twice = _go(bed, dice, allocators, watch, STORM, old_lists=False)
        expect.that(not twice, "an address has two owners:", twice)


def what_agents_that_get_old_lists_give_twice_is_mended(bed):
    with _walk(bed) as (dice, allocators, watch):
        for _ in range(3):
            _go(bed, dice, allocators, watch, LONG_STORM, old_lists=True)


what_agents_that_get_old_lists_give_twice_is_mended.long = True


def rounds_of_bad_ways_and_killed_holders_give_no_address_twice(bed):
    with _walk(bed) as (dice, allocators, watch):
        for _ in range(4):
            twice = _go(bed, dice, allocators, watch, LONG_STORM, old_lists=False)
            expect.that(not twice, "an address has two owners:", twice)


rounds_of_bad_ways_and_killed_holders_give_no_address_twice.long = True
