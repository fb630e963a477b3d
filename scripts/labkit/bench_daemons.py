"""Routing daemons that are measured beside each other: how each is configured for a role, started and looked at.

Timers, buffers and lists are as shipped; what a role asks for is configured, and nothing else.
"""
import dataclasses
import ipaddress
import json
import os
import pwd
import signal
import subprocess
import time

from . import net, own

ASN = 64512
ADDRESS, SIX = "198.18.0.1", "2001:db8::1"
OWN_PREFIX = "10.0.0.0/24"
NAMESPACE = "dut"
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
SLUICE_FLAGS = ["--run-router=true", "--run-service-proxy=false", "--run-firewall=false", "--enable-ipv6=true", "--enable-overlay=false",
                "--hostname-override=dut", "-v=0"]

BFD_INTERVAL = 300  # milliseconds; tests/bench/router/paths.rs has the same
BFD_FLAGS = ["--enable-bfd-mesh", f"--bfd-desired-min-tx-interval={BFD_INTERVAL}", f"--bfd-required-min-rx-interval={BFD_INTERVAL}"]


@dataclasses.dataclass
class Role:
    """What a daemon is to be. Everything carries both families."""
    peers: list                 # of (address, AS number)
    reflects: bool = False      # the neighbours are clients
    tellers: int = 0            # of these the first ones are reflectors in the eyes of our agent, which takes whole tables from no client
    each: int = 0               # how many routes each client tells, which are ranges of its pods for our agent
    dials: bool = False         # it dials; else it waits for its neighbours
    graceful: bool = False
    kernel: bool = False        # what it learns goes into the kernel
    announces: bool = False     # it has a prefix of its own
    watched: bool = False       # BFD watches the ways to its neighbours, which are nodes
    node_routes: str = "bgp"    # where it has the routes to pods of nodes from

    def external(self):
        return any(asn != ASN for _, asn in self.peers)


class Daemon:
    """A daemon in its namespace. `protocol`: of its routes in the kernel."""
    name, protocol, programs = "", None, {}

    @classmethod
    def program(cls, _plan):
        """The program that speaks BGP."""
        return next(iter(cls.programs.values()))

    @classmethod
    def release(cls, plan):
        """What it says it is, in a line."""
        done = subprocess.run([cls.program(plan), "--version"], capture_output=True, text=True, stdin=subprocess.DEVNULL)
        return (done.stdout or done.stderr).strip().split("\n")[0]

    def __init__(self, role, plan):
        self.role, self.plan = role, plan
        self.folder = own.fresh(f"{net.RUN}/bench-{self.name.split()[0]}")
        self.running = []
        self.configure()

    def configure(self):
        raise NotImplementedError

    def commands(self, again):
        """The programs, in the order in which they start; the last one is that which speaks BGP."""
        raise NotImplementedError

    def start(self, again=False):
        """Starts it; after a crash only what has crashed."""
        commands = self.commands(again)
        for command in commands[-1:] if again else commands:
            if self.running:
                time.sleep(0 if again else 0.5)
            with open(f"{self.folder}/log", "ab") as log:
                self.running.append(subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder, start_new_session=True,
                    env=dict(os.environ, PATH=PATH, KUBE_ROUTER_CNI_CONF_FILE=f"{self.folder}/cni.conflist"),
                    preexec_fn=lambda: net.enter(NAMESPACE)))

    def crash(self):
        speaker = self.running.pop()
        speaker.send_signal(signal.SIGKILL)
        speaker.wait(30)

    def stop(self):
        for process in reversed(self.running):
            process.kill()
            process.wait(30)
        self.running = []

    def processor_seconds(self):
        threads = [(process.pid, thread) for process in self.running for thread in os.listdir(f"/proc/{process.pid}/task")]
        return sum(on_processor(*thread) for thread in threads) / 1e9

    def thread_seconds(self, name):
        """What its threads of this name have had of a processor."""
        found = 0
        for process in self.running:
            for thread in os.listdir(f"/proc/{process.pid}/task"):
                with open(f"/proc/{process.pid}/task/{thread}/comm") as handle:
                    found += on_processor(process.pid, thread) if handle.read().strip() == name else 0
        return found / 1e9

    def memory(self):
        """(resident at most, of that not files), in MiB."""
        most, files = (sum(fields) for fields in zip(*self.kib("VmHWM", "RssFile")))
        return most / 1024, (most - files) / 1024

    def resting(self):
        """(resident now, of that anonymous), in MiB."""
        return tuple(sum(fields) / 1024 for fields in zip(*self.kib("VmRSS", "RssAnon")))

    def kib(self, *names):
        """These fields of each of its processes."""
        for process in self.running:
            with open(f"/proc/{process.pid}/status") as handle:
                fields = dict(line.split(":", 1) for line in handle)
            yield [int(fields[name].split()[0]) for name in names]

    def last_words(self):
        with open(f"{self.folder}/log", errors="replace") as handle:
            return "".join(handle.readlines()[-5:])


class Bird(Daemon):
    name, protocol, programs = "BIRD", "bird", {"bird2": "/usr/sbin/bird"}

    def configure(self):
        role = self.role
        text = f"log stderr all;\nrouter id {ADDRESS};\nprotocol device {{}}\nprotocol direct {{ ipv4; ipv6; }}\n"
        if role.announces:
            text += f"protocol static {{ ipv4; route {OWN_PREFIX} blackhole; }}\n"
        if role.kernel:
            restart = "graceful restart on; " if role.graceful else ""
            text += "".join(f"protocol kernel {{ {restart}{kind} {{ import none; export where source = RTS_BGP; }}; }}\n" for kind in ("ipv4", "ipv6"))
        words = [f"local {ADDRESS} as {ASN}", "hold time 90"]
        words += [] if role.dials else ["passive on"]
        words += ["rr client"] if role.reflects else []
        words += ["graceful restart on"] if role.graceful else []
        if role.watched:
            every = f"min rx interval {BFD_INTERVAL} ms; min tx interval {BFD_INTERVAL} ms; multiplier 3;"
            text += f"protocol bfd {{ accept ipv4 multihop; multihop {{ {every} }}; }}\n"
            words += ["bfd on"]
        channels = ["ipv4 { import all; export where source = RTS_BGP || source = RTS_STATIC; }", "ipv6 { import all; export all; }"]
        text += f"template bgp neighbours {{ {'; '.join(words + channels)}; }}\n"
        for number, (address, asn) in enumerate(role.peers):
            text += f"protocol bgp p{number} from neighbours {{ neighbor {address} as {asn}; }}\n"
        own.write(f"{self.folder}/bird.conf", text)

    def commands(self, again):
        return [["/usr/sbin/bird", "-f", "-c", "bird.conf", "-s", "bird.ctl", *(["-R"] if again else [])]]


class Frr(Daemon):
    """Two daemons, as it is used: zebra, which knows the kernel, and bgpd."""
    name, protocol, programs = "FRR", "bgp", {"frr": "/usr/lib/frr/bgpd"}

    def configure(self):
        role = self.role
        text = f"log stdout\nrouter bgp {ASN}\n bgp router-id {ADDRESS}\n no bgp ebgp-requires-policy\n no bgp network import-check\n"
        if role.graceful:
            text += " bgp graceful-restart\n bgp graceful-restart preserve-fw-state\n"
        text += " neighbor all peer-group\n"
        text += "" if role.dials else " neighbor all passive\n"
        for address, asn in role.peers:
            text += f" neighbor {address} remote-as {asn}\n neighbor {address} peer-group all\n"
        for kind in ("ipv4", "ipv6"):
            text += f" address-family {kind} unicast\n  neighbor all activate\n"
            text += "  neighbor all route-reflector-client\n" if role.reflects else ""
            text += f"  network {OWN_PREFIX}\n" if role.announces and kind == "ipv4" else ""
            text += " exit-address-family\n"
        own.write(f"{self.folder}/bgpd.conf", text)
        own.write(f"{self.folder}/zebra.conf", "log stdout\n")
        user = pwd.getpwnam("frr")
        for path in (self.folder, f"{self.folder}/bgpd.conf", f"{self.folder}/zebra.conf"):
            os.chown(path, user.pw_uid, user.pw_gid)

    def commands(self, again):
        more = ["-z", f"{self.folder}/zserv.api", "--vty_socket", self.folder, "-P", "0", "--log", "stdout"]
        one = lambda name, *words: [f"/usr/lib/frr/{name}", "-f", f"{self.folder}/{name}.conf", "-i", f"{self.folder}/{name}.pid", *more, *words]  # noqa: E731
        return [one("zebra"), one("bgpd", *([] if self.role.kernel else ["-n"]))]


class Gobgp(Daemon):
    """Without the kernel: it leaves that to FRR's zebra."""
    name, programs = "GoBGP", {"gobgpd": "/usr/bin/gobgpd"}

    def configure(self):
        role = self.role
        text = f'[global.config]\nas = {ASN}\nrouter-id = "{ADDRESS}"\nlocal-address-list = ["{ADDRESS}"]\n'
        for address, asn in role.peers:
            text += f'[[neighbors]]\n[neighbors.config]\nneighbor-address = "{address}"\npeer-as = {asn}\n'
            text += f"[neighbors.transport.config]\npassive-mode = {str(not role.dials).lower()}\n"
            if role.reflects:
                text += f'[neighbors.route-reflector.config]\nroute-reflector-client = true\nroute-reflector-cluster-id = "{ADDRESS}"\n'
            if role.graceful:
                text += "[neighbors.graceful-restart.config]\nenabled = true\nrestart-time = 120\n"
            for name in ("ipv4-unicast", "ipv6-unicast"):
                text += f'[[neighbors.afi-safis]]\n[neighbors.afi-safis.config]\nafi-safi-name = "{name}"\n'
                text += "[neighbors.afi-safis.mp-graceful-restart.config]\nenabled = true\n" if role.graceful else ""
        own.write(f"{self.folder}/gobgpd.toml", text)

    def commands(self, again):
        return [[self.program(self.plan), "-f", "gobgpd.toml", "--pprof-disable", "-l", "warn", "--api-hosts=127.0.0.1:50051", *(["-r"] if again else [])]]

    def start(self, again=False):
        super().start(again)
        if self.role.announces:
            # Its own routes come by its client only, as soon as it listens.
            tries = f"until {os.path.dirname(self.program(self.plan))}/gobgp global rib add {OWN_PREFIX} nexthop {ADDRESS}; do sleep 0.01; done"
            self.client = subprocess.Popen(["timeout", "60", "sh", "-c", tries], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                           stderr=subprocess.DEVNULL, preexec_fn=lambda: net.enter(NAMESPACE))

    def stop(self):
        super().stop()
        if self.role.announces:
            self.client.kill()
            self.client.wait(30)


class NewerGobgp(Gobgp):
    """The newest release, which is built for it."""
    name = "GoBGP 4"

    @classmethod
    def program(cls, plan):
        return plan["newer_gobgp"]


class Sluice(Daemon):
    """The whole agent with `--run-router`, and Nodes from a directory. It dials its neighbours and listens, and what it learns goes into the
    kernel, in every role."""
    name, protocol = "sluice", "17"

    @classmethod
    def program(cls, plan):
        return plan["binary"]

    def configure(self):
        os.makedirs(f"{self.folder}/manifests")
        nodes = [node("dut", ADDRESS, SIX, 0, {"rr.server": "42"} if self.role.reflects else {})]
        for number, (address, _) in enumerate(self.role.peers):
            part = {"rr.server" if number < self.role.tellers else "rr.client": "42"} if self.role.reflects else {}
            six = f"2001:db8::1:{number:x}"
            nodes.append(node(f"node{number}", address, six, number + 1, part))
            # One Node has 16 ranges at most, so the others are of more Nodes at the same address.
            told = [range_told(number * self.role.each + place) for place in range(self.role.each)]
            for first in range(0, len(told), 16):
                nodes.append(node(f"node{number}-{first}", address, six, None, {**part, "pod-cidrs": ",".join(told[first:first + 16])}))
        own.write(f"{self.folder}/manifests/nodes.json", "\n".join(json.dumps(one) for one in nodes))

    def commands(self, again):
        more = [f"--node-routes={self.role.node_routes}", *(BFD_FLAGS if self.role.watched else [])]
        return [[self.plan["binary"], *SLUICE_FLAGS, *more, "--manifests", f"{self.folder}/manifests", f"--state-dir={self.folder}/state",
                 f"--socket={self.folder}/sluice.sock"]]


class Speaker(Daemon):
    """Our speaker and its driver without the agent, whose policy passes on nothing from one external neighbour to another."""
    name = "sluice's speaker"

    def configure(self):
        pass

    def commands(self, again):
        return [[self.plan["program"], "speaker", ADDRESS, str(ASN), *(f"{address}={asn}" for address, asn in self.role.peers)]]


def range_told(number):
    """The prefix of a route that a neighbour tells: `prefix` of tests/bench/router/routes.rs."""
    return f"{ipaddress.ip_address((1 << 28) + (number << 9))}/24"


def node(name, four, six, number, annotations):
    """A Node with pods in both families, or with those of its annotations."""
    metadata = {"name": name, "annotations": {f"kube-router.io/{key}": value for key, value in annotations.items()}}
    addresses = [{"type": "InternalIP", "address": address} for address in (four, six)]
    ranges = [] if number is None else [f"10.{number >> 8}.{number & 255}.0/24", f"fd00:10:244:{number:x}::/64"]
    return {"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": {"podCIDRs": ranges}, "status": {"addresses": addresses}}


def on_processor(pid, thread):
    try:
        with open(f"/proc/{pid}/task/{thread}/schedstat") as handle:
            return int(handle.read().split()[0])
    except OSError:
        return 0
