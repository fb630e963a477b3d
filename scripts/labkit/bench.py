#!/usr/bin/python3
"""The part of scripts/bench that runs where the nodes are: one size, the floor and the product in the same kernel.

The product tells its own times: the log lines of its first sync and of each round of changes have them as fields.
"""
import calendar
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
from labkit import bench_objects, net, own  # noqa: E402
from labkit.outside import OUTSIDE, relay  # noqa: E402
from labkit.api import Api  # noqa: E402
from labkit.source import kubeconfig  # noqa: E402

NODE = 1
ADDRESS = "192.0.2.11"
FLAGS = ["--run-router=false", "--run-firewall=false", "--run-service-proxy=true", "--enable-ipv6=false",
         f"--hostname-override=node{NODE}", f"--service-cluster-ip-range={net.SERVICE_RANGES[0]}", "--log-format=json"]
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
FIRST, ROUND = "First sync of services finished", "Service changes programmed"
PATIENCE = 600


class Agent:
    """The product on the node, and what it says."""

    def __init__(self, binary, source, verbosity=0, flags=FLAGS, path=PATH):
        self.log = f"{net.RUN}/bench.log"
        self.seen, self.rest = [], b""
        with open(self.log, "wb") as log:
            command = [binary, *flags, f"-v={verbosity}", f"--state-dir={net.RUN}/bench-state", *source]
            self.began = time.time()
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                                            env=dict(os.environ, PATH=path), preexec_fn=lambda: net.enter(f"n{NODE}"))
        self.handle = open(self.log, "rb")

    def lines(self):
        *whole, self.rest = (self.rest + self.handle.read()).split(b"\n")
        self.seen += [json.loads(line) for line in whole if line.startswith(b"{")]
        return self.seen

    def wait_for(self, message, after=0, seconds=PATIENCE, pause=0.01):
        """The first line with this message behind the first `after` lines, and the number of lines up to it."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for number, line in enumerate(self.lines()[after:], after + 1):
                if line["message"] == message:
                    return line, number
            if self.process.poll() is not None:
                break
            time.sleep(pause)
        with open(self.log, errors="replace") as handle:
            raise own.LabError(f"no '{message}' within {seconds} s:\n" + "".join(handle.readlines()[-10:]))

    def synced(self):
        """The line of the first sync, with the time since the start of the process."""
        line, _ = self.wait_for(FIRST)
        return dict(line, whole_us=int((timestamp(line) - self.began) * 1e6))

    def memory(self):
        """(resident, at most so far), in MiB."""
        with open(f"/proc/{self.process.pid}/status") as handle:
            fields = dict(line.split(":", 1) for line in handle)
        return tuple(int(fields[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM"))

    def processor_seconds(self):
        with open(f"/proc/{self.process.pid}/stat") as handle:
            fields = handle.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait(60)
        self.handle.close()


def timestamp(line):
    """Seconds since 1970 of a line of the log."""
    whole, _, fraction = line["timestamp"].rstrip("Z").partition(".")
    return calendar.timegm(time.strptime(whole, "%Y-%m-%dT%H:%M:%S")) + float(f"0.{fraction or 0}")


class Manifests:
    def __init__(self, plan):
        self.plan = plan
        self.folder = f"{net.RUN}/bench-manifests"
        shutil.rmtree(self.folder, ignore_errors=True)
        os.makedirs(self.folder)
        self.flags = ["--manifests", self.folder]
        self.write("nodes", [bench_objects.node(ADDRESS)])
        for index in range(plan["services"]):
            self.put(index, 0)

    def put(self, index, turn):
        self.write(bench_objects.name(index), [bench_objects.service(index), bench_objects.slice_of(index, self.plan["endpoints"], turn)])

    def write(self, name, items):
        """As a whole: what is half there must not be seen."""
        if self.plan["format"] == "json":
            text = "\n".join(json.dumps(item) for item in items)
        else:
            text = "".join("---\n" + yaml(item) for item in items)
        path = f"{self.folder}/{name}.{self.plan['format']}"
        with open(f"{net.RUN}/bench.manifest", "w") as handle:
            handle.write(text)
        os.rename(f"{net.RUN}/bench.manifest", path)


class Cluster:
    def __init__(self, plan):
        facts = plan["cluster"]
        self.plan, self.api = plan, Api(facts)
        self.api.put("/api/v1/nodes", bench_objects.node(ADDRESS))
        self.api.patch("/api/v1/nodes/node1/status", {"status": bench_objects.node(ADDRESS)["status"]})
        path = f"{net.RUN}/bench-kubeconfig"
        token = facts["token" if "peer" in plan else "agent_token"]
        own.write(path, kubeconfig(f"https://{reach(facts['port'])}", token, facts["authority"]), 0o600)
        self.flags = ["--kubeconfig", path]

    def put(self, index, turn):
        made = bench_objects.slice_of(index, self.plan["endpoints"], turn)
        self.api.patch(f"{bench_objects.SLICES}/{made['metadata']['name']}", {"endpoints": made["endpoints"]})


def reach(port):
    """The address by which the node reaches a port of the machine's loopback. In a guest the kernel forwards, because a
    relay of ours would share the two processors with what is measured."""
    if os.environ.get(OUTSIDE):
        return f"{net.CONTROL[0]}:6443"
    net.ip(None, f"link add machine type veth peer name machine netns n{NODE}", "addr add 198.18.0.1/30 dev machine", "link set machine up")
    net.ip(f"n{NODE}", "addr add 198.18.0.2/30 dev machine", "link set machine up", "route add 10.0.2.2 via 198.18.0.1")
    with open("/proc/sys/net/ipv4/ip_forward", "w") as handle:
        handle.write("1")
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


def main():
    plan = json.loads(os.environ["SLUICE_BENCH"])
    net.up(1, 0, 1)
    plan.update({program: nearby(plan[program]) for program in ("binary", "floor", "kube_proxy") if plan.get(program)})
    forwarder = relay(plan["cluster"]["port"]) if plan["cluster"] and OUTSIDE in os.environ else None
    try:
        if "peer" in plan:
            peer(plan)
        else:
            report(plan, floor(plan), product(plan))
    finally:
        if forwarder:
            os.kill(forwarder, signal.SIGKILL)
            os.waitpid(forwarder, 0)
        net.down()


def floor(plan):
    net.ip(None, "netns add floor")
    net.ip("floor", "link set lo up", "link add kube-dummy-if type dummy", "link set kube-dummy-if up")
    lines = [f"create {name} {kind} family inet timeout 0 maxelem 65536\n"
             for name, kind in (("kube-router-svip", "hash:ip"), ("kube-router-svip-prt", "hash:ip,port"))]
    own.run("nsenter", "--net=/run/netns/floor", "/usr/sbin/ipset", "restore", text_in="".join(lines))
    text = own.run("nsenter", "--net=/run/netns/floor", plan["floor"], str(plan["services"]), str(plan["endpoints"]))
    net.ip(None, "netns del floor")
    return json.loads(text)


def nearby(program):
    """The program in memory. A guest sees the machine's files through a protocol that reads them again at every start, page by
    page as they are needed, for which neither the product nor the floor shall pay."""
    path = f"{net.RUN}/{os.path.basename(program)}"
    if os.path.exists(path):
        os.unlink(path)  # the other sizes were measured with it
    shutil.copy(program, path)
    return path


def product(plan):
    source = Cluster(plan) if plan["cluster"] else Manifests(plan)
    shutil.rmtree(f"{net.RUN}/bench-state", ignore_errors=True)
    # Nor for finding its programs and libraries there for the first time.
    subprocess.run([plan["binary"], "--version"], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    with Agent(plan["binary"], source.flags) as agent:
        found = {"start": agent.synced()}
        check_kernel(plan)
    with Agent(plan["binary"], source.flags) as agent:
        found["restart"] = agent.synced()
    with Agent(plan["binary"], source.flags, verbosity=1) as agent:
        agent.synced()
        found["changes"] = changes(plan, source, agent)
        at_rest = agent.processor_seconds(), time.monotonic()
        time.sleep(5)
        found["rest"] = (agent.processor_seconds() - at_rest[0]) / (time.monotonic() - at_rest[1])
        found["memory"] = agent.memory()
    return found


def check_kernel(plan):
    """The figures of a state that is not the wanted one would mean nothing."""
    with net.Inside(f"n{NODE}"), open("/proc/thread-self/net/ip_vs") as handle:
        lines = [line.split() for line in handle]
    services = sum(1 for line in lines if line[0] in ("TCP", "UDP", "SCTP"))
    destinations = sum(1 for line in lines if line[0] == "->" and line[1] != "RemoteAddress:Port")
    more = 1 if plan["cluster"] else 0  # the API server's own Service
    wanted = plan["services"] + more, plan["services"] * plan["endpoints"] + more
    if (services, destinations) != wanted:
        raise own.LabError(f"the kernel holds {services} services with {destinations} destinations in place of {wanted}")


def changes(plan, source, agent):
    """Latencies of single changes, sorted, in microseconds: from the event to the kernel's last acknowledgement, and to that from the
    moment before the object was written."""
    took, written = [], []
    for change in range(plan["changes"]):
        after, at = len(agent.lines()), time.time()
        source.put(change * 7919 % plan["services"], 1 + change)
        line, _ = agent.wait_for(ROUND, after, pause=0.002)
        took.append(line["since_seen_us"])
        written.append((timestamp(line) - at) * 1e6)
    return sorted(took), sorted(written)


class KubeProxy(Agent):
    """The kube-proxy of the pinned version, with what it takes by itself but for limits of conntrack, which are the machine's."""
    DONE = {"ipvs": "syncProxyRules complete", "nftables": "SyncProxyRules complete"}
    LINE = re.compile(r'^I(\d{4} [\d:]+)(\.\d+) .*\] "(.*?)" ipFamily="IPv4"')  # it does the same for each family by itself

    def __init__(self, plan, source):
        self.mode = plan["peer"]
        self.log, self.seen, self.rest = f"{net.RUN}/bench.log", [], b""
        command = [plan["kube_proxy"], *source.flags, f"--proxy-mode={self.mode}",
                   "--hostname-override=node1", "--cluster-cidr=10.244.0.0/16", "--conntrack-max-per-core=0", "--conntrack-min=0",
                   "--conntrack-tcp-timeout-established=0s", "--conntrack-tcp-timeout-close-wait=0s", f"-v={4 if self.mode == 'ipvs' else 2}"]
        with open(self.log, "wb") as log:
            self.began = time.time()
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                                            env=dict(os.environ, PATH=PATH), preexec_fn=lambda: net.enter(f"n{NODE}"))
        self.handle = open(self.log, "rb")

    def lines(self):
        *whole, self.rest = (self.rest + self.handle.read()).split(b"\n")
        found = filter(None, (self.LINE.match(line.decode(errors="replace")) for line in whole))
        year = time.gmtime().tm_year
        self.seen += [{"message": m[3], "at": calendar.timegm(time.strptime(f"{year} {m[1]}", "%Y %m%d %H:%M:%S")) + float(m[2])} for m in found]
        return self.seen

    def done(self, after=0):
        """When it next said that everything is programmed, since 1970, and the number of lines up to that."""
        line, number = self.wait_for(self.DONE[self.mode], after)
        return line["at"], number


def peer(plan):
    """kube-proxy in the place of ours, in a kernel that has seen neither."""
    source, took = Cluster(plan), []
    subprocess.run([plan["kube_proxy"], "--version"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
    with KubeProxy(plan, source) as agent:
        first, _ = agent.done()
        count_served(plan)
        cold = first - agent.began
        for change in range(plan["changes"]):
            after, at = len(agent.lines()), time.time()
            source.put(change * 7919 % plan["services"], 1 + change)
            took.append((agent.done(after)[0] - at) * 1e3)
        memory = agent.memory()
    with KubeProxy(plan, source) as agent:
        restart = agent.done()[0] - agent.began
    took.sort()
    print(f"  kube-proxy, {plan['peer']}")
    print(f"    cold start, restart   {cold * 1e3:,.1f}, {restart * 1e3:,.1f} ms")
    print(f"    one change, ms        from writing it p50 {took[len(took) // 2]:,.1f}, p99 {took[len(took) * 99 // 100]:,.1f} of {len(took)}")
    print(f"    resident memory, MiB  {memory[0]:.1f} (at most {memory[1]:.1f})", flush=True)


def count_served(plan):
    """Sees that the kernel has all Services, as `check_kernel` does for ours."""
    wanted = plan["services"] + 1  # the API server's own Service
    if plan["peer"] == "ipvs":
        with net.Inside(f"n{NODE}"), open("/proc/thread-self/net/ip_vs") as handle:
            found = sum(1 for line in handle if line.split()[0] == "TCP")
    else:
        found = net.node(NODE, "nft", "list", "map", "ip", "kube-proxy", "service-ips").count(": goto ")
    if found != wanted:
        raise own.LabError(f"kube-proxy serves {found} Services in place of {wanted}")


def report(plan, floor, found):
    start, restart, (took, written) = found["start"], found["restart"], found["changes"]
    kind = "API server" if plan["cluster"] else f"manifests ({plan['format']})"
    ms = lambda us: f"{us / 1e3:,.1f}"  # noqa: E731
    both = start["compute_us"] + start["kernel_us"]
    print(f"\n{plan['services']:,} services x {plan['endpoints']} endpoints, from {kind}")
    print(f"  floor, ms               {ms(floor['total'])} (elements {ms(floor['elements'])}, IPVS {ms(floor['virtuals'])}, routes {ms(floor['routes'])})")
    print(f"  cold start, ms          {ms(start['whole_us'])} = input {ms(start['whole_us'] - both)}, compute {ms(start['compute_us'])}, kernel {ms(start['kernel_us'])}")
    print(f"  compute + kernel/floor  {both / floor['total']:.2f}")
    print(f"  one change, ms          p50 {ms(took[len(took) // 2])}, p99 {ms(took[len(took) * 99 // 100])} of {len(took)}; floor p50 {ms(floor['change_p50'])}, p99 {ms(floor['change_p99'])}")
    print(f"    from writing it       p50 {ms(written[len(written) // 2])}, p99 {ms(written[len(written) * 99 // 100])}")
    print(f"  restart, ms             {ms(restart['whole_us'])} = input {ms(restart['whole_us'] - restart['compute_us'] - restart['kernel_us'])}, "
          f"compute {ms(restart['compute_us'])}, kernel {ms(restart['kernel_us'])}; changes in the kernel: {restart['steps']}")
    print(f"  resident memory, MiB    {found['memory'][0]:.1f} (at most {found['memory'][1]:.1f})")
    print(f"  processor at rest       {found['rest']:.2%}", flush=True)
    if restart["steps"]:
        raise own.LabError(f"the restart made {restart['steps']} changes in a kernel that was as wanted")


if __name__ == "__main__":
    try:
        main()
    except own.LabError as error:
        own.say(f"bench: {error}")
        sys.exit(1)
