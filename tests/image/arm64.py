"""The image for arm64, whose agent is cross-compiled: what is in it is for that processor, and it runs in an emulator of it."""
import json
import os
import re
import stat
import subprocess

from labkit import cross, image, own, packages, release
from contents import PROGRAMS, is_dynamic
from root import Root, said, that

EMULATOR = packages.OTHER_PROCESSORS["qemu-user"]
LOADER = "/usr/lib/ld-linux-aarch64.so.1"
# An emulator of one program gives it no netlink of netfilter, for which nft asks first, and no other program.
TOLD_WITHOUT_A_KERNEL = ("/usr/local/bin/kube-router", "/usr/local/bin/sluice", "/usr/local/bin/gobgp", "/usr/local/bin/gobgp3", "/sbin/ip", "/usr/sbin/conntrack", "/sbin/modprobe", "/usr/bin/curl", "/usr/bin/wget", "/bin/bash", "/bin/tar", "/usr/bin/awk")


def made(of):
    """The image, made by the first test that asks for it."""
    if not hasattr(of, "arm64"):
        packages.install(packages.OTHER_PROCESSORS)
        of.arm64_binary = cross.release("arm64")
        recipe = image.Recipe("arm64", "full", of.arm64_binary, image.source_date())
        path, digest, of.arm64_size = image.make(recipe, f"{of.folder}/arm64")
        own.say(f"{path}: {digest}, {of.arm64_size / 2**20:.1f} MiB")
        of.arm64 = Root(f"{of.folder}/arm64.unpacked", path, recipe.tag)
    return of.arm64


def the_image_for_arm64_is_made_with_an_agent_that_is_built_for_it(of):
    root = made(of)
    that(root.config["architecture"] == "arm64", root.config["architecture"])
    that(root.index["manifests"][0]["platform"]["architecture"] == "arm64", root.index)
    that(of.arm64_size < 120 * 2**20, f"{of.arm64_size / 2**20:.1f} MiB")


def programs(root):
    """Every ELF file below the top, by its path."""
    for path, status in root.files():
        full = os.path.join(root.path, path)
        if stat.S_ISREG(status.st_mode):
            with open(full, "rb") as handle:
                if handle.read(4) == b"\x7fELF":
                    yield path, full


def every_program_in_it_is_for_arm64_and_needs_no_newer_c_library_than_amd64s(of):
    count = 0
    for path, full in programs(made(of)):
        count += 1
        that(image.architecture(full) == "arm64", path, "is for another processor")
    that(count > 100, "only", count, "were looked at")
    with open(of.arm64_binary, "rb") as handle:
        text = handle.read()
    wanted = max(number for number in range(17, 60) if b"GLIBC_2.%d\0" % number in text)
    that(wanted <= 34, f"glibc 2.{wanted}")
    for place in (own.cache(), own.TREE):
        that(place.encode() + b"/rust" not in text, "a path of this machine is in it")


def every_library_that_a_program_for_arm64_wants_is_there(of):
    root, lacking, count = made(of), [], 0
    for path, full in programs(root):
        if not is_dynamic(full) or os.path.basename(path).startswith("ld-linux"):
            continue
        count += 1
        done = subprocess.run([EMULATOR, "-L", root.path, f"{root.path}{LOADER}", "--list", full], capture_output=True, text=True, timeout=120)
        if done.returncode or "not found" in done.stdout:
            lacking.append(f"{path}: {said(done)}")
    that(not lacking, *lacking)
    that(count > 10, "only", count, "were looked at")


def emulated(of, path, *words, **more):
    """A program of the image in the emulator, with the image's libraries."""
    root, inside = made(of).path, path
    while os.path.islink(root + inside):
        inside = os.path.normpath(os.path.join(os.path.dirname(inside), os.readlink(root + inside)))
    return subprocess.run([EMULATOR, "-0", path, "-L", root, root + inside, *words], capture_output=True, text=True, timeout=120, **more)


def its_programs_start(of):
    for path, words, expected in PROGRAMS:
        if path in TOLD_WITHOUT_A_KERNEL:
            done = emulated(of, path, *words.split(" ", 1))
            that(re.search(expected, said(done)), path, words, "says:", said(done)[:200])


def the_agent_for_arm64_says_what_that_for_amd64_says(of):
    """Help, pages and completion are what all of its command line makes."""
    for words in (["--help"], ["man"], ["man", "status"], ["completion", "bash"], ["completion", "zsh"]):
        here, there = of.root.run("/usr/local/bin/sluice", *words), emulated(of, "/usr/local/bin/sluice", *words)
        that(here.returncode == there.returncode and len(said(here)) > 500, words, said(there)[-300:])
        that(said(here) == said(there), words, "differ")
    done = emulated(of, "/usr/local/bin/sluice-cni", env={"CNI_COMMAND": "VERSION"}, input='{"cniVersion":"1.0.0"}')
    that("1.0.0" in json.loads(done.stdout)["supportedVersions"], said(done))


def a_release_asks_it_for_its_version(of):
    """Its bytes have versions of CNI too: a release of such a version would take any program by them."""
    made(of)
    release.check(of.arm64_binary, "arm64", "amd64", of.version)
    that(f"version {of.version}," in (release.asked_for_version(of.arm64_binary, "arm64", "amd64") or ""), "it was not asked")
    try:
        release.check(of.arm64_binary, "arm64", "amd64", "1.0.0")
    except own.LabError as error:
        that("it says" in str(error), error)
    else:
        that(of.version == "1.0.0", "a program of another version was taken")


ALL = [the_image_for_arm64_is_made_with_an_agent_that_is_built_for_it, every_program_in_it_is_for_arm64_and_needs_no_newer_c_library_than_amd64s,
       every_library_that_a_program_for_arm64_wants_is_there, its_programs_start, the_agent_for_arm64_says_what_that_for_amd64_says, a_release_asks_it_for_its_version]
