"""The files of a release: archives of the program, images, SBOMs and checksums."""
import hashlib
import os
import re

from . import image, image_licences, image_oci, image_sbom, own
from .image_tree import Tree

PAGES = ["README.md", "CHANGELOG.md", "SECURITY.md"]
SHELLS = {"bash": "completion/sluice.bash", "zsh": "completion/_sluice", "fish": "completion/sluice.fish"}
SUMS = "SHA256SUMS"


def faults(dry):
    """Why this tree is no release, a sentence each."""
    version, found = image.version(), []
    for path, form in (
        ("Cargo.lock", r'name = "sluice"\nversion = "([^"]+)"'),
        ("charts/sluice/Chart.yaml", r"^version: (\S+)"),
        ("charts/sluice/Chart.yaml", r"^appVersion: (\S+)"),
        ("daemonset/generic-kuberouter.yaml", r"image: \"?sluice:([^\s\"]+)"),
        ("CHANGELOG.md", r"^## (\S+), "),
    ):
        named = re.search(form, text(path), re.MULTILINE)
        if not named or named[1] != version:
            found.append(f"{path} names {named[1] if named else 'no version'}, and Cargo.toml {version}")
    day = re.search(r"^## \S+, (.+)$", text("CHANGELOG.md"), re.MULTILINE)
    if not dry and not re.fullmatch(r"\d{4}-\d{2}-\d{2}", day[1] if day else ""):
        found.append(f"CHANGELOG.md gives {version} no day, as in `## {version}, 2026-01-31`")
    if not dry and not image.revision():
        found.append("the tree has changes that are not committed, or is no checkout, so no commit stands for it")
    return found


def make(binaries, here, folder, images):
    """Writes all files into an empty folder; returns their names with their checksums. `binaries`: paths by architecture, with one for `here`, this machine's."""
    os.makedirs(folder, exist_ok=True)
    if os.listdir(folder):
        raise own.LabError(f"{folder} is not empty: what is in it would get into the release")
    version, time = image.version(), image.source_date()
    said = own.run(binaries[here], "man").splitlines()
    if not any(version in line for line in said[:8]):
        raise own.LabError(f"{binaries[here]} does not say that its version is {version}")
    for arch, binary in sorted(binaries.items()):
        image.check_binary(binary, arch)
        name = f"{image.NAME}-{version}-linux-{arch}"
        write(folder, f"{name}.tar.gz", image_oci.compressed(program(binary, binaries[here], name, arch).packed(time)))
        bill = image_sbom.document(name, image_oci.stamp(time), [], [], arch, "APPLICATION")
        write(folder, f"{name}.spdx.json", bill.encode())
        for variant in ("full", "minimal") if images else ():
            path, of_image, _ = image.make(image.Recipe(arch, variant, binary, time), folder)
            own.say(f"{os.path.basename(path)}: {of_image}")
            # It has its line in the one file of checksums.
            os.remove(f"{path}.sha256")
    sums = [f"{digest(os.path.join(folder, file))}  {file}" for file in sorted(os.listdir(folder))]
    write(folder, SUMS, ("\n".join(sums) + "\n").encode())
    return sums


def program(binary, asked, name, arch):
    """The files of the archive, in a folder of its name. `asked`: a binary that runs here, which writes the pages."""
    tree = Tree()
    tree.copy(f"{name}/sluice", binary)
    tree.link(f"{name}/sluice-cni", "sluice")
    for page in PAGES:
        tree.copy(f"{name}/{page}", os.path.join(own.TREE, page), 0o644)
    tree.file(f"{name}/LICENCES", image_licences.of_crates(arch))
    for shell, path in SHELLS.items():
        tree.file(f"{name}/{path}", own.run(asked, "completion", shell))
    for words in commands(asked):
        tree.file(f"{name}/man/{'-'.join(['sluice', *words])}.1", own.run(asked, "man", *words))
    return tree


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


def write(folder, name, data):
    with open(os.path.join(folder, name), "wb") as handle:
        handle.write(data)


def digest(path):
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
