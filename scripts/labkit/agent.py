"""The agent on a node of the lab: started in the node's namespaces, killed, replaced, and its log read."""
import os
import shutil
import signal
import subprocess

from . import kernel, net, own

# Where nothing else is said, routes are static and nothing is isolated. The outer ranges are those of `net`.
FLAGS = ["--run-router=false", "--run-firewall=false", "--metrics-port=20241"]


def family_flags(families="46"):
    """The flags that follow from the families of the cluster."""
    def of(ranges):
        return ",".join(net.of_families(ranges, families))
    return [f"--enable-ipv{f}={'true' if f in families else 'false'}" for f in "46"] + [
        f"--service-cluster-ip-range={of(net.SERVICE_RANGES)}", f"--service-external-ip-range={of(net.EXTERNAL_RANGES)}",
        f"--loadbalancer-ip-range={of(net.EXTERNAL_RANGES)}"]


class Agent:
    def __init__(self, i, binary, source, flags=(), netfilter="auto", families="46"):
        self.i, self.source, self.extra = i, source, list(flags)
        self.binary = binary
        self.families = families
        self.netfilter = netfilter
        self.process = None
        self.log = f"{net.RUN}/n{i}/agent.log"
        self.state = f"{net.RUN}/n{i}/state"

    def command(self, *more):
        return net.node_command(self.i, self.binary, *FLAGS, *family_flags(self.families), f"--hostname-override=node{self.i}",
                                f"--netfilter={self.netfilter}", f"--state-dir={self.state}", *self.source.flags(self.i), *self.extra, *more)

    def start(self):
        if self.process:
            raise own.LabError(f"the agent of node {self.i} runs already")
        # What the manifests of `daemonset/` say: the file is a list of plugins.
        env = {**os.environ, "KUBE_ROUTER_CNI_CONF_FILE": "/etc/cni/net.d/10-kuberouter.conflist"}
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env,
                                            start_new_session=True)
        return self

    def stop(self, number=signal.SIGTERM, patience=60):
        """Ends the agent by a signal; its exit status."""
        process, self.process = self.process, None
        if process is None:
            return None
        process.send_signal(number)
        try:
            return process.wait(patience)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise own.LabError(f"the agent of node {self.i} did not end within {patience} s after signal {int(number)}") from None

    def kill(self):
        """kill -9."""
        return self.stop(signal.SIGKILL)

    def replace(self):
        """Puts another file in the binary's place, as an upgrade does, and restarts."""
        copy = f"{net.RUN}/n{self.i}/sluice-next"
        shutil.copy2(self.binary, copy)
        os.chmod(copy, 0o755)
        self.stop()
        self.binary = copy
        return self.start()

    def is_alive(self):
        return self.process is not None and self.process.poll() is None

    def text(self, since=0):
        with open(self.log, errors="replace") as handle:
            handle.seek(since)
            return handle.read()

    def position(self):
        """Where the log ends now, for `text(since)`."""
        return os.path.getsize(self.log) if os.path.exists(self.log) else 0

    def once(self, *flags, patience=60):
        """Runs the binary on its own on the node, to its end: (exit status, what it printed)."""
        done = subprocess.run(net.node_command(self.i, self.binary, *flags), stdin=subprocess.DEVNULL, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=patience)
        return done.returncode, done.stdout

    def remembers(self, word):
        """Whether the last known state on its disk has this in it; it is written half a minute after the first change."""
        path = f"{self.state}/last-known"
        if not os.path.exists(path):
            return False
        with open(path, "rb") as handle:
            return word.encode() in handle.read()

    def healthy(self):
        return kernel.http_get(self.i, "/healthz")[0] == 200
