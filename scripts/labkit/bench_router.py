#!/usr/bin/python3
"""The part of scripts/bench router that runs where the daemons are: each row, each daemon in turn, in a namespace of its own.

Neighbours are played by a program of ours (tests/bench/router.rs), the same for all; it knows what they are to hear and says when it is exactly
that. What the kernel holds is seen in the kernel's own counters, and then compared route by route.
"""
import contextlib
import ipaddress
import json
import os
import select
import socket
import struct
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
from labkit import net, own  # noqa: E402
from labkit.bench import settle  # noqa: E402
from labkit.bench_daemons import ADDRESS, ASN, BFD_INTERVAL, NAMESPACE, SIX, Bird, Frr, Gobgp, NewerGobgp, Role, Sluice, Speaker  # noqa: E402

MAC, THEIR_MAC = "02:00:00:00:00:01", "02:00:00:00:00:02"
PREFIXES = 100_000
CHANGES = 1000
MESH = 1000
CLIENTS, EACH = 100, 10
RESTARTED, KEPT = 10, 100
ROUTES = 20_000
NODES = 5000
LOST = 20
AT_MOST = 60
LONG = 300  # for thousands of nodes
# Of what takes long there is no second time.
ENOUGH = 20


class Late(Exception):
    """Something did not happen in so many seconds."""


class Ground:
    """A namespace for the daemon and one for its neighbours, which all have addresses there, on one link.

    Both know each other's addresses on the link from the beginning. The kernel has room for 1,024 that it finds out itself (gc_thresh3 of ARP), in
    all namespaces together, and can be given more only outside of these: packets to any further neighbour would be dropped. Permanent ones do not count.
    """

    def __init__(self, neighbours):
        self.neighbours = neighbours

    def __enter__(self):
        net.ip(None, f"netns add {NAMESPACE}", "netns add theirs",
               f"link add eth0 netns {NAMESPACE} address {MAC} type veth peer name eth0 address {THEIR_MAC} netns theirs")
        net.ip(NAMESPACE, "link set lo up", "link set eth0 up", f"addr add {ADDRESS}/16 dev eth0", f"addr add {SIX}/64 dev eth0 nodad")
        net.ip("theirs", "link set lo up", "link set eth0 up", *(f"addr add {address(number)}/16 dev eth0" for number in range(self.neighbours)))
        net.ip(NAMESPACE, *(f"neigh add {address(number)} lladdr {THEIR_MAC} nud permanent dev eth0" for number in range(self.neighbours)))
        net.ip("theirs", f"neigh add {ADDRESS} lladdr {MAC} nud permanent dev eth0")
        net.sysctl(NAMESPACE, {"net.ipv4.ip_forward": 1, "net.ipv6.conf.all.forwarding": 1})
        return self

    def __exit__(self, *_):
        net.ip(None, f"netns del {NAMESPACE}", "netns del theirs")


class Neighbours:
    """The program that plays them."""

    def __init__(self, plan, *words, where="theirs"):
        command = [plan["program"], words[0], ADDRESS, str(ASN), *map(str, words[1:])]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
                                        preexec_fn=lambda: net.enter(where))
        self.rest = b""
        self.waiting = []

    def tell(self, command):
        self.process.stdin.write(command.encode() + b"\n")
        self.process.stdin.flush()

    def hear(self, event, seconds=AT_MOST):
        """The next event of this name; others before it are dropped."""
        deadline = time.monotonic() + seconds
        while True:
            while self.waiting:
                heard = self.waiting.pop(0)
                if heard["event"] == event:
                    return heard
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.process.stdout], [], [], left)[0]:
                raise Late(seconds)
            read = os.read(self.process.stdout.fileno(), 1 << 16)
            if not read:
                raise own.LabError("the program that plays neighbours has ended")
            *lines, self.rest = (self.rest + read).split(b"\n")
            self.waiting += [json.loads(line) for line in lines]

    def check(self):
        """What is heard is still as it should be, a while later."""
        time.sleep(0.3)
        self.tell("check")
        wrong = self.hear("check")["wrong"]
        return "" if wrong == 0 else f"ends with {wrong:,} wrong routes"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(30)


class Running:
    """A daemon, its neighbours and the ground below, for one measurement."""

    def __init__(self, kind, plan, role, *words):
        self.kind, self.plan, self.role, self.words = kind, plan, role, words

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            stack.enter_context(Ground(len(self.role.peers)))
            daemon = self.kind(self.role, self.plan)
            stack.callback(daemon.stop)
            neighbours = stack.enter_context(Neighbours(self.plan, *self.words))
            self.stack = stack.pop_all()
        return daemon, neighbours

    def __exit__(self, *_):
        self.stack.close()


def address(number):
    return f"198.18.{1 + number // 250}.{1 + number % 250}"


def prefix(number):
    return f"{ipaddress.ip_address((1 << 28) + (number << 9))}/24"


def inside(count):
    return [(address(number), ASN) for number in range(count)]


def outside(count):
    return [(address(number), 64601 + number) for number in range(count)]


def tables(kind, plan, order):
    """(a) Two whole tables to a third neighbour; then a fourth one comes, then single changes."""
    reflector = kind is Sluice
    role = Role(inside(4), reflects=True, tellers=2, kernel=True) if reflector else Role(outside(4))
    words = ["tables", PREFIXES, order] + (["internal"] if reflector else [])
    with Running(kind, plan, role, *words) as (daemon, neighbours):
        daemon.start()
        neighbours.hear("up")
        time.sleep(1)
        before = daemon.processor_seconds()
        neighbours.tell("send")
        try:
            found = {"s": neighbours.hear("right")["ms"] / 1e3}
        except Late as late:
            return {"said": f"not within {late} s: {neighbours.check() or 'it is right since'}"}
        said = neighbours.check()
        found["CPU s"] = daemon.processor_seconds() - before
        found["MiB"], found["anonymous"] = daemon.memory()
        neighbours.tell("late")
        up = neighbours.hear("up")["ms"]
        found["late s"] = (neighbours.hear("right")["ms"] - up) / 1e3
        neighbours.tell(f"change {CHANGES} 10")
        changed = neighbours.hear("changed")
        found["p50 ms"], found["p99 ms"], found["changes"] = changed["p50"], changed["p99"], changed["count"]
        found["said"] = said or neighbours.check()
        return found


@contextlib.contextmanager
def learning(kind, plan):
    """A daemon that has learned two whole tables, and has put them into the kernel where it has anything to do with that."""
    reflector = kind is Sluice
    role = Role(inside(4), reflects=True, tellers=2, kernel=True) if reflector else Role(outside(4), kernel=True)
    words = ["tables", PREFIXES, "once"] + (["internal"] if reflector else [])
    with Running(kind, plan, role, *words) as (daemon, neighbours):
        daemon.start()
        neighbours.hear("up")
        time.sleep(1)
        neighbours.tell("send")
        if daemon.protocol:
            in_kernel(daemon, PREFIXES, 0)
        else:
            neighbours.hear("right")
        yield daemon


def learned(kind, plan):
    """(i) What two whole tables occupy when nothing changes any more."""
    with learning(kind, plan) as daemon:
        settle(lambda: daemon.resting()[1])
        resident, anonymous = daemon.resting()
        return {"MiB": resident, "anonymous": anonymous}


def mesh(kind, plan, dials):
    """(b) Many neighbours inside, with a prefix of both families each."""
    role = Role(inside(MESH), dials=dials, kernel=True)
    words = ["group", MESH, 0, "pods"] + (["listen"] if dials else [])
    with Running(kind, plan, role, *words) as (daemon, neighbours):
        neighbours.hear("ready")
        if not dials:
            daemon.start()
            listening()
            time.sleep(2)
        began = time.monotonic()
        if dials:
            daemon.start()
            neighbours.tell("mark")
        else:
            neighbours.tell("dial")
        found = {}
        if daemon.protocol:
            found["s"] = in_kernel(daemon, MESH, MESH) - began
            neighbours.hear("up")
        else:
            neighbours.hear("sent")
            found["s"], found["said"] = time.monotonic() - began, "sessions alone: it leaves the kernel to others"
        time.sleep(5)
        found["MiB"], found["anonymous"] = daemon.memory()
        before, at = daemon.processor_seconds(), time.monotonic()
        time.sleep(plan["rest"])
        found["at rest %"] = 100 * (daemon.processor_seconds() - before) / (time.monotonic() - at)
        return found


def first(kind, plan, dials):
    """(c) From the start of the process to its first announcement."""
    with Running(kind, plan, Role(inside(1), dials=dials, announces=True), "group", 1, 0, *(["listen"] if dials else [])) as (daemon, neighbours):
        neighbours.hear("ready")
        neighbours.tell("mark" if dials else "dial")
        daemon.start()
        return {"s": neighbours.hear("first")["ms"] / 1e3}


def reflector(kind, plan):
    """(d) Every client hears the routes of all others."""
    with Running(kind, plan, Role(inside(CLIENTS), reflects=True, each=EACH), "group", CLIENTS, EACH, "reflected", "hold") as (daemon, neighbours):
        daemon.start()
        neighbours.hear("ready")
        neighbours.tell("dial")
        neighbours.hear("up")
        time.sleep(2)
        before = daemon.processor_seconds()
        neighbours.tell("send")
        found = {"s": neighbours.hear("right")["ms"] / 1e3, "said": neighbours.check()}
        found["CPU s"] = daemon.processor_seconds() - before
        found["MiB"], found["anonymous"] = daemon.memory()
        return found


def restart(kind, plan, away):
    """(e) A reflector that crashes and comes back: when it has told everybody that this is all, and what the kernel had to do without."""
    role = Role(inside(RESTARTED), reflects=True, each=KEPT, graceful=True, kernel=True)
    with Running(kind, plan, role, "group", RESTARTED, KEPT, "reflected", "graceful") as (daemon, neighbours):
        daemon.start()
        neighbours.hear("ready")
        neighbours.tell("dial")
        neighbours.hear("right")
        if daemon.protocol:
            in_kernel(daemon, RESTARTED * KEPT, 0)
        time.sleep(2)
        with Watch() as watch:
            neighbours.tell(f"again {away}")
            neighbours.hear("begun")
            daemon.crash()
            neighbours.tell("mark")
            daemon.start(again=True)
            ended = neighbours.hear("ended")
            said = neighbours.check()
            time.sleep(1)
        present = RESTARTED - away
        early = "" if ended["whole"] == present else f"told {present - ended['whole']} of {present} too early that it was all"
        found = {"s": ended["after_sent"] / 1e3, "whole s": ended["ms"] / 1e3, "said": ", ".join(filter(None, [early, said]))}
        if daemon.protocol:
            kept = {prefix(number) for number in range(present * KEPT)}
            found["deleted"] = sum(1 for one in watch.deleted if one in kept)
        return found


def kernel(kind, plan):
    """(f) Routes of one neighbour into the kernel."""
    with Running(kind, plan, Role(inside(1), kernel=True), "group", 1, ROUTES, "hold") as (daemon, neighbours):
        daemon.start()
        neighbours.hear("ready")
        neighbours.tell("dial")
        neighbours.hear("up")
        time.sleep(2)
        before, began = daemon.processor_seconds(), time.monotonic()
        neighbours.tell("send")
        # Counting walks through all routes, and would take a processor from the daemon: the last one is looked for first.
        has_route(ROUTES - 1)
        found = {"s": in_kernel(daemon, ROUTES, 0, pause=0.001) - began}
        found["CPU s"] = daemon.processor_seconds() - before
        found["MiB"], found["anonymous"] = daemon.memory()
        return found


@contextlib.contextmanager
def watching(kind, plan, count):
    """A daemon with so many neighbours inside, whose routes are in the kernel, and the seconds until BFD watched all ways to them."""
    with Running(kind, plan, Role(inside(count), kernel=True, watched=True), "group", count, 0, "pods") as (daemon, neighbours):
        neighbours.hear("ready")
        daemon.start()
        listening()
        time.sleep(2)
        neighbours.tell("dial")
        in_kernel(daemon, count, count)
        neighbours.tell("watch")
        yield daemon, neighbours, neighbours.hear("watched")["ms"] / 1e3


def watched(kind, plan):
    """(g) Many neighbours inside whose ways BFD watches."""
    with watching(kind, plan, MESH) as (daemon, neighbours, seconds):
        found = {"s": seconds}
        time.sleep(5)
        found["MiB"], found["anonymous"] = daemon.memory()
        before, of_bfd, at = daemon.processor_seconds(), daemon.thread_seconds("bfd"), time.monotonic()
        time.sleep(plan["rest"])
        passed = time.monotonic() - at
        found["at rest %"] = 100 * (daemon.processor_seconds() - before) / passed
        found["BFD %"] = 100 * (daemon.thread_seconds("bfd") - of_bfd) / passed
        neighbours.tell("paths")
        failed = neighbours.hear("paths")["failures"]
        found["said"] = f"{failed} paths have failed" if failed else ""
        return found


@contextlib.contextmanager
def busy():
    """Twice as many programs that do nothing else as there are processors."""
    programs = [subprocess.Popen(["sh", "-c", "while :; do :; done"], start_new_session=True) for _ in range(2 * os.cpu_count())]
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait(30)


class Silence:
    """Nothing comes any more from neighbours that are named; what had stood ready for it."""

    def __enter__(self):
        self.nft = subprocess.Popen(["/usr/sbin/nft", "-i"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, preexec_fn=lambda: net.enter("theirs"))
        self.tell("add table ip silence; add set ip silence gone { type ipv4_addr; }; add chain ip silence out { type filter hook output priority 0; }")
        self.tell("add rule ip silence out ip saddr @gone drop")
        with net.Inside("theirs"):
            self.commits = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)  # NETLINK_NETFILTER
            self.commits.bind((0, 1 << 6))  # NFNLGRP_NFTABLES
        with net.Inside(NAMESPACE):
            self.kernel = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
            self.kernel.bind((0, 0x440))  # RTMGRP_IPV4_ROUTE, RTMGRP_IPV6_ROUTE
        time.sleep(1)
        return self

    def tell(self, command):
        self.nft.stdin.write(command.encode() + b"\n")
        self.nft.stdin.flush()

    def after(self, number):
        """Seconds from the silence of this neighbour until the kernel has none of its routes, one of each family."""
        time.sleep(number * 37 % BFD_INTERVAL / 1e3)
        for waiting in (self.kernel, self.commits):
            while select.select([waiting], [], [], 0)[0]:
                waiting.recv(1 << 16)
        self.tell(f"add element ip silence gone {{ {address(number)} }}")
        self.commits.recv(1 << 16)
        began, families = time.monotonic(), set()
        while families != {socket.AF_INET, socket.AF_INET6}:
            if not select.select([self.kernel], [], [], max(0, began + AT_MOST - time.monotonic()))[0]:
                raise Late(AT_MOST)
            heard = self.kernel.recv(1 << 16)
            while len(heard) >= 17:
                length, kind = struct.unpack("=IH", heard[:6])
                if kind == 25:  # RTM_DELROUTE; the first byte of its rtmsg is the family
                    families.add(heard[16])
                heard = heard[(length + 3) & ~3:]
        return time.monotonic() - began

    def __exit__(self, *_):
        self.kernel.close()
        self.commits.close()
        self.nft.kill()
        self.nft.wait(30)


def lost(kind, plan, load):
    """(j) Neighbours that fall silent, one after the other, whose ways BFD watches: from the silence until their routes have left the kernel."""
    with watching(kind, plan, LOST), Silence() as silence, load():
        took = sorted(silence.after(number) for number in range(LOST))  # each begins anywhere between two packets
    return {"s": took[len(took) // 2], "shortest": took[0], "longest": took[-1], "x 3 intervals": took[-1] / (3 * BFD_INTERVAL / 1e3)}


def nodes(kind, plan, node_routes):
    """(h) From the start of the process until the kernel has a route of each family to the pods of every node."""
    speaks = node_routes == "bgp"
    words = ["group", NODES if speaks else 1, 0, "pods", "listen"]
    with Running(kind, plan, Role(inside(NODES), dials=True, kernel=True, node_routes=node_routes), *words) as (daemon, neighbours):
        neighbours.hear("ready")
        began = time.monotonic()
        daemon.start()
        found = {"s": in_kernel(daemon, NODES, NODES, patience=LONG) - began, "CPU s": daemon.processor_seconds()}
        time.sleep(10)
        found["MiB"], found["anonymous"] = daemon.memory()
        before, at = daemon.processor_seconds(), time.monotonic()
        time.sleep(plan["rest"])
        found["at rest %"] = 100 * (daemon.processor_seconds() - before) / (time.monotonic() - at)
        return found


class Batch:
    """The same routes by `ip -batch`."""
    name = "ip -batch"

    @staticmethod
    def measure(_plan):
        with Ground(1):
            path = f"{net.RUN}/bench.batch"
            own.write(path, "".join(f"route add {prefix(number)} via {address(0)} dev eth0 proto 17\n" for number in range(ROUTES)))
            with net.Inside(NAMESPACE):
                began = time.monotonic()
                own.run("/sbin/ip", "-batch", path)
                return {"s": time.monotonic() - began}


class Floor:
    """The same routes by a loop that does nothing else: many messages in a send, of which the last one is acknowledged."""
    name, words = "floor", []

    @classmethod
    def measure(cls, plan):
        with Ground(1), Neighbours(plan, "floor", "routes", ROUTES, *cls.words, where=NAMESPACE) as floor:
            return {"s": floor.hear("floor")["ms"] / 1e3}


class Acknowledged(Floor):
    """The same with an acknowledgement of each."""
    name, words = "floor, each acked", ["each"]


class Packets:
    """As many packets as BFD sends and receives, by a loop that does nothing else."""
    name = "floor"

    @staticmethod
    def measure(plan):
        with Ground(MESH), Neighbours(plan, "floor", "packets", MESH, "there"), \
                Neighbours(plan, "floor", "packets", MESH, "here", where=NAMESPACE) as here:
            time.sleep(5)
            here.tell(f"measure {plan['rest']}")
            return {"BFD %": here.hear("floor", AT_MOST + plan["rest"])["percent"]}


class Watch:
    """What is deleted from the kernel's routes."""

    def __enter__(self):
        self.path = f"{net.RUN}/bench.watch"
        with open(self.path, "wb") as out:
            self.process = subprocess.Popen(["/sbin/ip", "monitor", "route"], stdin=subprocess.DEVNULL, stdout=out,
                                            preexec_fn=lambda: net.enter(NAMESPACE))
        time.sleep(0.2)
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(30)
        with open(self.path) as handle:
            lines = [line.split() for line in handle]
        self.deleted = [words[1] for words in lines if len(words) > 1 and words[0] == "Deleted"]


def listening():
    """Waits until somebody listens on the port of BGP."""
    def is_there():
        with net.Inside(NAMESPACE), open("/proc/thread-self/net/tcp") as v4, open("/proc/thread-self/net/tcp6") as v6:
            lines = [line.split() for handle in (v4, v6) for line in handle]
        return any(words[1].endswith(":00B3") and words[3] == "0A" for words in lines)
    if not own.wait(is_there, AT_MOST):
        raise Late(AT_MOST)


def in_kernel(daemon, four, six, pause=0.005, patience=AT_MOST):
    """Waits until the kernel has so many routes of the daemon, by its cheap counters, and counts them then. When that was."""
    deadline = time.monotonic() + patience
    with net.Inside(NAMESPACE):
        while time.monotonic() < deadline:
            if counted_four() >= four and counted_six() >= six:
                at = time.monotonic()
                if listed("-4", daemon) >= four and (six == 0 or listed("-6", daemon) >= six):
                    return at
            time.sleep(pause)
    raise Late(patience)


def has_route(number):
    """Waits until the kernel has the route to this prefix, by asking for it alone."""
    # struct rtmsg: IPv4, a whole address, RTM_F_FIB_MATCH; RTA_DST. RTM_GETROUTE, NLM_F_REQUEST.
    wanted = ipaddress.ip_network(prefix(number)).network_address.packed
    body = struct.pack("=BBBBBBBBI", socket.AF_INET, 32, 0, 0, 0, 0, 0, 0, 0x2000) + struct.pack("=HH", 8, 1) + wanted
    question = struct.pack("=IHHII", 16 + len(body), 26, 1, 1, 0) + body
    deadline = time.monotonic() + AT_MOST
    with net.Inside(NAMESPACE), socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as kernel_socket:
        while time.monotonic() < deadline:
            kernel_socket.send(question)
            answer = kernel_socket.recv(1 << 16)
            # RTM_NEWROUTE with the whole prefix; a shorter one is the route of the link, and an error that there is none.
            if answer[4] == 24 and answer[17] == 24:
                return
            time.sleep(0.001)
    raise Late(AT_MOST)


def counted_four():
    with open("/proc/thread-self/net/fib_triestat") as handle:
        return next(int(line.split()[1]) for line in handle if line.strip().startswith("Prefixes:"))


def counted_six():
    with open("/proc/thread-self/net/rt6_stats") as handle:
        return int(handle.read().split()[3], 16)


def listed(family, daemon):
    return own.run("/sbin/ip", family, "-o", "route", "show", "proto", daemon.protocol).count("\n")


# What is no daemon, and measured beside whichever is asked for.
BESIDE = [Batch, Floor, Acknowledged, Packets]
ALL = [Sluice, Bird, Frr, Gobgp, NewerGobgp]
# Each row: its letter, title, how it is measured, with whom, and what its columns say.
ROWS = [
    ("a", f"2 x {PREFIXES:,} prefixes to a third, in turn", lambda kind, plan: tables(kind, plan, "turn"), [Speaker, Bird, Frr, Gobgp, NewerGobgp, Sluice]),
    ("a", f"2 x {PREFIXES:,} prefixes to a third, at once", lambda kind, plan: tables(kind, plan, "once"), [Speaker, Bird, Frr, Gobgp, NewerGobgp, Sluice]),
    ("b", f"{MESH:,} neighbours inside dial it", lambda kind, plan: mesh(kind, plan, False), ALL),
    ("b", f"{MESH:,} neighbours inside, dialled by it from its start", lambda kind, plan: mesh(kind, plan, True), ALL),
    ("c", "process start to the first announcement, dialled", lambda kind, plan: first(kind, plan, False), ALL),
    ("c", "process start to the first announcement, dialling", lambda kind, plan: first(kind, plan, True), ALL),
    ("d", f"a reflector, {CLIENTS} clients x {EACH} routes", reflector, ALL),
    ("e", "kill -9 with graceful restart, last route sent to the last End-of-RIB, all there", lambda kind, plan: restart(kind, plan, 0), ALL),
    ("e", "the same with one neighbour away", lambda kind, plan: restart(kind, plan, 1), ALL),
    ("f", f"{ROUTES:,} routes of one neighbour into the kernel", kernel, [Batch, Floor, Acknowledged, Sluice, Bird, Frr]),
    ("g", f"{MESH:,} neighbours inside with BFD every {BFD_INTERVAL} ms, until all ways are up", watched, [Packets, Sluice]),
    ("h", f"{NODES:,} nodes by their objects, from the process start into the kernel", lambda kind, plan: nodes(kind, plan, "api"), [Sluice]),
    ("h", f"{NODES:,} nodes by BGP, from the process start into the kernel", lambda kind, plan: nodes(kind, plan, "bgp"), [Sluice]),
    ("j", f"{LOST} neighbours fall silent, BFD every {BFD_INTERVAL} ms: until the kernel has no route of one", lambda kind, plan: lost(kind, plan, contextlib.nullcontext), [Sluice, Bird]),
    ("j", f"the same beside {2 * os.cpu_count()} programs that want {os.cpu_count()} processors", lambda kind, plan: lost(kind, plan, busy), [Sluice, Bird]),
    ("i", f"2 x {PREFIXES:,} learned routes, at rest", learned, [Speaker, Bird, Frr, Gobgp, NewerGobgp, Sluice]),
]
NEWER = "The others are those of Debian, and GoBGP 4 the newest when this was written: of BIRD and FRR newer releases exist."


def measure(how, kind, plan):
    """The best of several times; what could not be done says why."""
    best, spent = None, time.monotonic()
    for _ in range(plan["repeat"]):
        try:
            found = kind.measure(plan) if kind in BESIDE else how(kind, plan)
        except Late as late:
            found = {"said": f"not within {late} s"}
        if best is None or found.get("s", AT_MOST) < best.get("s", AT_MOST):
            best = found
        # One wrong end counts, whatever the others were.
        if found.get("said"):
            best["said"] = found["said"]
        if time.monotonic() - spent > ENOUGH:
            break
    return best


def report(title, rows):
    columns = [name for name in dict.fromkeys(name for _, found in rows for name in found) if name not in ("said", "s")]
    fastest = min((found["s"] for _, found in rows if "s" in found), default=None)
    print(f"\n{title}\n  {'':<18}{'s':>9}{'x best':>8}" + "".join(f"{column:>11}" for column in columns))
    for name, found in rows:
        cells = [f"{found['s']:.3f}" if "s" in found else "-", f"{found['s'] / fastest:.1f}" if "s" in found else "-"]
        more = [figure(found[column]) if column in found else "-" for column in columns]
        print(f"  {name:<18}{cells[0]:>9}{cells[1]:>8}" + "".join(f"{text:>11}" for text in more) + f"  {found.get('said', '')}".rstrip(), flush=True)


def is_asked_for(kind, plan):
    return kind.name.split("'")[0].replace(" ", "").lower() in plan["only"]


def figure(value):
    return str(value) if isinstance(value, int) else f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def main():
    plan = json.loads(os.environ["SLUICE_BENCH"])
    os.makedirs(net.RUN, exist_ok=True)
    for kind in ALL:
        if is_asked_for(kind, plan):
            print(f"  {kind.name}: {kind.release(plan)}")
    if "f" in plan["rows"]:
        print(f"  {own.run('/sbin/ip', '-V').strip()}")
    print(f"  kernel: {os.uname().release}")
    print(f"{NEWER}", flush=True)
    for letter, title, how, kinds in ROWS:
        if letter not in plan["rows"]:
            continue
        rows = []
        for kind in kinds:
            if kind in BESIDE or is_asked_for(kind, plan):
                name = f"{kind.name} (reflects)" if letter == "a" and kind is Sluice else kind.name
                rows.append((name, measure(how, kind, plan)))
        report(f"({letter}) {title}", rows)


if __name__ == "__main__":
    try:
        main()
    except own.LabError as error:
        own.say(f"bench: {error}")
        sys.exit(1)
