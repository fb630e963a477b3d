"""The image started by containerd and runc: its entry point with flags alone, with its own path in front, and as an agent that works."""
import contextlib
import json
import os
import re
import shutil
import subprocess
import time

from labkit import cluster, net, objects, own
import twice
from root import said, that

NAME, ENTRY = "docker.io/library/sluice:", "/usr/local/bin/kube-router"
# Nothing but what `ctr` needs: no CRI, whose plugins look for a network of pods.
CONFIG = 'version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n'


class Containerd:
    """A containerd of ours, which ends with the test, and so do its containers."""

    def __init__(self, folder):
        self.folder = folder
        # A socket's path has a bound that scratch folders exceed.
        self.state = own.fresh(f"/run/sluice-image-{os.getpid()}")
        own.write(f"{folder}/config.toml", CONFIG)
        with open(f"{folder}/log", "wb") as log:
            self.process = subprocess.Popen(
                ["containerd", "--config", f"{folder}/config.toml", "--root", f"{folder}/root", "--state", f"{self.state}/state",
                 "--address", f"{self.state}/socket"], stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=cluster.end_with_parent)
        that(own.wait(lambda: os.path.exists(f"{self.state}/socket") and self.ctr("version").returncode == 0, 60, 0.2), "containerd did not start")

    def ctr(self, *words, timeout=120):
        return subprocess.run(["ctr", "--address", f"{self.state}/socket", "--namespace", "test", *words], stdin=subprocess.DEVNULL, capture_output=True,
                              text=True, timeout=timeout)

    def end(self):
        for name in self.ctr("task", "ls", "-q").stdout.split():
            self.ctr("task", "kill", "-s", "SIGKILL", name)
        own.wait(lambda: "RUNNING" not in self.ctr("task", "ls").stdout, 10, 0.2)
        for name in self.ctr("container", "ls", "-q").stdout.split():
            self.ctr("task", "delete", "--force", name)
            self.ctr("container", "delete", name)
        own.end([own.identity(self.process.pid)], 10)
        self.process.wait()
        with open("/proc/mounts") as handle:
            left = [line.split()[1] for line in handle if line.split()[1].startswith((self.state, self.folder))]
        for path in reversed(left):
            subprocess.run(["umount", "-l", path])
        shutil.rmtree(self.state, ignore_errors=True)


@contextlib.contextmanager
def containerd(of):
    runtime = Containerd(of.scratch("containerd"))
    try:
        for root in (of.root, of.minimal):
            done = runtime.ctr("images", "import", root.archive)
            that(done.returncode == 0, said(done))
        yield runtime
    finally:
        runtime.end()


@contextlib.contextmanager
def network():
    """A network namespace with a link that has the node's address; nothing leads out of it."""
    holder = subprocess.Popen(["unshare", "--net", "sleep", "600"], stdin=subprocess.DEVNULL)
    try:
        mine = os.readlink("/proc/self/ns/net")
        that(own.wait(lambda: os.readlink(f"/proc/{holder.pid}/ns/net") != mine, 10), "no network namespace")
        for line in ("link set lo up", "link add under type veth peer name other", "link set other up", "link set under up", "addr add 192.0.2.11/24 dev under"):
            own.run("nsenter", "-t", str(holder.pid), "--net", "ip", *line.split())
        yield f"/proc/{holder.pid}/ns/net"
    finally:
        holder.kill()
        holder.wait()


def manifests(of):
    """One Node, as files."""
    folder = of.scratch("manifests")
    item = objects.node(net.Plan(1, 1, 1), 1)
    item["spec"] = {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24"]}
    item["status"]["addresses"] = [{"type": "InternalIP", "address": "192.0.2.11"}]
    own.write(f"{folder}/node.json", json.dumps({"apiVersion": "v1", "kind": "List", "items": [item]}))
    return folder


def the_image_is_imported_under_the_name_that_a_kubelet_asks_for(of):
    with containerd(of) as runtime:
        names = runtime.ctr("images", "ls", "-q").stdout.split()
        that(sorted(names) == sorted([NAME + of.version, f"{NAME}{of.version}-minimal"]), names)
        for name in names:
            # Words for `ctr run` stand in the entry point's place; for docker and a kubelet behind it, so that the path comes twice.
            for words, expected, status in (
                ([ENTRY, "--version"], r"^/usr/local/bin/kube-router version", 0), ([ENTRY, "--help"], r"--run-router", 0),
                ([ENTRY, ENTRY, "--version"], r"^/usr/local/bin/kube-router version", 0), ([ENTRY, "--no-such-flag"], r"no-such-flag", 2),
                ([], r"^", 1),  # the entry point alone, which finds no cluster
            ):
                done = runtime.ctr("run", "--rm", name, "once", *words)
                that(done.returncode == status and re.search(expected, said(done)), name, words, done.returncode, said(done)[-400:])


# Of the chart: every line behind the head must say Establ. Here there is no neighbour, so there is no line.
READINESS = """
/usr/local/bin/gobgp neighbor >/dev/null || exit 7
lines=$(/usr/local/bin/gobgp neighbor | tail -n +2 | wc -l)
good=$(/usr/local/bin/gobgp neighbor | tail -n +2 | grep Establ | wc -l)
test "$lines" -eq "$good"
"""


def an_agent_of_the_image_works_with_the_programs_of_the_image(of):
    """Router and firewall with iptables, in a container as a DaemonSet describes it; the programs that people run beside it; and its removal."""
    with containerd(of) as runtime, network() as namespace:
        name = NAME + of.version
        flags = ["--run-service-proxy=false", "--netfilter=iptables", "--manifests=/manifests", "--hostname-override=node1", "--bgp-graceful-restart=true"]
        options = ["--privileged", "--with-ns", f"network:{namespace}", "--mount", f"type=bind,src={manifests(of)},dst=/manifests,options=rbind:ro"]
        done = runtime.ctr("run", "--detach", *options, name, "agent", ENTRY, *flags)
        that(done.returncode == 0, said(done))

        def inside(script):
            number = f"e{time.monotonic_ns()}"
            return runtime.ctr("task", "exec", "--exec-id", number, "agent", "/bin/sh", "-c", script)

        def good(script, expected):
            return own.wait(lambda: re.search(expected, said(inside(script))), 60, 0.5) or that(False, script, "says", said(inside(script))[-600:])

        good("pidof kube-router", r"^\d+$")
        good("cat /proc/$(pidof kube-router)/comm", r"^kube-router$")
        good("curl -s -o /dev/null -w '%{http_code}' http://127.0.0.1:20244/healthz", r"^200$")
        good("gobgp global", r"AS:\s+64512")
        good("gobgp3 global", r"AS:\s+64512")
        good(READINESS + "echo $?", r"^0$")
        good("iptables-save", r"KUBE-ROUTER-FORWARD")
        good("ipset list -n", r"kube-router-")
        good("/sbin/iptables -V", r"1\.8\.13")
        good("ip -br addr", r"192\.0\.2\.11")
        runtime.ctr("task", "kill", "-s", "SIGTERM", "agent")
        that(own.wait(lambda: "STOPPED" in runtime.ctr("task", "ls").stdout, 30, 0.3), "it does not end when asked to")
        # As documented for kube-router: its own path is the first word.
        done = runtime.ctr("run", "--rm", *options, name, "cleanup", ENTRY, "--cleanup-config")
        that(done.returncode == 0, said(done)[-600:])
        left = own.run("nsenter", f"--net={namespace}", "iptables-nft-save") + own.run("nsenter", f"--net={namespace}", "iptables-legacy-save")
        that("KUBE-" not in left, left)


def the_minimal_image_does_its_work_on_a_host_with_nftables(of):
    with containerd(of) as runtime, network() as namespace:
        flags = ["--run-service-proxy=false", "--netfilter=nftables", "--manifests=/manifests", "--hostname-override=node1"]
        options = ["--privileged", "--with-ns", f"network:{namespace}", "--mount", f"type=bind,src={manifests(of)},dst=/manifests,options=rbind:ro"]
        done = runtime.ctr("run", "--detach", *options, f"{NAME}{of.version}-minimal", "agent", ENTRY, *flags)
        that(done.returncode == 0, said(done))

        def tables():
            return own.run("nsenter", f"--net={namespace}", "nft", "list", "tables")
        that(own.wait(lambda: "table inet sluice_policy" in tables() and "table inet sluice_router" in tables(), 60, 0.5), "tables:", tables())
        done = runtime.ctr("task", "exec", "--exec-id", "audit", "agent", "/usr/local/bin/sluice", "audit")
        that(done.returncode in (0, 1), "the agent does not answer:", said(done))


def a_privileged_agent_works_on_a_read_only_root_with_the_mounts_of_k0s_alone(of):
    """No folder is there for the agent's socket and the last known state: nobody can ask it, nothing is kept, it says both, and all else works."""
    with containerd(of) as runtime, network() as namespace:
        folder = of.scratch("read-only")
        for name in ("net.d", "run"):
            os.mkdir(f"{folder}/{name}")
        own.write(f"{folder}/run/xtables.lock", "")
        own.write(f"{folder}/xtables.lock", "")
        mounts = {f"{folder}/net.d": "/etc/cni/net.d", f"{folder}/xtables.lock": "/run/xtables.lock"}
        options = ["--privileged", "--read-only", "--with-ns", f"network:{namespace}", "--log-uri", f"file://{folder}/log",
                   "--env", "KUBE_ROUTER_CNI_CONF_FILE=/etc/cni/net.d/10-kuberouter.conflist", "--mount", f"type=bind,src={manifests(of)},dst=/manifests,options=rbind:ro"]
        # A kubelet's containers have no folder of their own there, which those of `ctr` do.
        options += ["--mount", f"type=bind,src={folder}/run,dst=/run,options=rbind:ro"]
        options += [word for source, path in mounts.items() for word in ("--mount", f"type=bind,src={source},dst={path},options=rbind:rw")]
        flags = ["--run-service-proxy=false", "--netfilter=nftables", "--manifests=/manifests", "--hostname-override=node1"]
        done = runtime.ctr("run", "--detach", *options, NAME + of.version, "agent", ENTRY, *flags)
        that(done.returncode == 0, said(done))

        def log():
            with open(f"{folder}/log", errors="replace") as handle:
                return handle.read()

        def tables():
            return own.run("nsenter", f"--net={namespace}", "nft", "list", "tables")
        that(own.wait(lambda: "sluice_policy" in tables() and "sluice_router" in tables() and os.path.exists(f"{folder}/net.d/10-kuberouter.conflist"), 60, 0.5), log()[-3000:])
        that(own.wait(lambda: "Opening the local socket failed" in log(), 10, 0.5), log()[-3000:])
        # Half a minute after the last change.
        that(own.wait(lambda: "Writing the last known state failed" in log(), 90, 0.5), log()[-3000:])
        that("RUNNING" in runtime.ctr("task", "ls").stdout and "panicked" not in log(), log()[-3000:])


def an_agent_whose_last_known_state_goes_with_its_container_says_so(of):
    """kube-router's manifests mount no folder of the host for it, and the container's own file system takes it without an error."""
    with containerd(of) as runtime, network() as namespace:
        path = f"{of.scratch('own-file-system')}/log"
        flags = ["--run-service-proxy=false", "--netfilter=nftables", "--manifests=/manifests", "--hostname-override=node1"]
        options = ["--privileged", "--with-ns", f"network:{namespace}", "--log-uri", f"file://{path}",
                   "--mount", f"type=bind,src={manifests(of)},dst=/manifests,options=rbind:ro"]
        done = runtime.ctr("run", "--detach", *options, NAME + of.version, "agent", ENTRY, *flags)
        that(done.returncode == 0, said(done))

        def log():
            with open(path, errors="replace") as handle:
                return handle.read()
        that(own.wait(lambda: "lies in the container's own file system" in log(), 90, 0.5), log()[-3000:])
        that("Writing the last known state failed" not in log(), log()[-3000:])


def an_archive_of_both_processors_gives_this_machine_its_own_image(of):
    """It is one image to containerd, with one name; what it was made of is of other names here."""
    with containerd(of) as runtime:
        for name in runtime.ctr("images", "ls", "-q").stdout.split():
            runtime.ctr("images", "remove", "--sync", name)
        done = runtime.ctr("images", "import", twice.joined(of)[0])
        that(done.returncode == 0, said(done))
        name, shown = f"{NAME}{of.version}-minimal", runtime.ctr("images", "ls").stdout
        that(runtime.ctr("images", "ls", "-q").stdout.split() == [name] and "linux/amd64,linux/arm64" in shown, shown)
        done = runtime.ctr("run", "--rm", name, "once", ENTRY, "--version")
        that(done.returncode == 0 and said(done).startswith(f"{ENTRY} version"), said(done)[-400:])


# What a container has that nobody asked anything else for.
USUAL = ["CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID", "SETFCAP", "SETPCAP", "NET_BIND_SERVICE", "SYS_CHROOT", "KILL",
         "AUDIT_WRITE"]


SETTING = "net.ipv6.conf.all.disable_ipv6"


def unprivileged(folder):
    """What `daemonset/kube-router-unprivileged.yaml` gives to the agent, as words for `ctr run`, with folders of the test for the host's."""
    import yaml  # Debian's
    with open(f"{cluster.INSTALLED}/kube-router-unprivileged.yaml") as handle:
        pod = next(item for item in yaml.safe_load_all(handle) if item["kind"] == "DaemonSet")["spec"]["template"]["spec"]
    agent, volumes = pod["containers"][0], {volume["name"]: volume["hostPath"] for volume in pod["volumes"]}
    context = agent["securityContext"]
    that(not context["privileged"] and not context["allowPrivilegeEscalation"] and context["capabilities"]["drop"] == ["ALL"], context)
    words = ["--read-only"] * context["readOnlyRootFilesystem"]
    that(context["seccompProfile"] == {"type": "RuntimeDefault"}, context)
    words.append("--seccomp")  # containerd's default profile, which allows more to who has more capabilities
    added = context["capabilities"]["add"]
    that("SYS_MODULE" not in added, "the agent has the power to change the host's kernel:", added)
    words += [word for name in added for word in ("--cap-add", f"CAP_{name}")]
    words += [word for name in USUAL if name not in added for word in ("--cap-drop", f"CAP_{name}")]
    for mount in agent["volumeMounts"]:
        path, kind = volumes[mount["name"]]["path"], volumes[mount["name"]].get("type", "")
        # This host may have no modules to load.
        source = path if kind in ("", "Directory") and os.path.exists(path) else f"{folder}{path}"
        if kind != "FileOrCreate":
            os.makedirs(source, exist_ok=True)
            if path == "/etc/cni/net.d":
                os.chown(source, 1000, 1000)  # on some hosts it is another user's
        else:
            os.makedirs(os.path.dirname(source), exist_ok=True)
            own.write(source, "")
        mode = "ro" if mount.get("readOnly") else "rw"
        words += ["--mount", f"type=bind,src={source},dst={mount['mountPath']},options=rbind:{mode}"]
    return words


def complaints(path):
    """The warnings and errors of a log, without their times and numbers."""
    with open(path, errors="replace") as handle:
        found = [re.match(r"[WE]\d{4} .*?\] (.*)", line) for line in handle]
    return {re.sub(r"\d+", "0", one[1]) for one in found if one}


def an_agent_without_privileges_works_on_a_read_only_root(of):
    """It complains of nothing that one with all privileges, which loaded the modules that are there, does not complain of on this kernel."""
    with containerd(of) as runtime:
        for netfilter, listing, sign in (("nftables", ["nft", "list", "tables"], "sluice_policy"), ("iptables", ["iptables-nft-save"], "KUBE-ROUTER-FORWARD")):
            said_by = {}
            for name in ("privileged", "unprivileged"):
                with network() as namespace:
                    folder = of.scratch(f"{name}-{netfilter}")
                    rights = ["--privileged"] if name == "privileged" else unprivileged(folder)
                    flags = ["--run-service-proxy=false", f"--netfilter={netfilter}", "--manifests=/manifests", "--hostname-override=node1", "--enable-ipv6=true"]
                    inside = ["nsenter", f"--net={namespace}"]
                    own.run(*inside, "sysctl", "-w", SETTING + "=1")  # which the router takes back
                    options = [*rights, "--env", "KUBE_ROUTER_CNI_CONF_FILE=/etc/cni/net.d/10-kuberouter.conflist", "--with-ns", f"network:{namespace}",
                               "--log-uri", f"file://{folder}/log", "--mount", f"type=bind,src={manifests(of)},dst=/manifests,options=rbind:ro"]
                    done = runtime.ctr("run", "--detach", *options, NAME + of.version, "agent", ENTRY, *flags)
                    that(done.returncode == 0, said(done))

                    def answer():
                        text = own.run(*inside, "sh", "-c", "curl -s http://127.0.0.1:20244/readyz || true")
                        return text if "first round" not in text and sign in own.run(*inside, *listing) else ""
                    that(own.wait(lambda: answer(), 60, 0.5), "the agent gets nothing done:", answer())
                    that(own.wait(lambda: own.run(*inside, "sysctl", "-n", SETTING) == "0\n", 30, 0.5), name, netfilter, SETTING, "is not written:", answer())
                    said_by[name] = (answer(), complaints(f"{folder}/log"))
                    if name == "unprivileged":
                        that(os.path.exists(f"{folder}/run/sluice/sluice.sock") and os.path.exists(f"{folder}/etc/cni/net.d/10-kuberouter.conflist"), "no files")
                    runtime.ctr("task", "kill", "-s", "SIGKILL", "agent")
                    that(own.wait(lambda: "STOPPED" in runtime.ctr("task", "ls").stdout, 30, 0.3), "it does not end")
                    runtime.ctr("task", "delete", "--force", "agent")
                    runtime.ctr("container", "delete", "agent")
            (all_ready, all_said), (ready, complained) = said_by["privileged"], said_by["unprivileged"]
            that(not complained - all_said, netfilter, "complains of", complained - all_said)
            that(ready.splitlines()[:1] == all_ready.splitlines()[:1], netfilter, "answers", ready, "and privileged", all_ready)


ALL = [the_image_is_imported_under_the_name_that_a_kubelet_asks_for, an_agent_of_the_image_works_with_the_programs_of_the_image,
       the_minimal_image_does_its_work_on_a_host_with_nftables, a_privileged_agent_works_on_a_read_only_root_with_the_mounts_of_k0s_alone,
       an_agent_whose_last_known_state_goes_with_its_container_says_so, an_agent_without_privileges_works_on_a_read_only_root, an_archive_of_both_processors_gives_this_machine_its_own_image]
