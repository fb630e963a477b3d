"""A real API server for the lab: etcd, kube-apiserver and two controllers of kube-controller-manager, on loopback.

The programs come from PATH or are built once from Go modules of one pinned version (scripts/cluster). A keeper process
owns them: they end with it, and it stops and starts the API server when a test asks for that. The lab plays scheduler
and kubelet, but for a cluster with `kubelets`, which has all controllers and a scheduler.
"""
import ctypes
import json
import os
import queue
import secrets
import shutil
import signal
import socketserver
import subprocess
import sys
import threading
import time

from . import net, own, writer
from .api import Api, ApiError
from .guest import free_port
from .source import kubeconfig

ETCD, KUBERNETES = "3.7.3", "1.36.3"
PROGRAMS = {
    "etcd": ("etcd", "go.etcd.io/etcd/server/v3", f"etcd-{ETCD}"),
    "kube-apiserver": ("kubernetes", "k8s.io/kubernetes/cmd/kube-apiserver", f"kubernetes-{KUBERNETES}"),
    "kube-controller-manager": ("kubernetes", "k8s.io/kubernetes/cmd/kube-controller-manager", f"kubernetes-{KUBERNETES}"),
    "kubectl": ("kubernetes", "k8s.io/kubernetes/cmd/kubectl", f"kubernetes-{KUBERNETES}"),
}
CONTAINERD, CONTAINERD_VERSION = "github.com/containerd/containerd/v2/cmd", "2.2.9"
RUNTIME = ("containerd", "containerd-shim-runc-v2", "ctr")
CRICTL, CRICTL_VERSION = "crictl", "1.36.0"
# What is built in the same way for other tests, and to be measured beside ours.
NEWER_GOBGP, KUBE_PROXY, KUBELET, SCHEDULER, HELM, DNS = "gobgp", "kube-proxy", "kubelet", "kube-scheduler", "helm", "coredns"
NEWER_GOBGPD, GOBGP_VERSION = "gobgpd", "4.8.0"
# Kubernetes' own tests of a cluster, as one program, and what their pods run.
E2E, AGNHOST, BOOM = "e2e.test", "agnhost", "regression-issue-74839"
OTHERS = {
    **{name: ("gobgp", f"github.com/osrg/gobgp/v4/cmd/{name}", f"gobgp-{GOBGP_VERSION}") for name in (NEWER_GOBGP, NEWER_GOBGPD)},
    DNS: ("coredns", ".", "coredns-1.14.7-hosts-log"),
    HELM: ("helm", "helm.sh/helm/v4/cmd/helm", "helm-4.3.1"),
    **{name: ("kubernetes", f"k8s.io/kubernetes/cmd/{name}", f"kubernetes-{KUBERNETES}") for name in (KUBE_PROXY, KUBELET, SCHEDULER)},
    E2E: ("kubernetes", "k8s.io/kubernetes/test/e2e", f"kubernetes-{KUBERNETES}"),
    **{name: ("kubernetes", f"k8s.io/kubernetes/test/images/{name}", f"kubernetes-{KUBERNETES}") for name in (AGNHOST, BOOM)},
    **{name: ("containerd", f"{CONTAINERD}/{name}", f"containerd-{CONTAINERD_VERSION}") for name in RUNTIME},
    CRICTL: ("crictl", "sigs.k8s.io/cri-tools/cmd/crictl", f"crictl-{CRICTL_VERSION}"),
}
# What a node with a real kubelet runs, and the scheduler of its cluster.
KUBELETS = (KUBELET, KUBE_PROXY, DNS, *RUNTIME, SCHEDULER)
SECONDS = 7200  # a forgotten cluster ends by itself
# What users apply. The agents of the lab have the rights that are written in one of these files, and no others.
INSTALLED = os.path.join(own.TREE, "daemonset")
ALL = "generic-kuberouter-all-features.yaml"
# What the API server writes down in a cluster with real kubelets: every answer to the agents, so that tests see what they are refused.
AGENTS = ("system:serviceaccount:kube-system:kube-router", "system:kube-router")
AUDIT = {"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived", "ResponseStarted"],
         "rules": [{"level": "Metadata", "users": AGENTS}, {"level": "None"}]}
# Applied beside the others where agents are to write the condition or annotations of their nodes, or to give addresses to Services.
BESIDE = ("kube-router-node-status.yaml", "kube-router-load-balancer.yaml", "kube-router-node-annotations.yaml")
# What users write in the place of the words between percent signs.
WORDS = {"%APISERVER%": f"https://{net.CONTROL[0]}:6443", "%CLUSTERASN%": "64512", "%PEERIPS%": f"{net.CONTROL[0]},{net.CONTROL[1]}",
         "%PEERASNS%": "65001,65001"}
ACCOUNT = "/api/v1/namespaces/kube-system/serviceaccounts/kube-router"


def command(action, name, more):
    folder = own.state("clusters", name)
    if action == "build":
        print("\n".join(build()))
    elif action == "up":
        print(up(name)["kubeconfig"])
    elif action == "down":
        down(name)
    elif action == "status":
        found = facts(name)
        print(f"{name}: up, port {found['port']}, {found['kubeconfig']}" if found else f"{name}: down")
        return 0 if found else 1
    else:
        return subprocess.run([program("kubectl"), "--kubeconfig", f"{folder}/kubeconfig", *more]).returncode
    return 0


# ---------------------------------------------------------------- programs


def path_of(name):
    """The program in PATH when it is of the pinned release, else where ours is or will be."""
    found = shutil.which(name)
    return found if found and is_pinned(name, found) else f"{own.cache()}/cluster/{PROGRAMS[name][2]}/{name}"


def is_pinned(name, path):
    words = ["version", "--client"] if name == "kubectl" else ["--version"]
    text = subprocess.run([path, *words], capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout
    release = (ETCD if name == "etcd" else KUBERNETES).rsplit(".", 1)[0]
    return f"{release}." in text


def program(name):
    if not os.path.exists(path_of(name)):
        build([name])
    return path_of(name)


def build(names=tuple(PROGRAMS)):
    """Builds what neither PATH nor the cache has; returns the paths."""
    with own.locked("cluster-build"):
        for name in names:
            if not os.path.exists(path_of(name)):
                compile_program(name)
    return [path_of(name) for name in names]


def build_all():
    """Those and what real kubelets need besides."""
    build()
    for name in KUBELETS:
        other(name)


def newer_gobgp():
    """The path of the newest client of GoBGP; the one in PATH is Debian's."""
    return other(NEWER_GOBGP)


def newer_gobgpd():
    """The path of its daemon."""
    return other(NEWER_GOBGPD)


def kube_proxy():
    """The path of the kube-proxy of the pinned version."""
    return other(KUBE_PROXY)


def other(name):
    path = f"{own.cache()}/cluster/{OTHERS[name][2]}/{name}"
    with own.locked(f"{name}-build"):
        if not os.path.exists(path):
            compile_program(name)
    return path


def folder_of_module(pins, module):
    """Where the files of a module are that a folder of scripts/cluster pins."""
    return own.run("go", "list", "-m", "-f", "{{.Dir}}", module, cwd=os.path.join(own.TREE, "scripts", "cluster", pins)).strip()


def compile_program(name):
    if not shutil.which("go"):
        raise own.LabError(f"{name} is not in PATH, and to build it a Go toolchain is needed: Go 1.26 or newer in PATH")
    module, package, folder = {**PROGRAMS, **OTHERS}[name]
    own.say(f"building {name} (from source, once; minutes on a cold machine)")
    began = time.monotonic()
    flags = "-s -w"
    if module == "kubernetes":  # without these the server calls itself v0.0.0
        major, minor, _ = KUBERNETES.split(".")
        for package_of_version in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version"):
            flags += f" -X {package_of_version}.gitVersion=v{KUBERNETES} -X {package_of_version}.gitMajor={major} -X {package_of_version}.gitMinor={minor}"
    target = f"{own.cache()}/cluster/{folder}/{name}"
    os.makedirs(os.path.dirname(target), exist_ok=True)
    work = f"{target}.{os.getpid()}.new"
    action = ["test", "-c"] if name.endswith(".test") else ["build"]
    for _ in range(3):  # the server of modules may fail once
        done = subprocess.run(["nice", "-n", "10", "go", *action, "-trimpath", "-ldflags", flags, "-o", work, package],
                              cwd=os.path.join(own.TREE, "scripts", "cluster", module), env=dict(os.environ, CGO_ENABLED="0"),
                              stdin=subprocess.DEVNULL)
        if not done.returncode:
            break
    if done.returncode:
        raise own.LabError(f"building {name} failed with exit status {done.returncode}; go says why above")
    os.rename(work, target)
    own.say(f"built {name} in {time.monotonic() - began:.0f} s")


# ---------------------------------------------------------------- up and down


def facts(name):
    """What is to be known of a running cluster: ports, tokens, the certificate. None when it is down."""
    found = own.read_json(f"{own.state('clusters', name)}/cluster.json")
    return found if found and own.is_alive(found["keeper"]) else None


def up(name, kubelets=0, tunnel=None, families="46", seconds=SECONDS):
    """Starts the cluster of this name. `kubelets`: how many nodes (`node1`, …) real kubelets will be; without any the lab plays them. `tunnel`: the socket
    by which the API server will reach them (`outside.tunnel`); without one nobody runs a command in a pod. `families`: those of its Services and pods. It ends by itself after `seconds`."""
    programs = dict(zip(PROGRAMS, build()))
    if kubelets:
        programs[SCHEDULER] = other(SCHEDULER)
    with own.locked(f"cluster-{name}"):
        if facts(name):
            raise own.LabError(f"the cluster '{name}' is up already")
        folder = own.fresh(own.state("clusters", name))
        found = {"name": name, "programs": programs, "token": secrets.token_hex(16), "families": families, "seconds": seconds,
                 **{port: free_port() for port in ("port", "control", "etcd", "etcd_peer", "manager", "scheduler")},
                 "kubelet_tokens": [secrets.token_hex(16) for _ in range(kubelets)],
                 "kubeconfig": f"{folder}/kubeconfig", "tunnel": tunnel}
        found["authority"] = certificates(folder)
        nodes = "".join(f'{token},system:node:node{i},node{i},"system:nodes"\n' for i, token in enumerate(found["kubelet_tokens"], 1))
        own.write(f"{folder}/audit.json", json.dumps(AUDIT))
        own.write(f"{folder}/tunnel.json", json.dumps(way_to_nodes(tunnel)))
        own.write(f"{folder}/tokens.csv", f'{found["token"]},admin,admin,"system:masters"\n{nodes}', 0o600)
        own.write(found["kubeconfig"], kubeconfig(f"https://127.0.0.1:{found['port']}", found["token"], found["authority"]), 0o600)
        with open(f"{folder}/keeper.log", "wb") as log:
            keeper = subprocess.Popen([own.PYTHON, "-B", "-m", "labkit.cluster", folder], stdin=subprocess.PIPE, stdout=log, stderr=log,
                                      cwd=os.path.join(own.TREE, "scripts"), start_new_session=True)
        found["keeper"] = own.identity(keeper.pid)
        own.write(f"{folder}/cluster.json", json.dumps(found), 0o600)
        keeper.stdin.close()  # it may read its facts now
        try:
            prepare(found, keeper, folder)
        except BaseException:
            own.end([found["keeper"]], grace=15)
            raise
        own.write(f"{folder}/cluster.json", json.dumps(found), 0o600)
    return found


def way_to_nodes(tunnel):
    """What tells the API server to reach nodes by a socket of the machine."""
    way = {"proxyProtocol": "HTTPConnect", "transport": {"uds": {"udsName": tunnel}}}
    return {"apiVersion": "apiserver.k8s.io/v1beta1", "kind": "EgressSelectorConfiguration", "egressSelections": [{"name": "cluster", "connection": way}]}


def prepare(found, keeper, folder):
    api = Api(found)
    if not own.wait(lambda: keeper.poll() is not None or api.is_ready(), 600, 0.3) or keeper.poll() is not None:
        raise own.LabError("the API server did not become ready:\n" + last_words(folder))
    if not own.wait(lambda: has_namespace(api, "kube-system"), 60, 0.3):
        raise own.LabError("the API server made no namespace kube-system:\n" + last_words(folder))
    if found["kubelet_tokens"]:
        return  # what is to be applied there is the user's affair
    found["installed"] = {name: installed(found, name) for name in sorted(os.listdir(INSTALLED)) if name not in BESIDE}
    apply(found, ALL)
    for name in BESIDE:
        apply(found, name)
    asked = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": found["seconds"]}}
    found["agent_token"] = api.request("POST", f"{ACCOUNT}/token", asked)["status"]["token"]


def text_of(name):
    """A file of `daemonset/`, as a user applies it."""
    with open(os.path.join(INSTALLED, name)) as handle:
        text = handle.read()
    for word, meaning in WORDS.items():
        text = text.replace(word, meaning)
    return text


def apply(found, name, *more):
    """What the API server says of each object of the file, having checked every field of it."""
    said = own.run(found["programs"]["kubectl"], "--kubeconfig", found["kubeconfig"], "apply", "--validate=strict", "-o", "json", *more,
                   "-f", "-", text_in=text_of(name))
    return json.loads(said)["items"]


def installed(found, name):
    """What a file gives to the agent, as the API server understands it: its rights and its flags."""
    items = {item["kind"]: item for item in apply(found, name, "--dry-run=server")}
    pod = items["DaemonSet"]["spec"]["template"]["spec"]
    return {"rules": items["ClusterRole"]["rules"], "args": pod["containers"][0]["args"], "account": pod["serviceAccountName"]}


def has_namespace(api, name):
    try:
        return api.get(f"/api/v1/namespaces/{name}")["status"]["phase"] == "Active"
    except ApiError as error:
        if error.status != 404:
            raise
        return False


def last_words(folder):
    text = ""
    for name in ("keeper", "etcd", "kube-apiserver", "kube-controller-manager"):
        if os.path.exists(f"{folder}/{name}.log"):
            with open(f"{folder}/{name}.log", errors="replace") as handle:
                text += "".join(f"  {name}: {line}" for line in handle.readlines()[-5:])
    return text


def down(name):
    found = facts(name)
    if found:
        own.end([found["keeper"]], grace=20)
    shutil.rmtree(own.state("clusters", name), ignore_errors=True)


def audit_log(name):
    """What the API server has answered to the agents, one JSON object a line (`AUDIT`)."""
    return f"{own.state('clusters', name)}/audit.log"


def certificate(name, user):
    """A certificate of the cluster's authority for a user, and its key, both PEM."""
    folder = own.state("clusters", name)
    own.run("openssl", "req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={user}", "-keyout", f"{folder}/user.key", "-out", f"{folder}/user.csr")
    own.write(f"{folder}/user.ext", "basicConstraints=CA:FALSE\nextendedKeyUsage=clientAuth\n")
    own.run("openssl", "x509", "-req", "-in", f"{folder}/user.csr", "-CA", f"{folder}/authority.pem", "-CAkey", f"{folder}/authority.key", "-CAcreateserial",
            "-days", "30", "-extfile", f"{folder}/user.ext", "-out", f"{folder}/user.pem")
    return [own.run("cat", f"{folder}/user.{kind}") for kind in ("pem", "key")]


def certificates(folder):
    """An authority, the server's certificate signed by it, and the key of service accounts; the authority's PEM."""
    own.run("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30", "-subj", "/CN=lab authority",
            "-keyout", f"{folder}/authority.key", "-out", f"{folder}/authority.pem")
    names = ["DNS:localhost", "DNS:kubernetes.default.svc", "IP:127.0.0.1", "IP:10.0.2.2", "IP:10.96.0.1", *[f"IP:{a}" for a in net.CONTROL]]
    own.write(f"{folder}/server.ext", "basicConstraints=CA:FALSE\nextendedKeyUsage=serverAuth\nsubjectAltName=" + ",".join(names) + "\n")
    own.run("openssl", "req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=kube-apiserver",
            "-keyout", f"{folder}/server.key", "-out", f"{folder}/server.csr")
    own.run("openssl", "x509", "-req", "-in", f"{folder}/server.csr", "-CA", f"{folder}/authority.pem", "-CAkey", f"{folder}/authority.key",
            "-CAcreateserial", "-days", "30", "-extfile", f"{folder}/server.ext", "-out", f"{folder}/server.pem")
    own.run("openssl", "genrsa", "-out", f"{folder}/accounts.key", "2048")
    with open(f"{folder}/authority.pem") as handle:
        return handle.read()


# ---------------------------------------------------------------- the keeper, a process of its own


def commands(folder, found):
    services, pods = (",".join(net.of_families(ranges, found["families"])) for ranges in (net.SERVICE_RANGES, net.POD_RANGES))
    # The address that it tells others has to be of the family of its own Service.
    told = [] if "4" in found["families"] else [f"--advertise-address={net.CONTROL[1]}"]
    real = found["kubelet_tokens"]
    scheduler = {SCHEDULER: [f"--kubeconfig={found['kubeconfig']}", "--bind-address=127.0.0.1", f"--secure-port={found['scheduler']}",
                             f"--cert-dir={folder}", "--leader-elect=false"]}
    # Who has a certificate of the authority is whom it names, and pods find the server by its Service where a proxy serves that.
    for_kubelets = [f"--client-ca-file={folder}/authority.pem", f"--advertise-address={net.CONTROL[0]}", f"--audit-policy-file={folder}/audit.json",
                    f"--audit-log-path={audit_log(found['name'])}"]
    if found["tunnel"]:
        for_kubelets += [f"--egress-selector-config-file={folder}/tunnel.json", "--kubelet-preferred-address-types=InternalIP"]
    etcd, peer = f"http://127.0.0.1:{found['etcd']}", f"http://127.0.0.1:{found['etcd_peer']}"
    return {
        "etcd": [
            "--data-dir", f"{folder}/etcd", "--unsafe-no-fsync", "--quota-backend-bytes", str(4 << 30), "--log-level", "warn",
            "--listen-client-urls", etcd, "--advertise-client-urls", etcd, "--listen-peer-urls", peer,
            "--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}"],
        "kube-apiserver": [
            f"--etcd-servers={etcd}", "--bind-address=127.0.0.1", f"--secure-port={found['port']}", f"--cert-dir={folder}",
            f"--tls-cert-file={folder}/server.pem", f"--tls-private-key-file={folder}/server.key",
            "--service-account-issuer=https://kubernetes.default.svc", f"--service-account-key-file={folder}/accounts.key",
            f"--service-account-signing-key-file={folder}/accounts.key", f"--service-cluster-ip-range={services}",
            f"--token-auth-file={folder}/tokens.csv", f"--authorization-mode={'Node,' if real else ''}RBAC", *told,
            *(for_kubelets if real else ["--disable-admission-plugins=ServiceAccount"]), "--allow-privileged=true", "--shutdown-delay-duration=0s"],
        "kube-controller-manager": [
            f"--kubeconfig={found['kubeconfig']}", "--bind-address=127.0.0.1", f"--secure-port={found['manager']}",
            f"--cert-dir={folder}", "--leader-elect=false", "--allocate-node-cidrs", f"--cluster-cidr={pods}",
            f"--service-cluster-ip-range={services}", f"--service-account-private-key-file={folder}/accounts.key",
            f"--root-ca-file={folder}/authority.pem",
            "--controllers=" + ("*" if real else "endpointslice-controller,node-ipam-controller,namespace-controller,serviceaccount-controller")],
        **(scheduler if real else {}),
    }


class Keeper:
    def __init__(self, folder):
        self.folder = folder
        self.found = own.read_json(f"{folder}/cluster.json")
        self.commands = commands(folder, self.found)
        self.running = {}

    def start(self, name):
        with open(f"{self.folder}/{name}.log", "ab") as log:
            self.running[name] = subprocess.Popen(
                [self.found["programs"][name], *self.commands[name]], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                preexec_fn=end_with_parent)

    def stop(self, name, crash=False):
        """The API server waits for its watchers when asked to end; a test that takes it away means at once."""
        process = self.running.pop(name, None)
        if process:
            process.kill() if crash else process.terminate()
            try:
                process.wait(3)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def obey(self, line):
        token, _, word = line.strip().partition(" ")
        if not secrets.compare_digest(token, self.found["token"]):
            return "wrong token"
        if word == "stop":
            self.stop("kube-apiserver")
        elif word == "crash":
            self.stop("kube-apiserver", crash=True)
        elif word == "start" and "kube-apiserver" not in self.running:
            self.start("kube-apiserver")
        elif word != "start":
            return "I know stop, crash, start and write"
        return "done"


def end_with_parent():
    """Lets a child end with us. The kernel means the thread that started it, so the main thread starts everything."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def keep(folder):
    sys.stdin.read()  # until the facts are written
    keeper = Keeper(folder)
    orders = queue.Queue()
    signal.signal(signal.SIGTERM, lambda *_: orders.put((None, None)))

    class Control(socketserver.StreamRequestHandler):
        def handle(self):
            line, answer = self.rfile.readline().decode(), queue.Queue()
            if secrets.compare_digest(line.strip(), f"{keeper.found['token']} write"):
                answer.put(writer.obey(keeper.found, self.rfile.readline()))  # nobody else waits for it meanwhile
            else:
                orders.put((line, answer))
            self.wfile.write((answer.get() + "\n").encode())

    for name in keeper.commands:
        keeper.start(name)
    server = socketserver.ThreadingTCPServer(("127.0.0.1", keeper.found["control"]), Control)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    over = time.monotonic() + keeper.found["seconds"]
    while time.monotonic() < over:
        try:
            line, answer = orders.get(timeout=over - time.monotonic())
        except (queue.Empty, ValueError):
            break
        if line is None:
            break
        answer.put(keeper.obey(line))
    for name in reversed(keeper.commands):
        keeper.stop(name)


if __name__ == "__main__":
    keep(sys.argv[1])
