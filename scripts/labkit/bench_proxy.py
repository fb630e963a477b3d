#!/usr/bin/python3
"""The part of scripts/bench proxy that runs where the nodes are: one size, its rows one after the other.

Each row has a node of its own, whose kernel has seen no Service. It prints what it measured, beside the floor or a peer that ran in the same
kernel, and judges no time: only a state that is not the wanted one is an error.
"""
import json
import os
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
from labkit import bench_kube_proxy, bench_objects, net, own  # noqa: E402
from labkit.bench import FLAGS, NODE, PATIENCE, ROUND, Agent, Beside, Node, at, gone, nearby, scraped, timestamp  # noqa: E402
from labkit.bench_connections import connections  # noqa: E402
from labkit.bench_sources import Cluster, Manifests  # noqa: E402

# Services that change at once or in turn, where there are so many.
MANY = 1000
STARTS, SCRAPES, SLOWEST = 3, 5, 6
# When no round of changes has ended for so many seconds, all is done; what follows a start (the last known state is written) is over then, too.
SILENCE = 10
METRICS = 20241
# After so many seconds everybody has tried again who could not read from the API server.
BACK_OFF = 40
# Looks that follow a start are over after so many seconds.
SETTLED = 30
EXCHANGED = 8
# Of a destination against another one, in changes of the kernel.
ONE_CHANGE = 2


def floor(plan, *rolled):
    """What a program takes that does nothing else: with single changes after the start, or a rolling update of so many Services."""
    net.ip(None, "netns add floor", "link add away type veth peer name away netns floor")
    net.ip("floor", "link set lo up", "link add kube-dummy-if type dummy", "link set kube-dummy-if up")
    lines = [f"create {name} {kind} family inet timeout 0 maxelem 65536\n"
             for name, kind in (("kube-router-svip", "hash:ip"), ("kube-router-svip-prt", "hash:ip,port"))]
    own.run("nsenter", "--net=/run/netns/floor", "/usr/sbin/ipset", "restore", text_in="".join(lines))
    text = own.run("nsenter", "--net=/run/netns/floor", plan["floor"], *map(str, (plan["services"], plan["endpoints"], *rolled)))
    net.ip(None, "netns del floor")
    gone("away")  # the tables of IPVS are those of all namespaces
    return json.loads(text)


def started(plan, source, *flags):
    """An agent that tells of each round of changes."""
    return Agent(plan["binary"], source.flags, verbosity=1, flags=[*FLAGS, *flags])


# ---------------------------------------------------------------- rows


def start(plan, source, least):
    with Agent(plan["binary"], source.flags) as agent:
        first = agent.synced()
        check_kernel(plan)
        after_first = agent.memory()
        agent.silent(SILENCE)
        resting, shares = agent.memory(), agent.shares()
    with Agent(plan["binary"], source.flags) as agent:
        again = agent.synced()
        memory = agent.memory()
    both = first["compute_us"] + first["kernel_us"]
    say("cold start, ms", f"{split(first)}; {first['whole_us'] / least['total']:.1f} times the floor")
    say("compute + kernel/floor", f"{both / least['total']:.2f}")
    say("each Service, µs", f"{both / plan['services']:.0f} to compute and in the kernel")
    say("restart, ms", f"{split(again)}; changes in the kernel: {again['steps']}")
    say("resident memory, MiB", f"{after_first[0]:.1f} (at most {after_first[1]:.1f}) after the start, {resting[0]:.1f} at rest ({shares}), {memory[0]:.1f} ({memory[1]:.1f}) after the restart")
    if again["steps"]:
        raise own.LabError(f"the restart made {again['steps']} changes in a kernel that was as wanted")


def one_change(plan, source, agent, index):
    """The round of the change, and microseconds from the moment before the object was written to the kernel's last acknowledgement."""
    after, begun = len(agent.lines()), time.time()
    source.renew(index % plan["services"])
    line, _ = agent.wait_for(ROUND, after, pause=0.002)
    return line, (timestamp(line) - begun) * 1e6


def first_change(plan, source, least):
    took = []
    for turn in range(STARTS):
        with started(plan, source) as agent:
            agent.synced()
            took.append(one_change(plan, source, agent, turn))
    rounds, written = zip(*took)
    say("first change, ms", f"{listed([line['since_seen_us'] for line in rounds])} after each of {STARTS} starts, the first of them cold; "
                            f"from writing it {listed(written)}; the floor's p50 {ms(least['change_p50'])}")
    say("  of it, ms", "; ".join(parts_of_round(index, line) for index, line in enumerate(rounds)))


def changes(plan, source, least):
    with started(plan, source) as agent:
        agent.synced()
        took = [one_change(plan, source, agent, change * 7919) for change in range(plan["changes"])]
        memory = agent.memory()
    rounds, written = zip(*took)
    seen = [line["since_seen_us"] for line in rounds]
    say("one change, ms", f"p50 {ms(at(seen, .5))}, p99 {ms(at(seen, .99))}, the first {ms(seen[0])}, of {len(seen)}; "
                          f"floor p50 {ms(least['change_p50'])}, p99 {ms(least['change_p99'])}")
    say("  of it, p50, ms", ", ".join(f"{name} {ms(at([line[f'{name}_us'] for line in rounds], .5))}" for name in ("compute", "kernel")))
    say("  from writing it", f"p50 {ms(at(written, .5))}, p99 {ms(at(written, .99))}")
    say("  the slowest, ms", "; ".join(parts_of_round(index, line) for index, line in slowest(rounds)))
    say("  resident memory, MiB", f"{memory[0]:.1f} (at most {memory[1]:.1f})")


def slowest(rounds):
    return sorted(enumerate(rounds), key=lambda numbered: -numbered[1]["since_seen_us"])[:SLOWEST]


def parts_of_round(index, line):
    """A slow change by number, with what it waited for: the loop, which was at something else, the calculation or the kernel."""
    waited = line["since_seen_us"] - line["compute_us"] - line["kernel_us"]
    return f"no. {index}: {ms(line['since_seen_us'])} = waiting {ms(waited)}, compute {ms(line['compute_us'])}, kernel {ms(line['kernel_us'])}"


def rest(plan, source, _least):
    with Agent(plan["binary"], source.flags) as agent:
        agent.synced()
        agent.silent(SILENCE)
        before = agent.threads()
        share = agent.share_of_a_core(plan["rest"])
        used = {name: seconds - before.get(name, 0) for name, seconds in agent.threads().items()}
        memory, shares = agent.memory(), agent.shares()
    say("processor at rest", f"{share:.2%} of a core in {plan['rest']} s")
    say("  resident memory, MiB", f"{memory[0]:.1f} (at most {memory[1]:.1f}; {shares})")
    most = sorted(used.items(), key=lambda thread: -thread[1])[:SLOWEST]
    say("  of it by threads", ", ".join(f"{name} {seconds / plan['rest']:.2%}" for name, seconds in most))


def drift(plan, source, _least):
    """Destinations that somebody else exchanges, one after the other in Services all over the table, until they are back; nothing else happens."""
    with started(plan, source) as agent:
        agent.synced()
        agent.silent(SILENCE)
        time.sleep(SETTLED)
        virtuals = sorted({line.split()[2] for line in net.node(NODE, "ipvsadm", "-Sn").splitlines() if line.startswith("-a -t ")})
        before, begun, took = agent.threads(), time.monotonic(), []
        for turn in range(EXCHANGED):
            took.append(exchanged(virtuals[(turn * 7919 + 1) % len(virtuals)]))
            time.sleep(turn)
        lasted = time.monotonic() - begun
        while_damaged = sum(agent.threads().values()) - sum(before.values())
        before = agent.threads()
        time.sleep(plan["rest"])
        at_rest = sum(agent.threads().values()) - sum(before.values())
    say("exchanged by others, s", f"{', '.join(f'{seconds:.1f}' for seconds in took)} until it was as wanted")
    say("  processor", f"{while_damaged / lasted:.2%} of a core in these {lasted:.0f} s, {at_rest / plan['rest']:.2%} in {plan['rest']} s of rest after them")


def exchanged(virtual):
    """Seconds from the exchange of a destination of a virtual service until its destinations are the former ones."""
    # Only this one is listed: a listing of all takes seconds.
    lines = lambda: [line.split() for line in net.node(NODE, "ipvsadm", "-Ln", "-t", virtual).splitlines()]  # noqa: E731
    held = lambda: sorted((words[1], words[3]) for words in lines() if words[0] == "->" and words[1][0].isdigit())  # noqa: E731
    former = held()
    lost = former[0][0]
    net.node(NODE, "ipvsadm", "-d", "-t", virtual, "-r", lost)
    net.node(NODE, "ipvsadm", "-a", "-t", virtual, "-r", "192.0.2.250:9", "-m")
    begun = time.monotonic()
    if not own.wait(lambda: held() == former, 600, 0.1):
        raise own.LabError(f"{virtual} was not as wanted for ten minutes")
    return time.monotonic() - begun


def scrape(plan, source, _least):
    with started(plan, source, f"--metrics-port={METRICS}") as agent:
        agent.synced()
        agent.silent(SILENCE)
        before = agent.processor_seconds()
        took, sizes = zip(*(scraped(METRICS) for _ in range(SCRAPES)))
        processor = (agent.processor_seconds() - before) / SCRAPES
    say("/metrics, ms", f"{listed([second * 1e6 for second in took])}; {sizes[-1] / 1e6:.2f} MB; {processor * 1e3:.0f} ms of a processor each")


def again(plan, source, _least):
    """Everything is read anew and is as it was."""
    with started(plan, source) as agent:
        agent.synced()
        at_start = agent.received()
        agent.silent(SILENCE)
        received, after = agent.received(), len(agent.lines())
        source.repeat()
        if plan["cluster"]:
            time.sleep(BACK_OFF)
        source.renew(0)
        agent.wait_for(ROUND, after)
        settle(plan, agent)
        rounds, received, memory = agent.rounds(after), agent.received() - received, agent.memory()
    steps = sum(line["steps"] for line in rounds) - ONE_CHANGE
    how = f"{received / 1e6:.2f} MB received, {at_start / 1e6:.2f} at the start" if plan["cluster"] else "all files written again"
    say("read anew", f"{how}; changes in the kernel: {steps}; a change after it {ms(rounds[-1].get('since_seen_us', 0))} ms")
    say("  resident memory, MiB", f"{memory[0]:.1f} (at most {memory[1]:.1f})")
    if steps:
        raise own.LabError(f"{steps} changes in a kernel that was as wanted, because everything was read again")


def rate(plan, source, _least):
    """So many changes a second, for so long: each takes one endpoint of a Service away and brings another one."""
    indices = range(min(MANY, plan["services"]))
    with started(plan, source) as agent:
        agent.synced()
        agent.silent(SILENCE)
        before, after = agent.memory(), len(agent.lines())
        writer = Beside(source.renew_many(indices, plan["rate"], plan["seconds"]))
        used, begun = agent.processor_seconds(), time.monotonic()
        found = writer.result()
        share = (agent.processor_seconds() - used) / (time.monotonic() - begun)
        settle(plan, agent)
        rounds, memory = agent.rounds(after), agent.memory()
    seen = [line["since_seen_us"] for line in rounds if line.get("since_seen_us")]
    steps = sum(line["steps"] for line in rounds)
    say("many changes", f"{found['writes'] / found['seconds']:,.0f} a second for {found['seconds']:.0f} s (asked for {plan['rate']:,}) to {len(indices):,} Services")
    say("  of a round, ms", f"p50 {ms(at(seen, .5))}, p99 {ms(at(seen, .99))}, at most {ms(max(seen))} since its first change was seen")
    say("  coalescing", f"{len(rounds):,} rounds, {found['writes'] / len(rounds):.1f} changes each; {steps:,} changes in the kernel, {steps / found['writes']:.2f} each")
    say("  behind at the end, ms", f"{max(0.0, (timestamp(rounds[-1]) - found['ended']) * 1e3):,.1f}")
    say("  processor, memory", f"{share:.0%} of a core; {before[0]:.1f} MiB before, {memory[0]:.1f} after (at most {memory[1]:.1f})")


def rolling(plan, source, least):
    """All endpoints of many Services are replaced at once."""
    indices = range(min(MANY, plan["services"]))
    with started(plan, source) as agent:
        agent.synced()
        agent.silent(SILENCE)
        write = source.roll(indices)
        after, begun = len(agent.lines()), time.time()
        found = Beside(write).result()
        settle(plan, agent, {index: source.rolled(index) for index in indices})
        rounds, memory = agent.rounds(after), agent.memory()
    whole = timestamp(rounds[-1]) - begun
    work = sum(line["compute_us"] + line["kernel_us"] for line in rounds)
    replaced = len(indices) * plan["endpoints"]
    say("rolling update", f"{replaced:,} endpoints of {len(indices):,} Services, written in {found['seconds'] * 1e3:,.0f} ms: done {whole * 1e3:,.0f} ms after the first write, "
                          f"{max(0.0, (timestamp(rounds[-1]) - found['ended']) * 1e3):,.0f} after the last")
    say("  compute + kernel, ms", f"{ms(work)} in {len(rounds)} rounds; the floor takes {ms(least['rolling'])} for the same at once, so {work / least['rolling']:.2f} times that")
    say("  resident memory, MiB", f"{memory[0]:.1f} (at most {memory[1]:.1f})")


ROWS = {"start": start, "first": first_change, "changes": changes, "rest": rest, "drift": drift, "scrape": scrape, "again": again, "rate": rate, "rolling": rolling}
BESIDE_FLOOR = {"start", "first", "changes", "rolling"}


# ---------------------------------------------------------------- the kernel


def without_estimation():
    """The kernel calculates no rates. Before Linux 6.2 it does so for all virtual services and destinations of a network namespace in one go
    every two seconds, and whatever runs on that processor stands still meanwhile."""
    net.sysctl(f"n{NODE}", {"net.ipv4.vs.run_estimation": 0})


def settle(plan, agent, wanted=None):
    """Waits until the kernel is as wanted and no round of changes goes on: a single one may take longer than any silence."""
    deadline = time.monotonic() + PATIENCE
    while True:
        agent.silent(SILENCE)
        try:
            return check_kernel(plan, wanted)
        except own.LabError:
            if time.monotonic() > deadline:
                raise


def check_kernel(plan, wanted=None):
    """The figures of a state that is not the wanted one would mean nothing. `wanted` has slices of some Services that are looked at closely."""
    held = served()
    more = 1 if plan["cluster"] else 0  # the API server's own Service
    found, should = (len(held), sum(map(len, held.values()))), (plan["services"] + more, plan["services"] * plan["endpoints"] + more)
    if found != should:
        raise own.LabError(f"the kernel holds {found[0]} services with {found[1]} destinations in place of {should}")
    for index, made in (wanted or {}).items():
        addresses = {address for endpoint in made["endpoints"] for address in endpoint["addresses"]}
        if held.get(bench_objects.address(index)) != addresses:
            raise own.LabError(f"the kernel sends {bench_objects.address(index)} to {sorted(held.get(bench_objects.address(index), ()))}, not to {sorted(addresses)}")


def served():
    """{address of a virtual service: addresses of its destinations}."""
    with net.Inside(f"n{NODE}"), open("/proc/thread-self/net/ip_vs") as handle:
        lines = [line.split() for line in handle]
    held = {}
    for words in lines:
        if words[0] in ("TCP", "UDP", "SCTP"):
            destinations = held.setdefault(plain(words[1]), set())
        elif words[0] == "->" and words[1] != "RemoteAddress:Port":
            destinations.add(plain(words[1]))
    return held


def plain(text):
    return ".".join(str(byte) for byte in bytes.fromhex(text.split(":")[0]))


# ---------------------------------------------------------------- what is printed


def ms(microseconds):
    return f"{microseconds / 1e3:,.{1 if microseconds >= 1000 else 2}f}"


def listed(microseconds):
    return ", ".join(map(ms, microseconds))


def split(line):
    rest_of_it = line["whole_us"] - line["compute_us"] - line["kernel_us"]
    return f"{ms(line['whole_us'])} = input {ms(rest_of_it)}, compute {ms(line['compute_us'])}, kernel {ms(line['kernel_us'])}"


def say(what, text):
    print(f"  {what:<24}{text}", flush=True)


def main():
    plan = json.loads(os.environ["SLUICE_BENCH"])
    plan.update({program: nearby(plan[program]) for program in ("binary", "floor", "kube_proxy", "packets") if plan.get(program)})
    if "peer" in plan:
        return bench_kube_proxy.peer(plan, Cluster(plan))
    kind = "API server" if plan["cluster"] else f"manifests ({plan['format']})"
    print(f"\n{plan['services']:,} services x {plan['endpoints']} endpoints, from {kind}", flush=True)
    source = (Cluster if plan["cluster"] else Manifests)(plan)
    least = None
    if BESIDE_FLOOR & set(plan["rows"]):
        least = floor(plan)
        if "rolling" in plan["rows"]:
            least["rolling"] = floor(plan, min(MANY, plan["services"]))["rolling"]
        say("floor, ms", f"{ms(least['total'])} (elements {ms(least['elements'])}, IPVS {ms(least['virtuals'])}, routes {ms(least['routes'])})")
    for name, row in ROWS.items():
        if name in plan["rows"]:
            with Node(source):
                if not plan["estimation"]:
                    without_estimation()
                row(plan, source, least)
    if "connections" in plan["rows"]:
        with Node(source, 2, 2):
            connections(plan, source, say)


if __name__ == "__main__":
    try:
        main()
    except (own.LabError, subprocess.SubprocessError) as error:
        own.say(f"bench: {error}")
        sys.exit(1)
