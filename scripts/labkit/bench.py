"""What the benchmarks of agents share: the product on a node, the node itself, and processes beside what is measured.

The product tells its own times: the log lines of its first sync and of each round of changes have them as fields.
"""
import calendar
import contextlib
import glob
import json
import os
import shutil
import signal
import socket
import subprocess
import time

from . import net, own
from .outside import relay
from .place import OUTSIDE

NODE = 1
ADDRESS = "192.0.2.11"
FLAGS = ["--run-router=false", "--run-firewall=false", "--run-service-proxy=true", "--enable-ipv6=false",
         f"--hostname-override=node{NODE}", f"--service-cluster-ip-range={net.SERVICE_RANGES[0]}", "--log-format=json"]
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
FIRST, ROUND = "First sync of services finished", "Service changes programmed"
PATIENCE = 600
# What a process occupies is at rest when it has not changed for so many seconds; after the second number nobody waits any more.
STILL, LONGEST = 20, 300


class Late(own.LabError):
    """Something did not come in time, and who was to say it still runs."""


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
            kind = Late if self.process.poll() is None else own.LabError
            raise kind(f"no '{message}' within {seconds} s:\n" + "".join(handle.readlines()[-10:]))

    def synced(self):
        """The line of the first sync, with the time since the start of the process."""
        line, _ = self.wait_for(FIRST)
        return dict(line, whole_us=int((timestamp(line) - self.began) * 1e6))

    def memory(self):
        """(resident, at most so far), in MiB."""
        return self._mib("VmRSS", "VmHWM")

    def shares(self):
        """How its resident memory is made up, in words. The program's own file is one of those, wherever it lies."""
        anonymous, files, shared = self._mib("RssAnon", "RssFile", "RssShmem")
        return f"{anonymous:.1f} anonymous, {files + shared:.1f} of files"

    def _mib(self, *names):
        with open(f"/proc/{self.process.pid}/status") as handle:
            fields = dict(line.split(":", 1) for line in handle)
        return tuple(int(fields[name].split()[0]) / 1024 for name in names)

    def processor_seconds(self):
        with open(f"/proc/{self.process.pid}/stat") as handle:
            fields = handle.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def share_of_a_core(self, seconds):
        """What it takes of one from now on."""
        before, begun = self.processor_seconds(), time.monotonic()
        time.sleep(seconds)
        return (self.processor_seconds() - before) / (time.monotonic() - begun)

    def threads(self):
        """Seconds of a processor by the name of the thread."""
        used = {}
        for task in glob.glob(f"/proc/{self.process.pid}/task/*"):
            try:
                with open(f"{task}/comm") as name, open(f"{task}/schedstat") as counts:
                    name = name.read().strip()
                    used[name] = used.get(name, 0) + int(counts.read().split()[0]) / 1e9
            except OSError:
                continue
        return used

    def received(self):
        """Bytes that came into its network namespace by any link but the loopback."""
        with open(f"/proc/{self.process.pid}/net/dev") as handle:
            counts = dict(line.split(":", 1) for line in handle if ":" in line)
        return sum(int(fields.split()[0]) for link, fields in counts.items() if link.strip() != "lo")

    def rounds(self, after=0):
        """The lines about rounds of changes behind the first `after` lines."""
        return [line for line in self.lines()[after:] if line["message"] == ROUND]

    def silent(self, seconds):
        """Waits until it has told of no round of changes for so long."""
        count, since = len(self.rounds()), time.monotonic()
        while time.monotonic() < since + seconds:
            time.sleep(0.2)
            if len(self.rounds()) != count:
                count, since = len(self.rounds()), time.monotonic()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with contextlib.suppress(ProcessLookupError):  # it has ended by itself
            os.killpg(self.process.pid, signal.SIGKILL)  # with what it has started
        self.process.wait(60)
        self.handle.close()


def timestamp(line):
    """Seconds since 1970 of a line of the log."""
    whole, _, fraction = line["timestamp"].rstrip("Z").partition(".")
    return calendar.timegm(time.strptime(whole, "%Y-%m-%dT%H:%M:%S")) + float(f"0.{fraction or 0}")


class Node:
    """`with Node(source):` a node in namespaces of its own, whose kernel has seen no Service yet: it keeps deleted destinations for minutes,
    and looks through all of them for each new one."""

    def __init__(self, source, nodes=1, pods=0):
        self.source, self.shape, self.relay = source, (nodes, pods), None

    def __enter__(self):
        net.up(*self.shape, 1)
        net.ip(None, f"link add away type veth peer name away netns n{NODE}")
        cluster = self.source.plan["cluster"]
        if cluster and OUTSIDE in os.environ:
            self.relay = relay(cluster["port"])
        shutil.rmtree(f"{net.RUN}/bench-state", ignore_errors=True)
        self.source.reach()
        return self

    def __exit__(self, *_):
        if self.relay:
            os.kill(self.relay, signal.SIGKILL)
            os.waitpid(self.relay, 0)
        net.down()
        gone("away")


def gone(link):
    """Waits until the kernel has taken a namespace apart, which it does later: the other end of this link was in it."""
    def is_there():
        try:
            return socket.if_nametoindex(link)
        except OSError:
            return 0
    if not own.wait(lambda: not is_there(), 120):
        raise own.LabError("a network namespace is still there two minutes after it was deleted")


class Beside:
    """A process beside this one, in which a function runs; `result` waits for what it returns."""

    def __init__(self, function, *words):
        self.pipe, report = os.pipe()
        self.pid = os.fork()
        if self.pid:
            os.close(report)
            return
        try:
            os.close(self.pipe)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            found = function(*words)
        except BaseException as error:
            found = {"error": f"{type(error).__name__}: {error}"}
        with os.fdopen(report, "w") as handle:
            json.dump(found, handle)
        os._exit(0)

    def result(self):
        with os.fdopen(self.pipe) as handle:
            text = handle.read()
        os.waitpid(self.pid, 0)
        found = json.loads(text or '{"error": "it was killed"}')
        if "error" in found:
            raise own.LabError(found["error"])
        return found


def nearby(program):
    """The program in memory. A guest sees the machine's files through a protocol that reads them again at every start, page by
    page as they are needed, for which neither the product nor the floor shall pay."""
    os.makedirs(net.RUN, exist_ok=True)
    path = f"{net.RUN}/{os.path.basename(program)}"
    if os.path.exists(path):
        os.unlink(path)  # the other sizes were measured with it
    shutil.copy(program, path)
    # Nor for finding libraries there for the first time.
    subprocess.run([path, "--version"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return path


def settle(look):
    """Waits until what `look` returns, MiB, does not change any more."""
    before, since, deadline = None, time.monotonic(), time.monotonic() + LONGEST
    while time.monotonic() < deadline and time.monotonic() - since <= STILL:
        now = round(look(), 1)
        if before is None or abs(now - before) > 0.2:
            before, since = now, time.monotonic()
        time.sleep(1)


def at(values, share):
    """The value below which that share of all lies."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def scraped(port):
    """Asks the node once for its metrics: (seconds, bytes)."""
    with net.Inside(f"n{NODE}"):
        begun = time.monotonic()
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as sock:
            sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: node1\r\nConnection: close\r\n\r\n")
            head, last, size = b"", b"", 0
            while chunk := sock.recv(1 << 20):
                head, last, size = head or chunk, chunk, size + len(chunk)
        took = time.monotonic() - begun
    if not head.startswith(b"HTTP/1.1 200 ") or not last.endswith(b"\n"):
        raise own.LabError(f"no whole answer about metrics: {size} bytes that begin with {head[:40]}")
    return took, size
