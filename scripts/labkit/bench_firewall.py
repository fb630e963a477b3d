#!/usr/bin/python3
"""The part of scripts/bench firewall that runs where the node is: one size, or the cost of packets.

A change is timed in two ways: by the agent, from seeing the event to the kernel's last acknowledgement (a line of its log), and
from outside, from the moment at which the object is changed until a connection that it allows or refuses says so. The
second is the same for every agent.
"""
import json
import os
import shutil
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
from labkit import bench_policies as objects, net, own, traffic  # noqa: E402
from labkit.api import Api  # noqa: E402
from labkit.bench import Agent, PATH, timestamp  # noqa: E402
from labkit.outside import relay  # noqa: E402
from labkit.source import kubeconfig  # noqa: E402

OURS = ["--run-router=false", "--run-firewall=true", "--run-service-proxy=false", "--hostname-override=node1", "--log-format=json",
        f"--socket={net.RUN}/bench.sock"]
THEIRS = ["--run-router=false", "--run-firewall=true", "--run-service-proxy=false", "--hostname-override=node1", "--v=0"]
FIRST, ROUND = "First sync of network policies finished", "Network policy changes programmed"
COUNTS = f"{net.RUN}/bench-counts"
FRONT = f"{net.RUN}/bench-front"
PROGRAMS = [f"{family}-{flavour}{verb}" for family in ("iptables", "ip6tables") for flavour in ("nft-", "legacy-", "")
            for verb in ("save", "restore")] + ["iptables", "ip6tables", "ipset", "nft"]
SECONDS = 0.4
TURNS = 15
# The pods of a second node, on which no agent runs.
BESIDE = {"server": "n2p1", "client": "n2p2"}


class Ours(Agent):
    """The product. `front` is a folder with programs that stand before those of the host."""

    def __init__(self, plan, source, front=""):
        flags = [*OURS, f"--netfilter={plan['netfilter']}"]
        super().__init__(plan["binary"], source.flags, verbosity=1, flags=flags, path=front + PATH)
        self.first = FIRST

    def start_figures(self):
        line, _ = self.wait_for(FIRST, pause=0.02)
        rounds = [seen for seen in self.lines() if seen["message"] == ROUND]
        found = {word: sum(seen[f"{word}_us"] for seen in rounds) / 1e3 for word in ("compute", "sets", "rules")}
        return {"whole": (timestamp(line) - self.began) * 1e3, "steps": line["steps"], "elements": line["elements"], **found}

    def rounds_after(self, number):
        return [seen for seen in self.lines()[number:] if seen["message"] == ROUND]


class Theirs:
    """A kube-router, of which only what can be seen from outside is known."""

    def __init__(self, plan, source, front=""):
        self.log = f"{net.RUN}/kube-router.log"
        with open(self.log, "wb") as log:
            command = [plan["kube_router"], *THEIRS, *source.flags]
            self.began = time.time()
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                                            env=dict(os.environ, PATH=front + PATH, NODE_NAME="node1"),
                                            preexec_fn=lambda: net.enter("n1"))

    memory, processor_seconds, __enter__ = Agent.memory, Agent.processor_seconds, Agent.__enter__

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait(60)


class Manifests:
    """Pods of one node in one file, but for those that change."""
    kind = "manifests (json)"

    def __init__(self, plan):
        self.folder = f"{net.RUN}/bench-manifests"
        shutil.rmtree(self.folder, ignore_errors=True)
        os.makedirs(self.folder)
        self.flags = ["--manifests", self.folder]
        self.apart = set(changing(plan)) | set(range(objects.LOCAL))
        self.write("cluster", [objects.node(), *objects.namespaces()])
        for first in range(0, plan["pods"], objects.LOCAL):
            numbers = [i for i in range(first, min(first + objects.LOCAL, plan["pods"])) if i not in self.apart]
            self.write(f"pods-{first:05}", map(objects.pod, numbers))
        for index in self.apart:
            self.label(index, objects.application(index))
        self.client("other")
        self.policies(plan["policies"])

    def write(self, name, items):
        """As a whole: what is half there must not be seen."""
        with open(f"{net.RUN}/bench.manifest", "w") as handle:
            handle.write("\n".join(json.dumps(item) for item in items))
        os.rename(f"{net.RUN}/bench.manifest", f"{self.folder}/{name}.json")

    def label(self, index, app):
        self.write(f"pod-{index:05}", [objects.pod(index, app)])

    def client(self, app):
        self.write("client", [objects.client(app)])

    def policies(self, count):
        self.write("policies", map(objects.policy, range(count)))

    def more(self, policies):
        """Policies besides these, in place of the ones before."""
        self.write("more", policies)


class Cluster:
    kind = "API server"

    def __init__(self, plan):
        facts = plan["cluster"]
        self.api = Api(facts)
        path = f"{net.RUN}/bench-kubeconfig"
        own.write(path, kubeconfig(f"https://{net.CONTROL[0]}:6443", facts["token"], facts["authority"]), 0o600)
        self.flags = ["--kubeconfig", path]
        self.api.put("/api/v1/nodes", objects.node())
        self.api.patch("/api/v1/nodes/node1/status", {"status": objects.node()["status"]})
        for space in objects.namespaces():
            self.api.put("/api/v1/namespaces", space)
        self.facts, self.added = facts, []
        self.clear_policies()
        objects.fill(facts, [*map(objects.pod, range(plan["pods"])), objects.client("other")])
        objects.fill(facts, [*map(objects.policy, range(plan["policies"]))])

    def clear_policies(self):
        for space in map(objects.namespace, range(objects.NAMESPACES)):
            self.api.delete(f"/apis/networking.k8s.io/v1/namespaces/{space}/networkpolicies")

    def relabel(self, pod, app):
        meta = pod["metadata"]
        self.api.patch(f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}", {"metadata": {"labels": {objects.APP: app}}})

    def label(self, index, app):
        self.relabel(objects.pod(index), f"app-{app}")

    def client(self, app):
        self.relabel(objects.client(app), app)

    def more(self, policies):
        for policy in self.added:
            self.api.delete(f"{objects.collection(policy)}/{policy['metadata']['name']}")
        self.added = policies
        objects.fill(self.facts, policies)


def changing(plan):
    """Pods of other nodes that enter and leave the set of application 0, which rules of node 1 name."""
    far = [i for i in range(objects.LOCAL, plan["pods"]) if objects.application(i) > 1]
    return [far[turn * 7919 % len(far)] for turn in range(plan["changes"] // 2)]


def main():
    plan = json.loads(os.environ["SLUICE_BENCH"])
    net.up(2 if plan["what"] == "packets" else 1, 2, 1)
    # Every refusal is told, however often somebody asks.
    net.sysctl("n1", {"net.ipv4.icmp_ratelimit": 0})
    servers, forwarder = [], relay(plan["cluster"]["port"]) if plan["cluster"] else None
    try:
        if plan["what"] == "packets":
            packets(plan)
        else:
            servers.append(traffic.serve(objects.SERVER, [("tcp", objects.NUMBER), ("tcp", objects.METRICS)]))
            size(plan)
    finally:
        for pid in [*servers, *([forwarder] if forwarder else [])]:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        net.down()


# ---------------------------------------------------------------- one size


def size(plan):
    source = (Cluster if plan["cluster"] else Manifests)(plan)
    shutil.rmtree(f"{net.RUN}/bench-state", ignore_errors=True)
    # Nobody shall pay for bringing a program into memory.
    subprocess.run([plan["binary"], "--version"], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    for netfilter in plan["netfilters"]:
        print(f"\n{plan['pods']:,} pods, {objects.LOCAL} of them here; {plan['policies']:,} policies; from {source.kind}; {netfilter}", flush=True)
        ours({**plan, "netfilter": netfilter}, source)
        own.run(*net.node_command(1, plan["binary"], *OURS, *source.flags, "--cleanup-config"))
    if plan["kube_router"]:
        theirs(plan, source)


def ours(plan, source):
    with Ours(plan, source) as agent:
        start = agent.start_figures()
        settled(source, agent)
    with Ours(plan, source) as agent:
        again = agent.start_figures()
    if again["steps"]:
        raise own.LabError(f"the restart made {again['steps']} changes in a kernel that was as wanted")
    with Ours(plan, source) as agent:
        agent.wait_for(FIRST)
        peers = changes(agent, source, [(index, app) for index in changing(plan) for app in (0, objects.application(index))])
        here = [index for index in range(2, objects.LOCAL) if objects.application(index) == 0][:plan["changes"] // 8 or 1]
        local = changes(agent, source, [(index, app) for index in here for app in (1, 0)])
        new = policies(agent, source, plan["changes"] // 8 or 1, lambda turn: [objects.everybody(0, turn)])
        all_spaces = range(objects.NAMESPACES)
        wide = policies(agent, source, plan["changes"] // 16 or 1, lambda turn: [objects.everybody(space, turn) for space in all_spaces])
        # An API server has no such objects unless somebody brings their definition.
        one = policies(agent, source, plan["changes"] // 16 or 1, lambda turn: [objects.cluster_wide(turn)]) if isinstance(source, Manifests) else []
        outside = observed(source, plan["changes"] // 4)
        asked = question(plan)
        memory = agent.memory()
    ms = lambda value: f"{value:,.1f}"  # noqa: E731
    waited = start["whole"] - start["compute"] - start["sets"] - start["rules"]
    print(f"  cold start, ms          {ms(start['whole'])} = input {ms(waited)}, compute {ms(start['compute'])}, sets {ms(start['sets'])}, "
          f"rules {ms(start['rules'])}; {start['elements']:,} elements")
    print(f"  restart, ms             {ms(again['whole'])}; changes in the kernel: {again['steps']}")
    print(f"  label of a peer, ms     {spread(peers, 'since_seen')}; seen from outside {spread(outside)}")
    print(f"    beside input          {beside(peers)}")
    middle = {word: sorted(t[word] for t in local)[len(local) // 2] for word in ("compute", "sets", "rules")}
    print(f"  label of a pod here, ms {spread(local, 'since_seen')}; " + ", ".join(f"{word} {ms(middle[word])}" for word in middle))
    print(f"    beside input          {beside(local)}")
    print(f"  new policy, ms          {spread(new, 'since_seen')}; {objects.NAMESPACES} for all pods here {spread(wide, 'since_seen')}")
    print(f"    beside input          {beside(new)}")
    print(f"      {objects.NAMESPACES} for all pods here {beside(wide)}")
    if one:
        print(f"  one ClusterNetworkPolicy for all pods here, ms {spread(one, 'since_seen')}")
        print(f"    beside input          {beside(one)}")
    print(f"  policy explain, ms      {ms(asked)}")
    print(f"  resident memory, MiB    {memory[0]:.1f} (at most {memory[1]:.1f})")
    for what, (count, bytes_in) in counted(plan, source, Ours, here).items() if plan["netfilter"] == "iptables" else ():
        print(f"  programs for {what:<10} {count:.1f} with {bytes_in:,.0f} bytes of rules", flush=True)


def theirs(plan, source):
    with Theirs(plan, source) as agent:
        start = settled(source, agent)
        outside = observed(source, max(10, plan["changes"] // 16))
        memory = agent.memory()
    with Theirs(plan, source) as agent:
        again = settled(source, agent, flips=True)
    here = [index for index in range(2, objects.LOCAL) if objects.application(index) == 0][:4]
    print(f"  kube-router: cold start {start * 1e3:,.0f} ms (until a refused connection is), restart {again * 1e3:,.0f} ms (until a change is taken in)")
    print(f"  kube-router: label of a peer, ms, seen from outside {spread(outside)}")
    print(f"  kube-router: resident memory, MiB {memory[0]:.1f} (at most {memory[1]:.1f})")
    for what, (count, bytes_in) in counted(plan, source, Theirs, here).items():
        print(f"  kube-router: programs for {what} {count:.1f} with {bytes_in:,.0f} bytes of rules", flush=True)


def spread(took, word=None):
    took = sorted(t[word] for t in took) if word else sorted(took)
    return f"p50 {took[len(took) // 2]:,.1f}, p99 {took[len(took) * 99 // 100]:,.1f} of {len(took)}"


def beside(took):
    """What the calculation and the kernel took of each change, and which of the changes, in their order, took most."""
    sums = [t["compute"] + t["sets"] + t["rules"] for t in took]
    most = sorted(range(len(sums)), key=lambda i: -sums[i])[:4]
    return f"{spread(sums)}; most: " + ", ".join(f"{sums[i]:.1f} (no. {i + 1})" for i in most)


def changes(agent, source, turns):
    """What single changes took, in ms, from the agent's seeing the event to the kernel's last acknowledgement."""
    return [taken(agent, lambda: source.label(index, app)) for index, app in turns]


def taken(agent, change):
    """What one change took, in ms."""
    after = len(agent.lines())
    change()
    line, _ = agent.wait_for(ROUND, after, pause=0.002)
    while "since_seen_us" not in line:  # what nobody enters any more was removed
        after += 1
        line, _ = agent.wait_for(ROUND, after, pause=0.002)
    return {word: line[f"{word}_us"] / 1e3 for word in ("since_seen", "compute", "sets", "rules")}


def policies(agent, source, count, made):
    """What new policies took, all that are `made` for a turn at once."""
    took = []
    for turn in range(count):
        took.append(taken(agent, lambda: source.more(made(turn))))
        taken(agent, lambda: source.more([]))
    return took


def allowed():
    """Whether the client reaches the port of the server that only application 0 may."""
    try:
        with net.Inside(objects.CLIENT), traffic.connect(net.pod_addresses(objects.SERVER)[0], objects.METRICS, patience=0.02):
            return True
    except OSError:
        return False


def observed(source, count):
    """What changes of the client's label took, in ms, until connections say so."""
    took = []
    for turn in range(count):
        wanted = turn % 2 == 0
        at = time.monotonic()
        source.client("app-0" if wanted else "other")
        if not own.wait(lambda: allowed() == wanted, 300, 0):
            raise own.LabError(f"five minutes after its label changed the client is {'refused' if wanted else 'allowed'}")
        took.append((time.monotonic() - at) * 1e3)
    source.client("other")
    return took


def settled(source, agent, flips=False):
    """Seconds from the start of an agent until the client is refused, or until it is let in when it gets its label."""
    if flips:
        source.client("app-0")
    if not own.wait(lambda: allowed() == flips, 600, 0.01):
        raise own.LabError("the agent does not enforce the policies within ten minutes")
    took = time.time() - agent.began
    if flips:
        source.client("other")
    return took


def question(plan):
    """What one question takes, in ms, with the program that asks it."""
    best = 1e9
    for _ in range(5):
        at = time.monotonic()
        said = own.run(*net.node_command(1, plan["binary"], "policy", "explain", f"--socket={net.RUN}/bench.sock", "--from", f"{objects.CLIENTS}/client",
                                         "--to", f"{objects.namespace(0)}/{objects.name(0)}:{objects.METRICS}"))
        best = min(best, (time.monotonic() - at) * 1e3)
        if "kernel: has these rules" not in said:
            raise own.LabError(f"the agent does not say that its rules are in the kernel:\n{said}")
    return best


def counted(plan, source, kind, here):
    """{what: (programs, bytes that they were given)} for one change, counted by programs that stand before the host's."""
    shutil.rmtree(FRONT, ignore_errors=True)
    os.makedirs(FRONT)
    for name in PROGRAMS:
        real = shutil.which(name, path=PATH)
        if real:
            own.write(f"{FRONT}/{name}", f"#!/bin/sh\nt=$(mktemp {net.RUN}/in.XXXXXX)\ncase {name} in *restore|nft|ipset) cat > $t;; esac\n"
                      f"echo {name} $(stat -c %s $t) >> {COUNTS}\nexec {real} \"$@\" < $t\n", 0o755)
    open(COUNTS, "w").close()
    with kind(plan, source, front=FRONT + ":") as agent:
        settled(source, agent, flips=True)
        time.sleep(5)
        found = {}
        for what, turns in (("a peer", [lambda: source.client("app-0"), lambda: source.client("other")] * 4),
                            ("a pod here", [lambda i=i, a=a: source.label(i, a) for i in here[:4] for a in (1, 0)])):
            open(COUNTS, "w").close()
            for turn in turns:
                turn()
                time.sleep(2)
            with open(COUNTS) as handle:
                lines = [line.split() for line in handle]
            found[what] = len(lines) / len(turns), sum(int(size) for _, size in lines) / len(turns)
    return found


# ---------------------------------------------------------------- packets


def packets(plan):
    source = Manifests({**plan, "policies": 0})
    servers = [subprocess.Popen(net_command(name, plan["packets"], "serve")) for name in (objects.SERVER, BESIDE["server"])]
    try:
        print("\nBetween two pods of one node, over IPv4: new connections in a second, and bytes over one; best of "
              f"{TURNS} times {SECONDS} s.\nBeside it, in turn, the same on a node without an agent that tracks connections and has one rule: "
              "the median of the turns' ratios (a fifth are lower, a fifth higher)")
        time.sleep(0.5)
        track(2)
        row(plan, "no policy, no agent, nothing tracked")
        track(1)
        row(plan, "connections tracked, one rule, no agent")
        net.node(1, "nft", "delete table inet bench")
        for netfilter in plan["netfilters"]:
            print(f" {netfilter}", flush=True)
            with Ours({**plan, "netfilter": netfilter}, source) as agent:
                judged(plan, source, agent)
            source.policies(0)
            own.run(*net.node_command(1, plan["binary"], *OURS, *source.flags, "--cleanup-config"))
        track(1)
        row(plan, "connections tracked, one rule, no agent, again")
    finally:
        for server in servers:
            server.kill()
            server.wait()


def track(i):
    """The least that any agent has: node i tracks connections, and a rule accepts what belongs to one."""
    table = "table inet bench { chain forward { type filter hook forward priority 0; ct state established accept; }; }"
    net.node(i, "nft", "-f", "-", text_in=table)


def judged(plan, source, agent):
    """The rows of one packet filter."""
    agent.wait_for(FIRST)
    row(plan, "no policy")
    for count in (1, 300, 1000):
        spaced(source, agent, [*map(objects.policy, range(1, count)), objects.guard(0, 1, f"one-of-{count}")])
        row(plan, f"{count:,} {'policy' if count == 1 else 'policies, one of them'} for the pod")
    for count in (10, 300, 1000):
        spaced(source, agent, [objects.guard(i, count, f"each-of-{count}") for i in range(count)])
        row(plan, f"{count:,} policies for the pod, the last allows")
    spaced(source, agent, [objects.blocks(1000)])
    row(plan, "1,000 blocks, the last allows")
    spaced(source, agent, [objects.passing(50), objects.guard(0, 1, "behind")])
    row(plan, "50 rules of an Admin tier that pass on, then 1 policy")
    spaced(source, agent, [objects.guard(0, 2, "flood")])
    flooded(plan, agent)


def flooded(plan, agent):
    """Datagrams that the policy refuses, while nobody asks for refused packets and while somebody follows them."""
    print("  refused datagrams of one client, for 5 s", flush=True)
    for what, command in (("followed by policy drops -f", [plan["binary"], "policy", "drops", "-f", f"--socket={net.RUN}/bench.sock"]), ("nobody asks", None)):
        asker = command and subprocess.Popen(net.node_command(1, *command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        try:
            time.sleep(1)
            before = agent.processor_seconds()
            sent = json.loads(own.run(*net_command(objects.CLIENT, plan["packets"], "flood", net.pod_addresses(objects.SERVER)[0], "5")))["datagrams"]
            busy = (agent.processor_seconds() - before) / 5
        finally:
            if asker:
                asker.terminate()
        shown = f", {len(asker.communicate()[0].splitlines())} lines shown" if asker else ""
        print(f"    {what:<44} {sent:>8,.0f}/s; the agent takes {busy:.2%} of a core and {agent.memory()[0]:.1f} MiB{shown}", flush=True)


def spaced(source, agent, policies):
    """Puts other policies in force, of which one concerns the pod, so that the agent has something to do."""
    after = len(agent.lines())
    source.write("policies", policies)
    agent.wait_for(ROUND, after)
    time.sleep(1)


def row(plan, what):
    """Turns on the node and on the one beside it, one after the other: what the machine does besides meets both."""
    def turn(client, server):
        return json.loads(own.run(*net_command(client, plan["packets"], "measure", net.pod_addresses(server)[0], str(SECONDS))))
    pairs = [(turn(objects.CLIENT, objects.SERVER), turn(BESIDE["client"], BESIDE["server"])) for _ in range(TURNS)]

    def ratio(word):
        found = sorted(ours[word] / other[word] for ours, other in pairs)
        low, middle, high = (found[len(found) * tenth // 10] for tenth in (2, 5, 8))
        return f"{middle:.0%} ({low:.0%} to {high:.0%})"
    best = {word: max(ours[word] for ours, _ in pairs) for word in ("connections", "bytes")}
    print(f"  {what:<54} {best['connections']:>8,.0f}/s, {ratio('connections'):<20} {best['bytes'] / 1e9:>6.2f} GB/s, {ratio('bytes')}", flush=True)


def net_command(namespace, *command):
    return ["nsenter", f"--net=/run/netns/{namespace}", *command]


if __name__ == "__main__":
    try:
        main()
    except own.LabError as error:
        own.say(f"bench: {error}")
        sys.exit(1)
