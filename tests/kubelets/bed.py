"""A cluster whose nodes are real kubelets: the control plane here, the nodes in a guest or beside it, images imported and never pulled."""
import base64
import json
import os
import shutil
import subprocess
import time

from labkit import charts, cluster, image, image_packages, net, own, packages, place
from labkit.image_oci import Image, Layer
from labkit.image_tree import Tree
from labkit.outside import meeting

import groups

NODES = os.path.join(os.path.dirname(os.path.realpath(__file__)), "nodes.py")
NAME = f"kubelets-{os.getpid()}"
APPLETS = ("sh", "httpd", "sleep", "cat", "grep", "ip", "nc", "ping")
RELEASE = "kube-router"  # of the chart, where Helm installs it: its objects have the names that the files give them
NEXT = "-next"  # of the tag of the image that an update brings
MANIFEST = "kubeadm-kuberouter-all-features"
DNS_ADDRESS = "10.96.0.10"  # of the Service that pods ask for names, where one is made
# What differs between the places of nodes. This machine's own kernel is many times faster than that of a guest, and may have neither IPVS nor cgroups of version 2;
PLACES = {"guest": {"kubelet": {"clusterDNS": [DNS_ADDRESS]}, "proxy_mode": "iptables"},
          "native": {"kubelet": {"failCgroupV1": False, "clusterDNS": [DNS_ADDRESS]}, "proxy_mode": "nftables"}}


class Bed:
    """`name`: the file of `daemonset/` that is applied; with `values` of the chart it is rendered anew. `nodes`: how many there are now; `joining`: how many
    more may join later. `kind`: the place of the nodes (`PLACES`). `proxy_mode`: of kube-proxy, where it is not the place's.
    `is_updated`: nodes have the image of an update (`NEXT`), too. `seconds`: after which cluster and guest end by themselves.
    `by_helm`: the chart is installed by Helm in place of a file. `archives`: the paths of more images that nodes have. `boots`: how often nodes have booted again, by their names."""

    def __init__(self, binary, nodes, name=MANIFEST, values=(), joining=0, kind="guest", proxy_mode=None, is_updated=False, seconds=cluster.SECONDS):
        self.binary, self.nodes, self.joining = binary, nodes, joining
        self.name, self.values = name, list(values)
        self.has_ipv6 = "ipv6=true" in self.values
        self.kind, self.place = kind, place.choose(NAME, kind)
        self.proxy_mode = proxy_mode or PLACES[kind]["proxy_mode"]
        self.folder = own.fresh(f"{own.cache()}/{NAME}")
        os.mkdir(f"{self.folder}/daemonset")
        for file in os.listdir(cluster.INSTALLED):
            os.symlink(f"{cluster.INSTALLED}/{file}", f"{self.folder}/daemonset/{file}")
        self.is_updated, self.seconds = is_updated, seconds
        self.by_helm, self.archives, self.groups, self.boots = False, [], [], {}

    def up(self):
        packages.install({**packages.TOOLS, **packages.GUEST, **packages.RUNTIME})
        programs = {name: cluster.other(name) for name in cluster.KUBELETS if name != cluster.SCHEDULER}
        every = self.nodes + self.joining
        tunnel = f"{self.folder}/tunnel"
        self.cluster = cluster.up(NAME, kubelets=every, tunnel=tunnel, seconds=self.seconds)
        # The server makes it when it is asked first, which on a busy machine takes longer than the 32 s that `apply` waits.
        self.kubectl("get", "--raw", "/openapi/v2")
        self.store(programs, [*self.images(programs), *self.archives])
        facts = {"cluster": self.cluster, "programs": programs, "nodes": every, "join": self.joining, "store": f"{self.folder}/store",
                 "tunnel": tunnel if self.kind == "native" else meeting(tunnel), "kubelet": PLACES[self.kind]["kubelet"], "proxy_mode": self.proxy_mode,
                 "proxy_cidr": ",".join(net.POD_RANGES)}
        own.write(f"{self.folder}/facts.json", json.dumps(facts), 0o600)
        shares = [f"{own.TREE}:ro", f"{self.folder}:rw"]
        self.place.up(memory=2048 + 1536 * every, shares=shares, processors=1, seconds=self.seconds)
        self.groups = self.inside("groups", str(every)).split() if self.kind == "native" else []
        self.inside("up", f"{self.folder}/facts.json", timeout=1200)
        self.has_kube_proxy = False
        return self

    def join(self):
        """Starts the next node of those that may join; its number."""
        self.nodes, self.joining = self.nodes + 1, self.joining - 1
        self.inside("join", str(self.nodes), f"{self.folder}/facts.json", timeout=900)
        if self.has_kube_proxy:
            self.start_kube_proxy(self.nodes)
            self.use_kube_proxy(self.nodes)
        return self.nodes

    def reboot(self, i):
        """Ends a node as a loss of power does, and starts its container runtime and its kubelet again."""
        self.boots[f"node{i}"] = self.boots.get(f"node{i}", 0) + 1
        self.inside("reboot", str(i), f"{self.folder}/facts.json", timeout=900)
        if self.has_kube_proxy:
            self.start_kube_proxy(i)
            self.use_kube_proxy(i)

    def kubelet(self, i, wanted):
        """Starts it on a node, or ends it as `systemctl` does: containers go on."""
        self.inside("kubelet", str(i), f"{self.folder}/facts.json", "on" if wanted else "end")

    def serves_services(self):
        """Whether the file that is applied has a service proxy."""
        with open(self.manifest()) as handle:
            return "--run-service-proxy=true" in handle.read()

    def start_kube_proxy(self, i):
        self.inside("proxy", str(i), f"{self.folder}/facts.json", "on", timeout=600)

    def kube_proxy(self, wanted):
        """Starts kube-proxy on every node, or ends it and takes away what it has made."""
        for i in range(1, self.nodes + 1) if wanted != self.has_kube_proxy else ():
            self.inside("proxy", str(i), f"{self.folder}/facts.json", "on" if wanted else "off", timeout=600)
        self.has_kube_proxy = wanted
        for i in range(1, self.nodes + 1) if wanted else ():
            self.use_kube_proxy(i)

    def use_kube_proxy(self, i):
        """Has a node send to addresses of Services, and waits until they answer."""
        # Hosts have a default route: where nothing leads to an address nobody translates it.
        self.on(i, "; ".join(f"ip route replace {of} via {to}" for of, to in zip(net.SERVICE_RANGES, net.ROUTER)))
        self.wait(f"the API server's Service answers node {i}", lambda: "ok" in self.on(i, "curl -sk -m 20 https://10.96.0.1/livez; true"), 300)

    def kube_proxy_ends(self):
        """Its process on every node, and nothing of what it has made."""
        for i in range(1, self.nodes + 1):
            self.inside("proxy", str(i), f"{self.folder}/facts.json", "end", timeout=600)
        self.has_kube_proxy = False

    def kube_proxy_anew(self, cidr):
        """The same, with another range that it takes for that of pods."""
        own.write(f"{self.folder}/facts.json", json.dumps({**own.read_json(f"{self.folder}/facts.json"), "proxy_cidr": cidr}), 0o600)
        self.kube_proxy_begins_anew()

    def kube_proxy_begins_anew(self):
        """Starts it again on one node after the other."""
        for i in range(1, self.nodes + 1):
            self.inside("proxy", str(i), f"{self.folder}/facts.json", "end", timeout=600)
            self.start_kube_proxy(i)
            self.use_kube_proxy(i)

    def manifest(self):
        """The path of what is applied."""
        if not self.values:
            return os.path.join(cluster.INSTALLED, f"{self.name}.yaml")
        # In the place of the file of that name, so that commands of the documentation take it, too.
        path = f"{self.folder}/daemonset/{self.name}.yaml"
        if os.path.islink(path):
            os.unlink(path)
        own.write(path, charts.rendered("-f", charts.values(self.name), *[word for value in self.values for word in ("--set", value)]))
        return path

    def install(self):
        """What a newcomer does: applies the file, or installs the chart with the same values."""
        if self.by_helm:
            charts.helm("install", RELEASE, charts.CHART, *self.helm_words(), "-f", charts.values(self.name), *[word for value in self.values for word in ("--set", value)])
        else:
            self.kubectl("apply", "--validate=strict", "-f", self.manifest())

    def uninstall(self):
        if self.by_helm:
            charts.helm("uninstall", RELEASE, *self.helm_words())
        else:
            self.kubectl("delete", "-f", self.manifest())

    def helm_words(self):
        return ["--namespace", charts.NAMESPACE, "--kubeconfig", self.cluster["kubeconfig"]]

    def images(self, programs):
        image_packages.settle(self.folder, ["amd64"])
        recipe = image.Recipe("amd64", "full", self.binary, image.source_date())
        path, digest, size = image.make(recipe, self.folder)
        own.say(f"{path}: {digest}, {size / 2**20:.1f} MiB")
        found = [path, *([self.following()] if self.is_updated else [])]
        small = Tree()
        small.link("bin", "usr/bin")
        small.copy("usr/bin/busybox", "/bin/busybox")
        for name in APPLETS:
            small.link(f"usr/bin/{name}", "busybox")
        small.folder("www", 0o755)
        small.folder("tmp", 0o1777)
        dns = Tree()
        dns.copy("coredns", programs[cluster.DNS])
        busybox, server = Layer(small.packed(0), "busybox"), Layer(dns.packed(0), "CoreDNS")
        for name, entry, layers in (("pause", ["/bin/busybox", "sleep", "1000000"], [busybox]), ("probe", ["/bin/sh"], [busybox]), ("dns", ["/coredns"], [server])):
            made = Image(layers, {"Entrypoint": entry, "Env": ["PATH=/bin"]}, "amd64", 0)
            found.append(f"{self.folder}/{name}.tar")
            with open(found[-1], "wb") as handle:
                handle.write(made.archive(name, "lab"))
        return found

    def following(self):
        """The path of the image that an update brings, whose program is another file."""
        program = f"{self.folder}/sluice"
        shutil.copy(self.binary, program)
        with open(program, "ab") as handle:
            handle.write(b"the next build")
        recipe = image.Recipe("amd64", "full", program, image.source_date())
        recipe.tag += NEXT
        return image.make(recipe, self.folder)[0]

    def store(self, programs, archives):
        """Imports the images here: the emulated processor would take minutes for each node. Nodes begin with a copy of what containerd keeps."""
        state = own.fresh(f"/run/{NAME}")
        own.write(f"{state}/config.toml", f"""version = 3
root = "{self.folder}/store"
state = "{state}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime"]
[grpc]
address = "{state}/socket"
""")
        with open(f"{self.folder}/containerd.log", "wb") as log:
            process = subprocess.Popen([programs["containerd"], "--config", f"{state}/config.toml"], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                       preexec_fn=cluster.end_with_parent)
        ctr = [programs["ctr"], "--address", f"{state}/socket", "-n", "k8s.io", "images"]
        try:
            if not own.wait(lambda: subprocess.run([*ctr, "ls"], capture_output=True).returncode == 0, 60, 0.2):
                raise own.LabError("containerd does not answer")
            for path in archives:
                own.run(*ctr, "import", path)
        finally:
            own.end([own.identity(process.pid)], 10)
            process.wait()
            shutil.rmtree(state)

    # ------------------------------------------------------------------ asking

    def inside(self, *words, timeout=300):
        """Runs `nodes.py` where the nodes are; what it printed."""
        lab = os.path.join(own.TREE, "scripts", "lab")
        done = subprocess.run([own.PYTHON, "-B", lab, "exec", "--name", NAME, "--timeout", str(timeout), "--", own.PYTHON, "-B", NODES, *words],
                              stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode:
            raise own.LabError(f"{' '.join(words)[:200]}: exit status {done.returncode}: {(done.stdout + done.stderr)[-3000:]}")
        return done.stdout

    def on(self, i, script, timeout=300):
        """What a script prints on a node."""
        return self.inside("run", str(i), "sh", "-c", script, timeout=timeout)

    def kubectl(self, *words, text_in=None):
        return own.run(self.cluster["programs"]["kubectl"], "--kubeconfig", self.cluster["kubeconfig"], *words, text_in=text_in)

    def shell(self, command):
        """What a command of the documentation prints where an administrator types it, in a folder with `daemonset/`."""
        env = {"PATH": f"{os.path.dirname(self.cluster['programs']['kubectl'])}:{os.environ['PATH']}", "KUBECONFIG": self.cluster["kubeconfig"], "HOME": self.folder}
        return own.run("timeout", "600", "sh", "-ec", command, env=env, cwd=self.folder)

    def get(self, *words):
        return json.loads(self.kubectl("get", "-o", "json", *words))

    def apply(self, *items):
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(items)})
        self.kubectl("apply", "--validate=strict", "-f", "-", text_in=text)

    def put(self, i, path, text):
        """Writes a file on a node."""
        encoded = base64.b64encode(text.encode()).decode()
        self.on(i, f"mkdir -p {os.path.dirname(path)}; echo {encoded} | base64 -d > {path}; chmod 0400 {path}")

    def ctr(self):
        """The path of containerd's client on the nodes."""
        return own.read_json(f"{self.folder}/facts.json")["programs"]["ctr"]

    def once(self, *words, mounts=(), conf=None, pids=False):
        """The shell command by which a node runs the image once, as documentation has it. `mounts`: (path, "ro" or "rw") each; `conf`: the path of the CNI file;
        `pids`: it sees the host's processes."""
        options = ["--rm", "--privileged", "--net-host", *(f"--mount type=bind,src={path},dst={path},options=rbind:{how}" for path, how in mounts)]
        options += [f"--env KUBE_ROUTER_CNI_CONF_FILE={conf}"] if conf else []
        options += ["--with-ns pid:/proc/1/ns/pid"] if pids else []
        return f"{self.ctr()} -n k8s.io run {' '.join(options)} docker.io/library/sluice:{image.version()} cleanup /usr/local/bin/kube-router {' '.join(words)} < /dev/null"

    def refused(self):
        """What the API server has refused agents for want of rights until now: verb and resource of each."""
        found = []
        with open(cluster.audit_log(NAME)) as handle:
            for line in handle:
                event = json.loads(line)
                if event.get("responseStatus", {}).get("code") == 403:
                    of = event.get("objectRef", {})
                    found.append(f"{event['verb']} {of.get('resource', event['requestURI'])}{'/' + of['subresource'] if of.get('subresource') else ''}")
        return found

    def wait(self, what, condition, seconds=900):
        """Waits; where it takes too long, says what the cluster and the nodes say."""
        began = time.monotonic()
        if not own.wait(condition, seconds, 1):
            raise AssertionError(f"{what}: not after {seconds} s\n{self.state()}")
        own.say(f"  {what}: {time.monotonic() - began:.0f} s")

    def state(self):
        text = [self.kubectl("get", "nodes,pods", "-A", "-o", "wide"), self.kubectl("get", "events", "-A", "--sort-by=.lastTimestamp")[-4000:]]
        for i in range(1, self.nodes + 1):
            for name in ("containerd", "kubelet", *(["kube-proxy"] if self.has_kube_proxy else [])):
                text.append(f"{name} of node {i}:\n{self.inside('log', str(i), name, '12')}")
            text.append(self.on(i, "tail -n 15 /var/log/pods/kube-system_kube-router*/*/*.log 2>/dev/null || true"))
        # A request that went to a pod that was gone went there because nobody had been told.
        with open(os.path.join(own.state("clusters", NAME), "kube-controller-manager.log"), errors="replace") as log:
            text.append("kube-controller-manager about endpoints:\n" + "".join([line for line in log if "endpoint" in line.lower()][-20:]))
        return "\n".join(text)

    def down(self):
        self.place.down()
        cluster.down(NAME)
        for path in self.groups:
            if not own.wait(lambda path=path: groups.remove(path), 30, 0.2):
                own.say(f"{path} is left: a process is still in it")
        shutil.rmtree(self.folder, ignore_errors=True)
