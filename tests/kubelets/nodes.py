#!/usr/bin/python3
"""Nodes with a kubelet and a containerd each, where the nodes are (in the guest): nodes.py up FACTS | run I COMMAND... | log I PROGRAM LINES |
proxy I FACTS on|off|end | kubelet I FACTS on|end | join I FACTS | reboot I FACTS | groups NODES.

Beside its network a node has folders, sockets and cgroups of its own: its cgroup is the root of what it sees of them. FACTS is a JSON file: the
cluster (`labkit.cluster`), `programs`, the folder `store` of a containerd that has imported the images, the number of `nodes`, and how many of them `join` later; `kubelet`, more of its
configuration; `proxy_mode` of kube-proxy, and `proxy_cidr`, the range that it takes for that of pods; `tunnel`, the socket by which the API server reaches the nodes, or the port of the machine where somebody has it for us (`labkit.outside`).
"""
import json
import os
import subprocess
import sys

TREE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
sys.path.insert(0, os.path.join(TREE, "scripts"))
sys.dont_write_bytecode = True
from labkit import net, own  # noqa: E402
from labkit.outside import relay, tunnel, waiting  # noqa: E402
from labkit.source import kubeconfig  # noqa: E402
import groups  # noqa: E402

PAUSE = "docker.io/library/pause:lab"
# What each node has alone, of the folders that a kubelet, a container runtime and their DaemonSets write.
OWN = ("/opt", "/var/lib/kubelet", "/var/lib/containerd", "/var/lib/sluice", "/var/lib/kube-router", "/var/log/pods", "/var/log/containers")
# Settings of the whole kernel that a kubelet writes. A node has copies: those of the machine are not its own where nodes share its kernel.
OF_THE_KERNEL = ("vm/overcommit_memory", "kernel/panic", "kernel/panic_on_oops", "kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes")
STATIC_PODS = "/var/lib/kubelet/static"
SOCKET = "unix:///run/containerd/containerd.sock"


def folder(i):
    return f"{net.RUN}/n{i}"


# What every boot makes anew.
FRESH_RUN = ["mount -t tmpfs tmpfs /run", f"mkdir -p /run/lock /run/netns /run/containerd {net.RUN}", f"mount --bind /mnt/lab {net.RUN}", "umount /mnt/lab"]
KEEP_LAB = ["mkdir -p /mnt/lab", f"mount --bind {net.RUN} /mnt/lab"]


def prepare(i):
    """Folders, /run and cgroups of the node; what mounts there is seen by every program of the node."""
    lines = ["mount --make-rshared /"]
    for path in OWN:  # a file system each: a kubelet asks which one a folder is on
        os.makedirs(path, exist_ok=True)
        lines += [f"mount -t tmpfs tmpfs {path}"]
    if groups.hierarchies():  # what lies below would be listed among the node's mounts
        lines += ["while umount -l /sys 2>/dev/null; do :; done", "mount -t sysfs sysfs /sys"]
    lines += [f"mkdir {STATIC_PODS}"]
    for number, name in enumerate(name for name in OF_THE_KERNEL if os.path.exists(f"/proc/sys/{name}")):
        lines += [f"cat /proc/sys/{name} > {folder(i)}/setting{number}", f"mount --bind {folder(i)}/setting{number} /proc/sys/{name}"]
    if not os.path.exists("/lib/modules"):  # a container runtime would make what a DaemonSet mounts, in the machine's own folder
        layer = f"{folder(i)}/lib"
        lines += [f"mkdir -p {layer}/upper/modules {layer}/work", f"mount -t overlay overlay -o lowerdir=/usr/lib,upperdir={layer}/upper,workdir={layer}/work /usr/lib"]
    net.node(i, "sh", "-ec", "\n".join(lines + KEEP_LAB + FRESH_RUN))
    groups.make(i, f"{folder(i)}/cgroup", f"{folder(i)}/mnt")


def command(i, *words):
    """The command line of a program in the node, in its cgroup."""
    inside = ["nsenter", f"--net=/run/netns/n{i}", f"--mount={folder(i)}/mnt", f"--uts={folder(i)}/uts", f"--cgroup={folder(i)}/cgroup", "--", *words]
    return ["sh", "-c", f'{groups.entering(i)}; exec "$@"', "sh", *inside]


def start(i, name, words, path):
    env = {"PATH": f"{path}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}
    with open(f"{folder(i)}/{name}.log", "ab") as log:
        process = subprocess.Popen(command(i, *words), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env, start_new_session=True)
    own.write(f"{folder(i)}/{name}.pid", str(process.pid))


def end(i, name):
    with open(f"{folder(i)}/{name}.pid") as handle:
        own.end([own.identity(int(handle.read()))], 10)
    os.unlink(f"{folder(i)}/{name}.pid")


def containerd(i, facts):
    own.write(f"{folder(i)}/containerd.toml", f"""version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = "{PAUSE}"
[plugins.'io.containerd.cri.v1.runtime']
disable_apparmor = true
restrict_oom_score_adj = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ["/opt/cni/bin"]
conf_dir = "/etc/cni/net.d"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
BinaryName = "/usr/sbin/runc"
SystemdCgroup = false
""")
    programs = facts["programs"]
    start(i, "containerd", [programs["containerd"], "--config", f"{folder(i)}/containerd.toml"], os.path.dirname(programs["containerd"]))
    ctr = command(i, programs["ctr"], "--address", SOCKET.removeprefix("unix://"), "-n", "k8s.io")
    if not own.wait(lambda: subprocess.run([*ctr, "version"], capture_output=True).returncode == 0, 180, 1):
        raise own.LabError(f"containerd of node {i} does not answer:\n{tail(i, 'containerd')}")


def kubelet(i, facts):
    token = facts["cluster"]["kubelet_tokens"][i - 1]
    own.write(f"{folder(i)}/kubeconfig", kubeconfig(f"https://{net.CONTROL[0]}:6443", token, facts["cluster"]["authority"]), 0o600)
    own.write(f"{folder(i)}/kubelet.json", json.dumps({
        "kind": "KubeletConfiguration", "apiVersion": "kubelet.config.k8s.io/v1beta1", "containerRuntimeEndpoint": SOCKET,
        "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}}, "authorization": {"mode": "AlwaysAllow"},
        "staticPodPath": STATIC_PODS, "cgroupDriver": "cgroupfs", "cgroupRoot": "/", "failSwapOn": False, "resolvConf": "", "clusterDomain": "cluster.local",
        "evictionHard": {"memory.available": "1Mi", "nodefs.available": "0%", "imagefs.available": "0%"}, "imageGCHighThresholdPercent": 100,
        "runtimeRequestTimeout": "10m", "nodeStatusUpdateFrequency": "5s", "volumeStatsAggPeriod": "0s", "enforceNodeAllocatable": [], **facts["kubelet"]}))
    node_ips = ",".join(net.load().addresses(i))
    start(i, "kubelet", [facts["programs"]["kubelet"], f"--config={folder(i)}/kubelet.json", f"--kubeconfig={folder(i)}/kubeconfig",
                         f"--hostname-override=node{i}", f"--node-ip={node_ips}", "--v=2"], os.path.dirname(facts["programs"]["containerd"]))


def kube_proxy(i, facts, wanted):
    """`on`: kube-proxy with what it takes by itself but for limits of conntrack, which are the machine's. `end`: its end. `off`: that, and what it is told to take away."""
    program = facts["programs"]["kube-proxy"]
    if wanted == "on":
        admin = kubeconfig(f"https://{net.CONTROL[0]}:6443", facts["cluster"]["token"], facts["cluster"]["authority"])
        own.write(f"{folder(i)}/kube-proxy.conf", admin, 0o600)
        return start(i, "kube-proxy", [
            program, f"--kubeconfig={folder(i)}/kube-proxy.conf", f"--hostname-override=node{i}", f"--cluster-cidr={facts['proxy_cidr']}",
            f"--proxy-mode={facts['proxy_mode']}",
            "--conntrack-max-per-core=0", "--conntrack-min=0", "--conntrack-tcp-timeout-established=0s", "--conntrack-tcp-timeout-close-wait=0s"], "/usr/sbin")
    if not os.path.exists(f"{folder(i)}/kube-proxy.pid"):
        return
    end(i, "kube-proxy")
    if wanted == "off":
        own.run(*command(i, program, "--cleanup"))


def tail(i, name, lines=25):
    with open(f"{folder(i)}/{name}.log", errors="replace") as handle:
        return "".join("  " + line[:400] for line in handle.readlines()[-lines:])


def up(path):
    facts = own.read_json(path)
    net.up(facts["nodes"], 0, 1, True)
    relay(facts["cluster"]["port"])
    # Where the Service of the API server leads to.
    relay(facts["cluster"]["port"], net.CONTROL[:1], facts["cluster"]["port"])
    (waiting if isinstance(facts["tunnel"], int) else tunnel)(facts["tunnel"])
    first = range(1, facts["nodes"] - facts["join"] + 1)
    for i in first:
        install(i, facts)
    for i in first:
        kubelet(i, facts)


def install(i, facts):
    prepare(i)
    net.node(i, "cp", "-a", f"{facts['store']}/.", "/var/lib/containerd/")
    containerd(i, facts)


def join(i, facts):
    install(i, facts)
    kubelet(i, facts)


# What an agent, pods and their runtime leave in a kernel; a node that has just booted has nothing of it.
TRACES = "; ".join([
    "nft list tables", "iptables-legacy-save 2>/dev/null | grep '^-A'", "ipset list -n", "ipvsadm -Ln | grep -E '^(TCP|UDP|SCTP|FWM)'", "ip -br link | grep -E '^(kube|veth|tun-|sluice)'",
    "for f in 4 6; do ip -$f rule | grep -vE 'lookup (local|main|default)'; done", *[f"ip route show root {one}" for one in net.POD_RANGES], "ls -A /run/netns", "true"])
# Of mounts that a kubelet and a container runtime have made; those of the folders themselves stay, like disks.
MOUNTED = "awk '{print $2}' /proc/self/mounts | grep -E '^/var/lib/(kubelet|containerd)/.' | sort -r"


def reboot(i, facts):
    """As after a loss of power: all processes end at once, and what the kernel, /run and mounts held is gone. What is on disks stays, and so do loaded modules, which all nodes share."""
    group, = groups.folders(i)  # of version 2, which alone can end all that is in one
    with open(f"{group}/cgroup.kill", "w") as handle:
        handle.write("1")

    def is_empty():
        with open(f"{group}/cgroup.events") as handle:
            return "populated 0" in handle.read()
    if not own.wait(is_empty, 120, 0.2):
        raise own.LabError(f"processes of node {i} do not end")
    for path, _, _ in os.walk(group, topdown=False):
        if path not in (group, f"{group}/init"):
            os.rmdir(path)
    net.renew_node(i)
    # One that is taken away may take others with it, so not every one is there any more; /run and /sys take all below them.
    own.run(*command(i, "sh", "-ec", "\n".join([
        f"for path in $({MOUNTED}); do umount -l \"$path\" || true; done", *KEEP_LAB, "umount -l /run", *FRESH_RUN,
        "umount -l /sys", "mount -t sysfs sysfs /sys", "mount -t cgroup2 cgroup2 /sys/fs/cgroup"])))
    left = own.run(*command(i, "sh", "-c", f"{MOUNTED}; {TRACES}"))
    if left.strip():
        raise own.LabError(f"node {i} has booted, and still has:\n{left}")
    containerd(i, facts)
    kubelet(i, facts)


def main(verb, *words):
    if verb == "up":
        return up(*words)
    if verb == "log":
        return print(tail(int(words[0]), words[1], int(words[2])))
    if verb in ("join", "reboot"):
        return {"join": join, "reboot": reboot}[verb](int(words[0]), own.read_json(words[1]))
    if verb == "proxy":
        return kube_proxy(int(words[0]), own.read_json(words[1]), words[2])
    if verb == "kubelet":
        return kubelet(int(words[0]), own.read_json(words[1])) if words[2] == "on" else end(int(words[0]), "kubelet")
    if verb == "groups":
        return print(*[path for i in range(1, int(words[0]) + 1) for path in groups.folders(i)], sep="\n")
    if verb == "run":
        os.execvp("sh", command(int(words[0]), *words[1:]))
    raise own.LabError(f"{verb}?")


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except own.LabError as error:
        own.say(f"nodes: {error}")
        sys.exit(1)
