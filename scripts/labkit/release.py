"""The files of a release: archives of the program, images, SBOMs and checksums."""
import hashlib
import os
import re
import subprocess

from . import cross, image, image_licences, image_oci, image_sbom, own
from .image_tree import Tree

# What every archive has beside its own; README.md names the pages of `docs`.
PAGES = ["README.md", "CHANGELOG.md", "SECURITY.md", "docs"]
CHART, MANIFESTS = "charts/sluice", ["daemonset", "kustomize", "charts/values"]
# Where commands and manifests name the image, its archive or, for k0s, its version alone. A row that says which version was measured has another form, and stays.
NAMING = ["README.md", "SECURITY.md", "docs", "daemonset", "kustomize", "charts", "image/Dockerfile"]
NAMED = re.compile(r"(?:sluice[:-]|`version: |image\.version=)(\d+\.\d+\.\d+(?:-(?:alpha|beta|rc)[.\d]*\d)?)")
SHELLS = {"bash": "completion/sluice.bash", "zsh": "completion/_sluice", "fish": "completion/sluice.fish"}
SUMS = "SHA256SUMS"
# Where Debian has emulators of one program, and below which the libraries for other processors.
EMULATORS, LIBRARIES = "/usr/bin", "/usr"


def faults(dry):
    """Why this tree is no release, a sentence each."""
    version, found = image.version(), []
    for path, form in (
        ("Cargo.lock", r'name = "sluice"\nversion = "([^"]+)"'),
        ("charts/sluice/Chart.yaml", r"^version: (\S+)"),
        ("charts/sluice/Chart.yaml", r"^appVersion: (\S+)"),
        ("CHANGELOG.md", r"^## (\S+), "),
    ):
        named = re.search(form, text(path), re.MULTILINE)
        if not named or named[1] != version:
            found.append(f"{path} names {named[1] if named else 'no version'}, and Cargo.toml {version}")
    found += [f"{place} names {named}, and Cargo.toml {version}" for place, named in images_named() if named != version]
    day = re.search(r"^## \S+, (.+)$", text("CHANGELOG.md"), re.MULTILINE)
    if not dry and not re.fullmatch(r"\d{4}-\d{2}-\d{2}", day[1] if day else ""):
        found.append(f"CHANGELOG.md gives {version} no day, as in `## {version}, 2026-01-31`")
    if not dry and not image.revision():
        found.append("the tree has changes that are not committed, or is no checkout, so no commit stands for it")
    return found


def images_named():
    """Where a page or a manifest names a version of the image, and which: (path and line, version). People copy these lines."""
    return [(f"{path}:{number}", named) for path in kept(*NAMING) for number, line in enumerate(text(path).splitlines(), 1) for named in NAMED.findall(line)]


def kept(*paths):
    """The files at and below these paths. Of a checkout those alone that it keeps: what else lies about there belongs in no release."""
    found = image.git("ls-files", "--", *paths).splitlines() or [file for path in paths for file in below(path)]
    return sorted(file for file in found if os.path.isfile(os.path.join(own.TREE, file)))


def below(path):
    """The files below a folder, or the one file that it is."""
    top = os.path.join(own.TREE, path)
    inside = [os.path.join(folder, name) for folder, _, names in os.walk(top) for name in names]
    return [os.path.relpath(file, own.TREE) for file in inside or [top]]


def make(binaries, here, folder, images, built=()):
    """Writes all files into an empty folder; returns their names with their checksums. `binaries`: paths by architecture, with one for `here`, this machine's; of `built`
    they were made of this tree just now."""
    version, time = image.version(), image.source_date()
    for arch, binary in sorted(binaries.items()):
        check(binary, arch, here, version)
    image.check_empty(folder, "release")
    os.makedirs(folder, exist_ok=True)
    archives = {}  # of each image, one for each architecture
    for arch, binary in sorted(binaries.items()):
        name = f"{image.NAME}-{version}-linux-{arch}"
        pack(folder, f"{name}.tar.gz", program(binary, binaries[here], name, arch), time)
        bill = image_sbom.document(name, image_oci.stamp(time), [], [], arch, "APPLICATION")
        write(folder, f"{name}.spdx.json", bill.encode())
        for variant in ("full", "minimal") if images else ():
            recipe = image.Recipe(arch, variant, binary, time, arch in built)
            path, of_image, _ = image.make(recipe, folder)
            own.say(f"{os.path.basename(path)}: {of_image}")
            # It has its line in the one file of checksums.
            os.remove(f"{path}.sha256")
            archives.setdefault(recipe.tag, []).append(path)
    for tag, paths in archives.items():
        file = f"{image.NAME}-{tag}-multiarch.tar"
        data, of_index = image_oci.joined(paths, image.NAME, tag, time)
        write(folder, file, data)
        own.say(f"{file}: {of_index}")
    # What Helm takes is called as Helm would call it.
    pack(folder, f"{image.NAME}-{version}.tgz", chart(), time)
    name = f"{image.NAME}-{version}-manifests"
    pack(folder, f"{name}.tar.gz", manifests(name), time)
    sums = [f"{digest(os.path.join(folder, file))}  {file}" for file in sorted(os.listdir(folder))]
    write(folder, SUMS, ("\n".join(sums) + "\n").encode())
    return sums


def check(binary, arch, here, version):
    """A program is for its processor and of this version."""
    image.check_binary(binary, arch)
    said = asked_for_version(binary, arch, here)
    if said is None:
        own.say(f"{binary}: the version is looked for in its bytes alone; with qemu-user and libgcc-s1-{arch}-cross, which are not both here, it would be asked")
        with open(binary, "rb") as handle:
            if not has(handle.read(), version):
                raise own.LabError(f"{binary} is not of version {version}: that is nowhere in it")
    elif not re.search(rf"version v?{re.escape(version)}(?![-.\d])", said):
        raise own.LabError(f"{binary} is not of version {version}: it says `{said.strip()}`")


def has(data, version):
    """Whether a program has what `--version` says of this version in its bytes. The numbers alone say nothing: crates have some, and the CNI plugin has those of CNI."""
    return f"version {version}, built on ".encode() in data


def asked_for_version(binary, arch, here):
    """What a program says of its version; None of one for another processor, where that has no emulator or no libraries here."""
    words = [binary]
    if arch != here:
        processor = cross.TARGETS[arch].split("-")[0]
        emulator, root = os.path.join(EMULATORS, f"qemu-{processor}"), os.path.join(LIBRARIES, f"{processor}-linux-gnu")
        if not os.path.exists(emulator) or not os.path.exists(os.path.join(root, "lib", "libgcc_s.so.1")):
            return None
        words = [emulator, "-L", root, binary]
    # As Go's programs do, it says this to standard error. One that does not run at all says why, or its shell or emulator does.
    done = subprocess.run(["sh", "-c", '"$@" --version 2>&1', "sh", *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    said = done.stdout.decode(errors="replace")
    return said if done.returncode == 0 else f"{said.strip()} (exit status {done.returncode})"


def program(binary, asked, name, arch):
    """The files of the archive, in a folder of its name. `asked`: a binary that runs here, which writes the pages."""
    tree = Tree()
    tree.copy(f"{name}/sluice", binary)
    tree.link(f"{name}/sluice-cni", "sluice")
    add(tree, name, kept(*PAGES))
    tree.file(f"{name}/LICENCES", image_licences.of_crates(arch))
    for shell, path in SHELLS.items():
        tree.file(f"{name}/{path}", own.run(asked, "completion", shell))
    for words in commands(asked):
        tree.file(f"{name}/man/{'-'.join(['sluice', *words])}.1", own.run(asked, "man", *words))
    return tree


def chart():
    """The chart, as `helm package` packs it, which would give its files the times of this checkout."""
    tree = Tree()
    # The chart's .helmignore leaves out what begins with a dot.
    add(tree, image.NAME, [path for path in kept(CHART) if not os.path.basename(path).startswith(".")], CHART)
    return tree


def manifests(name):
    """What is applied to a cluster without Helm, in a folder of its name, with the pages that say how."""
    tree = Tree()
    add(tree, name, kept(*MANIFESTS, *PAGES))
    return tree


def add(tree, name, paths, top=""):
    """Puts files of this tree, named from `top` on, into a folder of an archive."""
    for path in paths:
        tree.copy(f"{name}/{os.path.relpath(path, top or '.')}", os.path.join(own.TREE, path), 0o644)


def commands(binary):
    """The commands that have a page, and first none: the agent's page names them."""
    # Help goes to standard error.
    page = own.run("sh", "-c", '"$1" --help 2>&1', "sh", binary)
    lines = page.split("\n\n", 1)[0].splitlines()
    words = [re.match(r"  sluice ((?:[a-z]+ )*[a-z]+)(?: |$)", line) for line in lines]
    found = [it[1].split() for it in words if it]
    if ["status"] not in found or ["policy", "explain"] not in found:
        raise own.LabError("the commands of the program are not found in its help")
    return [[], *found]


def text(path):
    with open(os.path.join(own.TREE, path)) as handle:
        return handle.read()


def pack(folder, name, tree, time):
    write(folder, name, image_oci.compressed(tree.packed(time)))


def write(folder, name, data):
    with open(os.path.join(folder, name), "wb") as handle:
        handle.write(data)


def digest(path):
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
