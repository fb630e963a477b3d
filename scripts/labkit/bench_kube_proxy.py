"""kube-proxy of the pinned version as a row beside the product: what users would have instead, at a size that it can finish."""
import calendar
import os
import re
import subprocess
import time

from . import net, own
from .bench import NODE, PATH, Agent, Late, Node, at, scraped

METRICS = 10249  # where it serves them by itself
# It waits for a second after each change before it looks for more, unless the next one is later than that.
BETWEEN = 1.5
FAILED = "Sync failed"


class KubeProxy(Agent):
    """With what it takes by itself but for limits of conntrack, which are the machine's."""
    DONE = {"ipvs": "syncProxyRules complete", "nftables": "SyncProxyRules complete"}
    LINE = re.compile(r'^I(\d{4} [\d:]+)(\.\d+) .*\] "(.*?)" ipFamily="IPv4"')  # it does the same for each family by itself

    def __init__(self, plan, source):
        self.mode, self.patience = plan["peer"], plan["patience"]
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
        """When it next said that everything is programmed, since 1970. It says so also of what has failed, and in its nftables mode that it has."""
        line, number = self.wait_for(self.DONE[self.mode], after, self.patience)
        if any(earlier["message"] == FAILED for earlier in self.seen[after:number]):
            raise own.LabError("kube-proxy could not program the kernel")
        return line["at"]


def peer(plan, source):
    """In the place of ours, in a kernel that has seen neither."""
    print(f"  kube-proxy, {plan['peer']}", flush=True)
    with Node(source):
        try:
            measure(plan, source)
        except Late:
            say("not finished", f"after {plan['patience']:,} s, with {count(plan):,} of {plan['services']:,} Services in the kernel")
        except own.LabError as error:
            say("not measured", str(error))  # which says nothing of the other sizes


def measure(plan, source):
    # From here on one endpoint of each of these Services is another one with each change, whatever earlier rows have left.
    for change in range(plan["changes"] if "changes" in plan["rows"] else 0):
        source.renew(index(plan, change))
    with KubeProxy(plan, source) as agent:
        cold = agent.done() - agent.began
        wanted = plan["services"] + 1  # the API server's own Service
        if count(plan) != wanted:
            raise own.LabError(f"kube-proxy serves {count(plan)} Services in place of {wanted}")
        say("cold start, ms", f"{cold * 1e3:,.1f}")
        if "changes" in plan["rows"]:
            took = [one_change(plan, source, agent, change) for change in range(plan["changes"])]
            say("one change, ms", f"from writing it p50 {at(took, .5):,.1f}, p99 {at(took, .99):,.1f} of {len(took)}")
        if "scrape" in plan["rows"]:
            seconds, size = scraped(METRICS)
            say("/metrics, ms", f"{seconds * 1e3:,.1f}; {size / 1e6:.2f} MB")
        if "rest" in plan["rows"]:
            say("processor at rest", f"{agent.share_of_a_core(plan['rest']):.2%} of a core in {plan['rest']} s")
        memory = agent.memory()
        say("resident memory, MiB", f"{memory[0]:.1f} (at most {memory[1]:.1f})")
    with KubeProxy(plan, source) as agent:
        say("restart, ms", f"{(agent.done() - agent.began) * 1e3:,.1f}")


def index(plan, change):
    """Of the Service that is changed."""
    return change * 7919 % plan["services"]


def one_change(plan, source, agent, change):
    time.sleep(BETWEEN)
    after, begun = len(agent.lines()), time.time()
    source.renew(index(plan, change))
    return (agent.done(after) - begun) * 1e3


def count(plan):
    """Of the Services that the kernel has."""
    if plan["peer"] == "ipvs":
        with net.Inside(f"n{NODE}"), open("/proc/thread-self/net/ip_vs") as handle:
            return sum(1 for line in handle if line.split()[0] == "TCP")
    try:
        return net.node(NODE, "nft", "list", "map", "ip", "kube-proxy", "service-ips").count(": goto ")
    except own.LabError:
        return 0  # the table is not there yet


def say(what, text):
    print(f"    {what:<22}{text}", flush=True)
