"""Kubernetes' own tests of a cluster: their program as it is, the images that their pods ask for, made here, and what the program says of each test."""
import os
import re
import subprocess

from labkit import cluster, own, packages
from labkit.image_oci import Image, Layer
from labkit.image_tree import Tree

LIST = os.path.join(os.path.dirname(os.path.realpath(__file__)), "upstream.txt")
# What all names begin with that the list must name.
GROUP = "[sig-network] "
# What the tests call in pods. Debian's name of netcat is another one; its busybox takes its own netcat as a shell, whatever PATH says, and is killed in its own wget.
TOOLS = {"sh": "/bin/dash", "wget": "/usr/bin/wget", "curl": "/usr/bin/curl", "dig": "/usr/bin/dig", "nc": "/bin/nc.openbsd", "getent": "/usr/bin/getent", "ss": "/bin/ss", "ip": "/sbin/ip", "bash": "/bin/bash"}
# Images by the last word of their names: what a container of them runs, and with which words where its pod has none.
IMAGES = {"agnhost": (["/agnhost"], ["pause"]), "busybox": ([], ["sh"]), "glibc-dns-testing": (["/agnhost"], ["pause"]), "pause": (["/agnhost", "pause"], []), "nginx": (["/agnhost", "test-webserver"], []),
          cluster.BOOM: ([f"/{cluster.BOOM}"], [])}
MOST_MINUTES = 20  # for one test
PASSED, SKIPPED = "passed", "skipped"
NOT_RUN = re.compile(r"not run(?: without (.+?))?: (.+)")


def names(values):
    """The names of `upstream.txt`: those that are run, in their order, and why each of the others is not. Some need a value of the chart, or a place, or both (`ipv6=true and
    place=guest`)."""
    run, not_run, reason = [], {}, None
    with open(LIST) as handle:
        for line in filter(None, (line.strip() for line in handle)):
            if found := NOT_RUN.match(line):
                reason = None if found[1] and set(found[1].split(" and ")) <= set(values) else found[2]
            elif not line.startswith("#"):
                if reason is None:
                    run.append(line)
                else:
                    not_run[line] = reason
    return run, not_run


class Outcome:
    """What the program says of one test: its word, for how many seconds it ran, and the failure as printed."""

    def __init__(self, name, word, seconds, failure=""):
        self.name, self.word, self.seconds, self.failure = name, word, seconds, failure


class Tests:
    """The program, and the folder for what it writes."""

    def __init__(self, folder):
        self.program, self.folder = cluster.other(cluster.E2E), folder
        os.makedirs(folder, exist_ok=True)

    def version(self):
        return own.run(self.program, "--version").strip()

    def images(self, folder):
        """Writes the images that the tests ask for into a folder; the paths of the archives."""
        packages.install(packages.IN_PODS)
        layer = Layer(files().packed(0), "agnhost, busybox and Debian's tools")
        found = []
        for full in own.run(self.program, "--list-images").split():
            name, _, tag = full.rpartition(":")
            if os.path.basename(name) in IMAGES:
                entry, words = IMAGES[os.path.basename(name)]
                made = Image([layer], {"Entrypoint": entry, "Cmd": words, "Env": ["PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]}, "amd64", 0)
                found.append(f"{folder}/{os.path.basename(name)}-{tag}.tar")
                with open(found[-1], "wb") as handle:
                    handle.write(made.archive(name, tag))
        return found

    def every(self):
        """The names of all tests that the list must name."""
        path = f"{self.folder}/every.json"
        self.go(path, f"{self.folder}/every.log", r"\[sig-network\]", "--ginkgo.dry-run")
        return [name for name in (name_of(one) for one in specs(path)) if name.startswith(GROUP)]

    def go(self, report, log, focus, *more, minutes=10):
        with open(log, "wb") as handle:
            # The program has no limit of its own for the wait for nodes.
            return subprocess.run(
                [self.program, "--provider=local", "--ginkgo.no-color", "--ginkgo.v", f"--ginkgo.focus={focus}", f"--ginkgo.json-report={report}", *more],
                stdin=subprocess.DEVNULL, stdout=handle, stderr=handle, cwd=self.folder, timeout=60 * minutes).returncode

    def run(self, found, number, names):
        """Runs tests in one start of the program, which takes seconds, on a cluster (the facts of `labkit.cluster`); the outcome of each."""
        report, log = f"{self.folder}/{number:03}.json", f"{self.folder}/{number:03}.log"
        focus, minutes = "|".join(re.escape(name) + "$" for name in names), MOST_MINUTES * len(names)
        try:
            self.go(report, log, focus, f"--kubeconfig={found['kubeconfig']}", f"--kubectl-path={found['programs']['kubectl']}",
                    f"--ginkgo.timeout={minutes}m", minutes=minutes + 10)
        except subprocess.TimeoutExpired:
            return [Outcome(name, "timedout", 60 * minutes / len(names), last_lines(log)) for name in names]
        found = {name_of(one): one for one in specs(report) if one["State"] != SKIPPED or one.get("Failure", {}).get("Message")}
        if os.path.exists(report):
            os.unlink(report)  # it has all 7,500 tests that were not asked for, too
        return [of_spec(name, found[name]) if name in found else Outcome(name, "not started", 0, last_lines(log)) for name in names]


def of_spec(name, spec):
    return Outcome(name, spec["State"], spec["RunTime"] / 1e9, spec.get("Failure", {}).get("Message", ""))


def last_lines(path, count=30):
    with open(path, errors="replace") as handle:
        return "".join(handle.readlines()[-count:])


def specs(path):
    """The tests of a report of ginkgo's."""
    return [one for suite in own.read_json(path) or [] for one in suite.get("SpecReports") or [] if one["LeafNodeType"] == "It"]


def name_of(spec):
    return " ".join([*(spec.get("ContainerHierarchyTexts") or []), spec["LeafNodeText"]])


def files():
    """What pods of the tests have: agnhost as its own image lays it out with a CoreDNS, what sends packets outside of a connection's window, a busybox, and tools with their libraries."""
    tree = Tree()
    for name in ("bin", "sbin", "lib", "lib64"):
        tree.link(name, f"usr/{name}")
    tree.copy("usr/bin/busybox", "/bin/busybox")
    for name in own.run("/bin/busybox", "--list").split():
        if name not in ("busybox", *TOOLS):
            tree.link(f"usr/bin/{name}", "busybox")
    for name, path in TOOLS.items():
        tree.copy(f"usr/bin/{name}", path)
        for library in re.findall(r"(/\S+) \(0x", own.run("ldd", path)):
            tree.copy(library, library)
    for name in (cluster.AGNHOST, cluster.BOOM):
        tree.copy(name, cluster.other(name))
    tree.copy("coredns", cluster.other(cluster.DNS))  # pods that are a DNS of a test's own start it
    tree.link("agnhost-2", "agnhost")
    module = cluster.folder_of_module("kubernetes", "k8s.io/kubernetes")
    for name in ("localhost.crt", "localhost.key"):
        tree.copy(name, f"{module}/test/images/agnhost/porter/{name}", 0o644)
    for name, mode in (("uploads", 0o777), ("tmp", 0o1777), ("etc", 0o755), ("var", 0o755)):
        tree.folder(name, mode)
    tree.file("etc/passwd", "root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n")
    tree.file("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n")
    return tree
