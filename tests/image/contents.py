"""What is in the image: every program that somebody's manifest, probe or page names, and that it starts."""
import json
import os
import re
import stat
import subprocess

from labkit import build, image, image_licences, image_packages, image_sbom, own
from root import CHROOT, said, that

# The path, arguments with which it says what it is, and what it must say. The paths are those that users of kube-router's image name.
PROGRAMS = [
    ("/usr/local/bin/kube-router", "--version", r"kube-router version "),
    ("/usr/local/bin/sluice", "--version", r"sluice version "),
    ("/usr/local/bin/gobgp", "--version", r"gobgp version 4\."),
    ("/usr/local/bin/gobgp3", "--version", r"gobgp version 3\."),
    ("/usr/sbin/ipset", "--version", r"ipset v7"),
    ("/sbin/ip", "-V", r"iproute2-"),
    ("/usr/sbin/conntrack", "-V", r"conntrack v1"),
    ("/usr/sbin/nft", "-v", r"nftables v1"),
    ("/sbin/modprobe", "-V", r"kmod version"),
    ("/sbin/modinfo", "-V", r"kmod version"),
    ("/sbin/lsmod", "", r"Module|/proc/modules"),  # a kernel without modules has no such file
    ("/usr/sbin/ipvsadm", "--help", r"ipvsadm v1|ip_vs"),  # it asks for the module first
    ("/usr/bin/curl", "-V", r"https"),
    ("/usr/bin/wget", "-V", r"\+https"),
    ("/bin/bash", "--version", r"GNU bash"),
    ("/bin/tar", "--version", r"GNU tar"),
    ("/bin/gzip", "--version", r"gzip"),
    ("/usr/bin/awk", "-W version", r"mawk"),
]
COREUTILS = ["test", "cp", "mv", "rm", "cat", "echo", "tail", "head", "grep", "wc", "mkdir", "install", "sed", "sleep", "chmod", "ls", "cut", "sort", "tr",
             "date", "env", "find", "xargs", "hostname", "pidof", "true", "id", "readlink", "basename"]


def every_program_that_users_name_is_there_and_starts(of):
    for path, words, expected in PROGRAMS:
        done = of.root.sh(f"{path} {words}")
        that(re.search(expected, said(done)), path, words, "says:", said(done)[:200])
    for name in COREUTILS:
        done = of.root.sh(f"command -v {name}")
        that(done.stdout.startswith(("/", name)), name, "is not there:", said(done))


def a_shell_beside_the_agent_says_what_can_be_asked(of):
    done = of.root.run("/bin/bash", "-i", "-c", "complete -p sluice", environment={"HOME": "/root"})
    for words in ("sluice bgp peers", "ipvsadm -Ln", "gobgp neighbor", "complete ", "nobody answers on"):  # of `sluice status`, where no agent runs
        that(words in said(done), f"{words!r} is not in:", said(done))
    quiet = of.root.run("/bin/bash", "-c", "echo done", environment={"HOME": "/root"})
    that(said(quiet).strip() == "done", "a script is told, too:", said(quiet))


def iptables_is_there_in_both_flavours_under_all_names_and_not_older_than_a_host_may_have(of):
    for family in ("iptables", "ip6tables"):
        for flavour, shown in (("", "nf_tables"), ("-nft", "nf_tables"), ("-legacy", "legacy")):
            for end in ("", "-save", "-restore"):
                for folder in ("/sbin", "/usr/sbin"):
                    done = of.root.sh(f"{folder}/{family}{flavour}{end} -V")
                    found = re.search(r"v(\d+)\.(\d+)\.(\d+) \((\w+)\)", said(done))
                    that(found and found[4] == shown, f"{folder}/{family}{flavour}{end}:", said(done))
                    that(tuple(map(int, found.groups()[:3])) >= (1, 8, 13), said(done))


def cni_plugins_run_on_hosts_with_any_c_library(of):
    for name in ("bridge", "portmap", "host-local", "loopback"):
        with open(f"{of.root.path}/usr/libexec/cni/{name}", "rb") as handle:
            that(b"/lib64/ld-linux" not in handle.read(4096), name, "names a loader")
        done = of.root.run(f"/usr/libexec/cni/{name}", environment={"CNI_COMMAND": "VERSION"}, text_in='{"cniVersion":"1.0.0"}')
        that("0.3.0" in json.loads(done.stdout)["supportedVersions"], name, said(done))


def the_agents_own_plugin_needs_no_newer_c_library_than_is_written_down(of):
    """It is copied to hosts; docs/status.md names the version."""
    with open(of.binary, "rb") as handle:
        wanted = max(int(number) for number in re.findall(rb"GLIBC_2\.(\d+)", handle.read()))
    that(wanted <= 34, f"glibc 2.{wanted}")


def the_agents_own_plugin_answers_under_its_name(of):
    for root in (of.root, of.minimal):
        done = root.run("/usr/local/bin/sluice-cni", environment={"CNI_COMMAND": "VERSION"}, text_in='{"cniVersion":"1.0.0"}') if root is of.root else \
            subprocess.run([CHROOT, root.path, "/usr/local/bin/sluice-cni"], input='{"cniVersion":"1.0.0"}', capture_output=True, text=True,
                           env={"CNI_COMMAND": "VERSION"})
        that("supportedVersions" in done.stdout, said(done))


def every_library_that_a_program_wants_is_there(of):
    for root in (of.root, of.minimal):
        lacking, count = [], 0
        for path, status in root.files():
            full = os.path.join(root.path, path)
            if not stat.S_ISREG(status.st_mode) or not is_dynamic(full):
                continue
            count += 1
            done = subprocess.run([CHROOT, root.path, "/lib64/ld-linux-x86-64.so.2", "--list", f"/{path}"], capture_output=True, text=True)
            if done.returncode or "not found" in done.stdout:
                lacking.append(f"{path}: {said(done)}")
        that(not lacking, *lacking)
        that(count > 10, "only", count, "were looked at")


def is_dynamic(path):
    """Whether it is an ELF file with a list of libraries."""
    with open(path, "rb") as handle:
        head = handle.read(64)
        if head[:4] != b"\x7fELF" or path.endswith("/ld-linux-x86-64.so.2"):
            return False
        at, size, count = int.from_bytes(head[32:40], "little"), int.from_bytes(head[54:56], "little"), int.from_bytes(head[56:58], "little")
        handle.seek(at)
        table = handle.read(size * count)
    return any(int.from_bytes(table[i:i + 4], "little") == 2 for i in range(0, len(table), size or 1))  # PT_DYNAMIC


def nothing_of_the_machine_that_made_it_is_in_it(of):
    for root in (of.root, of.minimal):
        for path, status in root.files():
            that(status.st_uid == 0 and status.st_gid == 0, path, "belongs to", status.st_uid, status.st_gid)
            if stat.S_ISREG(status.st_mode):
                that(not status.st_mode & (stat.S_ISUID | stat.S_ISGID | 0o022), path, oct(status.st_mode))
            that(not re.search(r"^(var/(log|cache)/.|etc/machine-id|etc/(hostname|resolv\.conf|hosts)$|var/lib/dpkg/(lock|info)|.*__pycache__)", path), path)
        with open(f"{root.path}/{image.PROGRAM}", "rb") as handle:
            program = handle.read()
        # Crates and toolchains lie in hidden folders of a home.
        home = os.environ.get("CARGO_HOME") or os.path.expanduser("~/.cargo")
        for place in (f"{home}/", os.path.expanduser("~/."), f"{own.TREE}/", f"{os.path.abspath(build.target())}/"):
            at = program.find(place.encode())
            that(at < 0, place, "is in the agent:", program[max(at - 40, 0):at + 120], "- a plain `cargo build` leaves that in it. `scripts/image` without --binary builds an agent",
                 "without such paths, and so does `scripts/test image`, both by scripts/labkit/build.py")


def folders_have_the_modes_that_are_written_down(of):
    """The last layer with a folder decides."""
    for root in (of.root, of.minimal):
        for path, mode in image.FOLDERS.items():
            found = stat.S_IMODE(os.lstat(f"{root.path}/{path}").st_mode)
            that(found == mode, path, oct(found), "and not", oct(mode))


def licences_of_all_packages_are_in_it(of):
    for root, variant in ((of.root, "full"), (of.minimal, "minimal")):
        for package in image_packages.of_image("amd64", variant)[1]:
            folder = f"{root.path}/usr/share/doc/{package.name}"
            that(os.path.exists(f"{folder}/copyright"), package.name)
    # In the packages of some crates there is no licence (kube), and in others there are those of several authors (ring's third_party, granit-parser's .licenses).
    crates = [f"{crate.name} {crate.version} (" for crate in image_sbom.crate_folders("amd64")]
    crates += ["Rust's standard library ", "Copyright 2015-2020 the fiat-crypto authors", "Copyright (c) 2015 Chen Yuheng"]
    for path, names in (("sluice", crates), ("go-programs", ("Go's standard", "github.com/osrg/gobgp/v4 ", "github.com/containernetworking/plugins "))):
        with open(f"{of.root.path}/usr/share/doc/{path}/copyright") as handle:
            text = handle.read()
        lacking = [name for name in names if f"\n{name}" not in f"\n{text}"]
        that(not lacking and "Apache License" in text, path, "lacks a licence:", *lacking)
        that(image_licences.NO_TEXT not in text, path, "has a part without the words of its licence")


def the_minimal_image_has_the_agent_kmod_and_their_libraries_alone(of):
    programs = sorted(path for path, status in of.minimal.files() if re.match(r"usr/(local/)?s?bin/", path))
    kmod = ["depmod", "insmod", "lsmod", "modinfo", "modprobe", "rmmod"]
    known = {f"usr/sbin/{name}" for name in kmod} | {"usr/bin/kmod", "usr/bin/lsmod"} | {f"usr/local/bin/{name}" for name in ("kube-router", "sluice", "sluice-cni")}
    known |= {path for path in programs if os.path.basename(path) in LIBC_PROGRAMS}
    that(set(programs) <= known, *sorted(set(programs) - known))
    that({"usr/local/bin/kube-router", "usr/bin/kmod", "usr/sbin/modprobe"} <= set(programs), *programs)
    done = subprocess.run([CHROOT, of.minimal.path, "/usr/local/bin/kube-router", "--version"], capture_output=True, text=True)
    that(said(done).startswith("/usr/local/bin/kube-router version"), said(done))


LIBC_PROGRAMS = ("ld.so",)


def the_images_are_as_small_as_promised(of):
    for root, most in ((of.root, 120), (of.minimal, 45)):
        size = os.path.getsize(root.archive) / 2**20
        that(size < most, f"{root.archive}: {size:.1f} MiB")


def the_bill_of_materials_names_every_part(of):
    for root, variant in ((of.root, "full"), (of.minimal, "minimal")):
        with open(f"{root.path}/usr/share/sluice/sbom.spdx.json") as handle:
            text = handle.read()
        bill = json.loads(text)
        with open(root.archive.removesuffix(".tar") + ".spdx.json") as handle:
            that(handle.read() == text, "the file beside the archive differs")
        names = {ref["referenceLocator"] for package in bill["packages"] for ref in package.get("externalRefs", [])}
        kept = {name for name in os.listdir(f"{root.path}/var/lib/dpkg/status.d")}
        that(kept == {p.name for p in image_packages.of_image("amd64", variant)[1]}, "dpkg's list and the lock differ")
        that(all(any(name.startswith(f"pkg:deb/debian/{one}@") for name in names) for one in kept), "a Debian package is missing")
        that(any(name.startswith("pkg:cargo/tokio@") for name in names), "no tokio")
        that(f"pkg:generic/rust-std@{image_sbom.rust()}" in names, "no standard library of Rust")
        that(not any(name.startswith("pkg:cargo/proptest@") for name in names), "what only tests use is in it")
        for module in ("github.com/osrg/gobgp/v4", "google.golang.org/grpc", "github.com/containernetworking/plugins"):
            that(any(name.startswith(f"pkg:golang/{module}@") for name in names) == (variant == "full"), module)
        ids = [package["SPDXID"] for package in bill["packages"]]
        that(len(ids) == len(set(ids)), "one identifier stands for two parts")
        that(bill["spdxVersion"] == "SPDX-2.3" and all(re.fullmatch(r"SPDXRef-[A-Za-z0-9.-]+", one) for one in ids), "not in SPDX's form")


# Those of docs/dependencies.md.
LICENCES = {"MIT", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "Zlib", "Unicode-3.0", "Unicode-DFS-2016"}


def is_taken(licence):
    """Whether one of the alternatives asks for nothing but licences that the project takes."""
    words = licence.replace("(", " ( ").replace(")", " ) ").split()
    python = {"OR": "or", "AND": "and", "(": "(", ")": ")"}
    return eval(" ".join(python.get(word, str(word in LICENCES)) for word in words if word != "WITH" and not word.endswith("-exception")))


def every_crate_has_a_licence_that_the_project_takes_and_a_checksum(_of):
    that(is_taken("(MIT OR GPL-3.0) AND ISC") and not is_taken("MIT AND GPL-3.0") and not is_taken("GPL-2.0"), "the reading of licences")
    for name, version, licence, sha256 in image_sbom.crates("amd64"):
        that(is_taken(licence.replace("/", " OR ")), name, version, "has the licence", licence or "none")
        that(sha256 or name == "sluice", name, version, "has no checksum in Cargo.lock")
    with open(os.path.join(own.TREE, "Cargo.lock")) as handle:
        sources = {line for line in handle if line.startswith("source = ")}
    that(len(sources) == 1 and "registry+" in sources.copy().pop(), "crates come from more than the registry:", *sources)


def what_a_runtime_is_told_starts_the_agent(of):
    for root in (of.root, of.minimal):
        config = root.config["config"]
        that(config["Entrypoint"] == ["/usr/local/bin/kube-router"] and "Cmd" not in config, config)
        that(root.config["architecture"] == "amd64" and root.config["os"] == "linux", root.config)
        labels = config["Labels"]
        that(labels["org.opencontainers.image.version"] == of.version and labels["org.opencontainers.image.licenses"] == "Apache-2.0", labels)
        that("org.opencontainers.image.revision" not in labels, "nobody knows of which commit a program is that was handed over:", labels)
        built = image.Recipe("amd64", "minimal", of.binary, 0, is_built=True).config()["Labels"]
        that(built.get("org.opencontainers.image.revision", "") == image.revision(), built)
        name = root.index["manifests"][0]["annotations"]["io.containerd.image.name"]
        that(name.startswith(f"docker.io/library/sluice:{of.version}"), name)


ALL = [every_program_that_users_name_is_there_and_starts, a_shell_beside_the_agent_says_what_can_be_asked, iptables_is_there_in_both_flavours_under_all_names_and_not_older_than_a_host_may_have,
       cni_plugins_run_on_hosts_with_any_c_library, the_agents_own_plugin_answers_under_its_name,
       the_agents_own_plugin_needs_no_newer_c_library_than_is_written_down,
       every_library_that_a_program_wants_is_there, nothing_of_the_machine_that_made_it_is_in_it, folders_have_the_modes_that_are_written_down, licences_of_all_packages_are_in_it,
       the_minimal_image_has_the_agent_kmod_and_their_libraries_alone, the_images_are_as_small_as_promised, the_bill_of_materials_names_every_part,
       every_crate_has_a_licence_that_the_project_takes_and_a_checksum, what_a_runtime_is_told_starts_the_agent]
