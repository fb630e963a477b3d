"""Where nodes live: on this machine when its kernel has IPVS, otherwise in a guest.

On this machine they live below a process of ours that holds its own network, mount, process and host name namespaces:
nothing shows outside, and when that process ends, everything ends with it.
"""
import json
import os
import shutil
import subprocess

from . import own, packages
from .guest import LOST, Guest, environment

# Inside a place: an open file that is the network namespace of the machine's own loopback. Absent in a guest.
OUTSIDE = "SLUICE_LAB_OUTSIDE"


def choose(name, force=None):
    """The place of this name: a running one as it was started, else as this machine's kernel needs it."""
    for kind in (Guest, Native):
        place = kind(name)
        if place.is_up():
            return place
    kind = force or ("native" if packages.has_ipvs() else "guest")
    return {"native": Native, "guest": Guest}[kind](name)


class Native:
    def __init__(self, name):
        self.name = name
        self.folder = own.state("native", name)

    def holder(self):
        record = own.read_json(f"{self.folder}/native.json")
        return record["holder"] if record else [0, None]

    def is_up(self):
        return own.is_alive(self.holder())

    def up(self, shares=(), **_):
        """Starts the holder. Shares mean nothing here: the machine's files are simply there."""
        if os.geteuid():
            raise own.LabError("namespaces of nodes need root")
        packages.install(packages.TOOLS)
        with own.locked(f"native-{self.name}"):
            if self.is_up():
                raise own.LabError(f"the lab '{self.name}' is up already")
            subprocess.run(["modprobe", "-qa", *("br_netfilter", "veth", "dummy", "sctp", "nf_conntrack_netlink")])
            script = ("mount -t tmpfs tmpfs /run; mkdir -p /run/netns /run/lock /run/lab; ip link set lo up; "
                      'mount -t tmpfs tmpfs /etc/cni 2>/dev/null; echo up > "$0/ready"; exec sleep infinity')
            ready = f"{own.fresh(self.folder)}/ready"
            outer = subprocess.Popen(
                ["unshare", "--mount", "--net", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc",
                 "sh", "-c", script, self.folder], stdin=subprocess.DEVNULL, start_new_session=True)
            if not own.wait(lambda: os.path.exists(ready) or outer.poll() is not None, 10) or outer.poll() is not None:
                raise own.LabError("the namespaces of the lab could not be made")
            with open(f"/proc/{outer.pid}/task/{outer.pid}/children") as handle:
                holder = int(handle.read().split()[0])
            own.write(f"{self.folder}/native.json", json.dumps({"holder": own.identity(holder), "outer": own.identity(outer.pid)}))

    def down(self):
        record = own.read_json(f"{self.folder}/native.json")
        if record:
            own.end([record["holder"], record["outer"]])
        shutil.rmtree(self.folder, ignore_errors=True)

    def execute(self, argv, stdin=False, timeout=None, quiet=False, env=None):
        if not self.is_up():
            return LOST
        outside = os.open("/proc/self/ns/net", os.O_RDONLY)
        env = dict(env or environment(), **{OUTSIDE: str(outside)})
        command = ["nsenter", "-t", str(self.holder()[0]), "--mount", "--net", "--uts", "--ipc", "--pid",
                   f"--wd={os.getcwd()}", "--", *argv]
        sink = subprocess.DEVNULL if quiet else None
        try:
            return subprocess.run(command, env=env, pass_fds=[outside], timeout=timeout, stdout=sink, stderr=sink,
                                  stdin=None if stdin else subprocess.DEVNULL).returncode
        except subprocess.TimeoutExpired:
            return 124
        finally:
            os.close(outside)
