#!/usr/bin/python3
"""The part of scripts/bench memory that runs where the node is: what whole agents occupy.

Each row is one process; those with the firewall one for each packet filter that is asked for, else with the one that the program takes. What it occupies is read from the kernel: when nothing has changed for a while, and the highest until then. Of the router alone,
which dials 5,000 nodes that do not answer, also what it takes of a core then.
"""
import ipaddress
import json
import os
import shutil
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
from labkit import bench_objects, net, own  # noqa: E402
from labkit.bench import PATH, Agent, settle  # noqa: E402
from labkit.bench_policies import APP, application, made, name, namespace, namespaces, policy  # noqa: E402
from labkit.bench_daemons import Bird, Sluice, Speaker, on_processor  # noqa: E402
from labkit.bench_router import PREFIXES, learning  # noqa: E402

NODES, PODS_EACH, SERVICES, ENDPOINTS, POLICIES = 5000, 30, 10_000, 10, 1000
# Objects in one file.
TOGETHER = 100
FLAGS = ["--run-service-proxy=false", "--hostname-override=node0", "--log-format=json", f"--socket={net.RUN}/bench.sock"]
READ = "Manifests read"
ADDRESS, SIX = "172.31.255.1", "2001:db8:2::1"
# After so many seconds all nodes have been dialled, and nobody is waited for any more.
DIALLED = 120


def addresses(node, pod):
    """Of both families; pod 0 is the first pod of its node."""
    return [str(ipaddress.ip_address(f"10.{node >> 8}.{node & 255}.{pod + 2}")), f"fd00:10:244:{node:x}::{pod + 2:x}"]


def node(index):
    ranges = [f"10.{index >> 8}.{index & 255}.0/24", f"fd00:10:244:{index:x}::/64"]
    own_addresses = [str(ipaddress.ip_address("172.16.0.1") + index) if index else ADDRESS, f"2001:db8:2::{index + 1:x}"]
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": f"node{index}", "labels": {"kubernetes.io/hostname": f"node{index}"}},
            "spec": {"podCIDR": ranges[0], "podCIDRs": ranges},
            "status": {"addresses": [{"type": "InternalIP", "address": a} for a in own_addresses] + [{"type": "Hostname", "address": f"node{index}"}]}}


def pod(index):
    """Pods of a node are of many namespaces and applications."""
    of_node, number = divmod(index, PODS_EACH)
    app = application(index)
    labels = {APP: f"app-{app}", "app.kubernetes.io/part-of": "shop", "app.kubernetes.io/instance": f"instance-{app}",
              "pod-template-hash": f"{app * 7919:010x}", "tier": "back" if app % 2 else "front"}
    return made(namespace(index), name(index), labels, f"node{of_node}", addresses(of_node, number))


def write(folder, kind, items):
    items = list(items)
    for first in range(0, len(items), TOGETHER):
        own.write(f"{folder}/{kind}-{first:06}.json", "\n".join(json.dumps(item) for item in items[first:first + TOGETHER]))


def cluster():
    """The directory of all objects."""
    folder = own.fresh(f"{net.RUN}/bench-manifests")
    write(folder, "nodes", map(node, range(NODES)))
    write(folder, "namespaces", [*namespaces(), {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": bench_objects.NAMESPACE}}])
    write(folder, "pods", map(pod, range(NODES * PODS_EACH)))
    write(folder, "services", map(bench_objects.service, range(SERVICES)))
    write(folder, "slices", (bench_objects.slice_of(index, ENDPOINTS) for index in range(SERVICES)))
    write(folder, "policies", map(policy, range(POLICIES)))
    return folder


def rollup(pid):
    """(resident, proportional, anonymous), in MiB."""
    with open(f"/proc/{pid}/smaps_rollup") as handle:
        fields = dict(line.split(":", 1) for line in handle if ":" in line and "kB" in line)
    return tuple(int(fields[name].split()[0]) / 1024 for name in ("Rss", "Pss", "Anonymous"))


def highest(pid):
    with open(f"/proc/{pid}/status") as handle:
        fields = dict(line.split(":", 1) for line in handle)
    return int(fields["VmHWM"].split()[0]) / 1024


def show(what, pid):
    resident, proportional, anonymous = rollup(pid)
    print(f"  {what:<52}{resident:>8.1f}{proportional:>8.1f}{anonymous:>8.1f}{highest(pid):>8.1f}", flush=True)


def at_rest(pid, seconds):
    """The share of a core that a process takes from now on."""
    def ran():
        return sum(on_processor(pid, thread) for thread in os.listdir(f"/proc/{pid}/task")) / 1e9

    before, begun = ran(), time.monotonic()
    time.sleep(seconds)
    return (ran() - before) / (time.monotonic() - begun)


def whole_agent(plan, what, *flags, seconds=0):
    """One agent in a namespace of its own, in which no other node answers; looked at for so many seconds when nothing changes any more."""
    shutil.rmtree(f"{net.RUN}/bench-state", ignore_errors=True)
    net.ip(None, "netns add n1", "link add eth0 netns n1 type veth peer name far netns n1")
    net.ip("n1", "link set lo up", "link set eth0 up", "link set far up", f"addr add {ADDRESS}/12 dev eth0", f"addr add {SIX}/64 dev eth0 nodad")
    net.sysctl("n1", {"net.ipv4.ip_forward": 1, "net.ipv6.conf.all.forwarding": 1})
    try:
        with Agent(plan["binary"], ["--manifests", plan["manifests"]], flags=FLAGS + list(flags), path=PATH) as agent:
            agent.wait_for(READ)
            settle(lambda: rollup(agent.process.pid)[2])
            show(what, agent.process.pid)
            if seconds:
                time.sleep(DIALLED)
                print(f"    at rest for {seconds} s, of a core: {at_rest(agent.process.pid, seconds):.2%}", flush=True)
    finally:
        net.ip(None, "netns del n1")


def tables(plan, kind):
    """What two neighbours tell, as `kind` keeps it."""
    with learning(kind, plan) as daemon:
        pid = daemon.running[-1].pid
        settle(lambda: rollup(pid)[2])
        show(f"2 x {PREFIXES:,} learned routes, {daemon.name}", pid)


def with_firewall(plan, what, *flags):
    for netfilter in plan["netfilters"] or [None]:
        chosen = [f"--netfilter={netfilter}"] if netfilter else []
        whole_agent(plan, f"{what}, {netfilter}" if netfilter else what, "--run-firewall" + ON, *flags, *chosen)


ON, OFF = "=true", "=false"
ROWS = {
    "a": lambda plan: with_firewall(plan, "the firewall alone", "--run-router" + OFF),
    "b": lambda plan: whole_agent(plan, "the router alone", "--run-firewall" + OFF, "--run-router" + ON, seconds=plan["rest"]),
    "c": lambda plan: with_firewall(plan, "firewall and router", "--run-router" + ON),
    "d": lambda plan: [tables(plan, kind) for kind in (Sluice, Speaker, Bird)],
}


def main():
    plan = json.loads(os.environ["SLUICE_BENCH"])
    os.makedirs(net.RUN, exist_ok=True)
    os.environ["KUBE_ROUTER_CNI_CONF_FILE"] = f"{net.RUN}/cni.conflist"
    if set("abc") & set(plan["rows"]):
        plan["manifests"] = cluster()
    print(f"\n  {'MiB':<52}{'RSS':>8}{'PSS':>8}{'anon.':>8}{'highest':>8}", flush=True)
    for row, measure in ROWS.items():
        if row in plan["rows"]:
            measure(plan)


if __name__ == "__main__":
    try:
        main()
    except own.LabError as error:
        own.say(f"bench: {error}")
        sys.exit(1)
