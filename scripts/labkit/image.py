"""The container image: its files, layer by layer, and the archive made of them. docs/image.md is its description."""
import contextlib
import hashlib
import io
import os
import re
import shutil
import subprocess
import tarfile

from . import build, image_go, image_licences, image_packages, image_sbom, own
from .image_oci import Image, Layer, stamp
from .image_tree import Tree

NAME = "sluice"
PROGRAM = "usr/local/bin/kube-router"
MACHINES = {"amd64": 62, "arm64": 183}  # e_machine of an ELF file
# Of a package that is not taken whole: its path, and the path here.
ONLY = {"gobgpd": {"usr/bin/gobgp": "usr/local/bin/gobgp3"}}
FOLDERS = {"dev": 0o755, "etc/cni/net.d": 0o755, "opt/cni/bin": 0o755, "proc": 0o755, "root": 0o700, "run": 0o755, "run/lock": 0o755,
           "run/sluice": 0o755, "sys": 0o755, "tmp": 0o1777, "usr/lib/modules": 0o755, "var/lib/sluice": 0o755, "var/tmp": 0o1777}
LINKS = {"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64", "var/run": "/run", "var/lock": "/run/lock"}
ACCOUNTS = {
    "etc/passwd": "root:x:0:0:root:/root:{shell}\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\nnetworks: files\nprotocols: files\nservices: files\n",
}
# Programs that are called, and the Debian packages that have them; toolchains come from elsewhere.
TOOLS = {"dpkg": "dpkg", "apt-get": "apt", "git": "git", "cc": "gcc and libc6-dev"}
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Recipe:
    """What one image is made of. `time`: SOURCE_DATE_EPOCH, the time of the newest layer. `is_built`: the binary was made of this tree just now; of another one nobody
    knows of which commit it is."""

    def __init__(self, arch, variant, binary, time, is_built=False):
        check_binary(binary, arch)
        self.revision = revision() if is_built else ""
        self.arch, self.variant, self.binary, self.time = arch, variant, binary, time
        self.version = version()
        self.tag = self.version + ("-minimal" if variant == "minimal" else "")
        self.day, self.packages = image_packages.of_image(arch, variant)
        self.go = {} if variant == "minimal" else image_go.programs(arch)

    def trees(self):
        """The layers, from the one that changes least: [(tree, time, what it is)]."""
        system, go, own_files = self.system(), Tree(), self.program()
        for path, source in sorted(self.go.items()):
            go.copy(path, source)
        if self.go:
            go.file("usr/share/doc/go-programs/copyright", image_licences.of_modules(self.go.values()))
        layers = [(system, self.day, "Debian packages of image/packages.lock")]
        if self.go:
            layers.append((go, self.day, "Go programs of scripts/cluster"))
        return [*layers, (own_files, self.time, "sluice")]

    def system(self):
        tree = Tree()
        for path, target in LINKS.items():
            tree.link(path, target)
        certificates = []
        for package, deb in sorted(image_packages.fetch(self.packages).items(), key=lambda it: it[0].name):
            tree.package(deb, ONLY.get(package.name))
            # Where scanners look when there is no dpkg.
            tree.file(f"var/lib/dpkg/status.d/{package.name}", subprocess.run(["dpkg-deb", "-f", deb], stdout=subprocess.PIPE, check=True).stdout)
            if package.name == "ca-certificates":
                certificates = certificates_of(deb)
        tree.file("etc/ssl/certs/ca-certificates.crt", b"".join(certificates))
        if self.variant == "full":
            links(tree)
        shell = "/bin/bash" if self.variant == "full" else "/usr/sbin/nologin"
        for path, text in ACCOUNTS.items():
            tree.file(path, text.format(shell=shell))
        for path, mode in FOLDERS.items():
            tree.folder(path, mode)
        tree.drop_empty(FOLDERS)
        return tree

    def program(self):
        tree = Tree()
        tree.copy(PROGRAM, self.binary)
        for name in ("sluice", "sluice-cni"):
            tree.link(f"usr/local/bin/{name}", "kube-router")
        if self.variant == "full":
            # The folder is in this layer too, whose mode is the last one.
            tree.folder("root", FOLDERS["root"])
            tree.copy("usr/local/bin/cni-install", os.path.join(image_packages.FOLDER, "cni-install"))
            tree.copy("root/.bashrc", os.path.join(image_packages.FOLDER, "bashrc"), 0o644)
        tree.file("usr/share/doc/sluice/copyright", image_licences.of_crates(self.arch))
        tree.file("usr/share/sluice/sbom.spdx.json", self.bill())
        return tree

    def bill(self):
        modules = image_go.modules(self.go.values()) if self.go else []
        return image_sbom.document(f"{NAME}:{self.tag}", stamp(self.time), self.packages, modules, self.arch)

    def config(self):
        labels = {
            "title": NAME, "version": self.version, "created": stamp(self.time), "licenses": "Apache-2.0", "revision": self.revision,
            "description": "Node network agent for Kubernetes: service proxy, network policy, BGP router",
            "documentation": "docs/image.md",
        }
        return {"Entrypoint": [f"/{PROGRAM}"], "Env": [f"PATH={PATH}"], "WorkingDir": "/root",
                "Labels": {f"org.opencontainers.image.{key}": value for key, value in labels.items() if value}}

    def image(self):
        layers = [Layer(tree.packed(time), what) for tree, time, what in self.trees()]
        return Image(layers, self.config(), self.arch, self.time)


def links(tree):
    """Names that Debian's maintainer scripts would make: the alternatives."""
    for family in ("iptables", "ip6tables"):
        for end in ("", "-save", "-restore"):
            tree.link(f"usr/sbin/{family}{end}", f"{family}-nft{end}")
    tree.link("usr/bin/awk", "mawk")
    tree.link("usr/bin/which", "which.debianutils")
    tree.link("usr/bin/sh", "dash")


def certificates_of(deb):
    """The certificates of the package, in one order."""
    whole = subprocess.run(["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        found = [member for member in archive if member.isfile() and member.name.startswith("./usr/share/ca-certificates/mozilla/")]
        return [archive.extractfile(member).read() for member in sorted(found, key=lambda member: member.name)]


def check_tools(*names):
    """Ends with a sentence where a program is missing that is called later, minutes later maybe. Nothing is installed: that takes root, and nothing else here does."""
    left_out = set()
    if not os.path.exists(os.path.join(own.TREE, ".git")):
        left_out.add("git")
    if "CC" in os.environ:  # who has another compiler tells cargo of it as well
        left_out.add("cc")
    lacking = [f"{name} ({TOOLS[name]})" for name in names if name in TOOLS and name not in left_out and not shutil.which(name)]
    if lacking:
        raise own.LabError(f"programs are not in PATH, here with the Debian packages that have them: {', '.join(lacking)}")
    if "cargo" in names:
        least = ".".join(map(str, build.RUST))
        build.toolchain("cargo", build.RUST, f"install Rust {least} or newer (rustup.rs)")
    # An older one fetches the one that go.mod names.
    if "go" in names and not shutil.which("go"):
        build.go()


def version():
    with open(os.path.join(own.TREE, "Cargo.toml")) as handle:
        return re.search(r'^version = "(.+)"', handle.read(), re.MULTILINE)[1]


def git(*words):
    """What git says of this tree; nothing where it is no checkout. A checkout that git does not read is an error, not another time."""
    if not os.path.exists(os.path.join(own.TREE, ".git")):
        return ""
    return own.run("git", "-c", f"safe.directory={own.TREE}", *words, cwd=own.TREE).strip()


def revision():
    """The commit, where this is a checkout without changes of its own to files that are kept."""
    return "" if git("status", "--porcelain", "--untracked-files=no") else git("rev-parse", "HEAD")


def source_date():
    """SOURCE_DATE_EPOCH, else the time of the commit, else 0."""
    return int(os.environ.get("SOURCE_DATE_EPOCH") or git("log", "-1", "--format=%ct") or 0)


def architecture(path):
    """Debian's name of the processor that a program is for; None where it is none that an image is made for."""
    with open(path, "rb") as handle:
        head = handle.read(20)
    machine = int.from_bytes(head[18:20], "little") if head[:4] == b"\x7fELF" else None
    return next((name for name, number in MACHINES.items() if number == machine), None)


def check_binary(path, arch):
    """A binary of another processor in an image is found out on a node otherwise."""
    if architecture(path) != arch:
        raise own.LabError(f"{path} is no program for {arch}")


def check_empty(folder, made):
    """Ends with a sentence where a folder has something in it, or is none: who asks this before the program is built saves minutes."""
    if os.path.lexists(folder) and (not os.path.isdir(folder) or os.listdir(folder)):
        raise own.LabError(f"{folder} is not an empty folder: what is in it would get into the {made}")


def make(recipe, folder):
    """Writes the archive, its SBOM and its checksum; the path of the archive and the digest of the image."""
    os.makedirs(folder, exist_ok=True)
    image = recipe.image()
    data = image.archive(NAME, recipe.tag)
    path = os.path.join(folder, f"{NAME}-{recipe.tag}-{recipe.arch}.tar")
    bill, checksum = f"{path.removesuffix('.tar')}.spdx.json", f"{path}.sha256"
    with open(f"{path}.new", "wb") as handle:
        handle.write(data)
    # Those of an older archive go first: a run that is killed from here on leaves an archive that lacks them, and none beside which they are wrong.
    for older in (bill, checksum):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(older)
    os.rename(f"{path}.new", path)
    own.write(bill, recipe.bill())
    own.write(checksum, f"{hashlib.sha256(data).hexdigest()}  {os.path.basename(path)}\n")
    for layer in image.layers:
        own.say(f"  layer {layer.digest[:19]}: {len(layer.data) / 2**20:.1f} MiB, {layer.unpacked_size / 2**20:.1f} MiB unpacked: {layer.comment}")
    return path, image.manifest.digest, len(data)


def unpack(recipe, folder):
    """Writes the files of the image into an empty folder, for who builds an image by other means."""
    check_empty(folder, "image")
    os.makedirs(folder, exist_ok=True)
    for tree, time, _ in recipe.trees():
        subprocess.run(["tar", "-xp", "--numeric-owner", "--keep-directory-symlink", "-C", folder], input=tree.packed(time), check=True)
