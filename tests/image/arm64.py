"""The image for arm64, whose agent is cross-compiled: what is in it is for that processor, and it runs in an emulator of it."""
import json
import os
import re
import stat
import subprocess

from labkit import cross, image, own, packages
from contents import PROGRAMS
from root import Root, said, that

EMULATOR = packages.OTHER_PROCESSORS["qemu-user"]
# An emulator of one program gives it no netlink of netfilter, for which nft asks first, and no other program.
TOLD_WITHOUT_A_KERNEL = ("/usr/local/bin/kube-router", "/usr/local/bin/sluice", "/usr/local/bin/gobgp", "/usr/local/bin/gobgp3", "/sbin/ip", "/usr/sbin/conntrack", "/sbin/modprobe", "/usr/bin/curl", "/usr/bin/wget", "/bin/bash", "/bin/tar", "/usr/bin/awk")


def the_image_for_arm64_is_made_with_an_agent_that_is_built_for_it(of):
    packages.install(packages.OTHER_PROCESSORS)
    of.arm64_binary = cross.release("arm64")
    recipe = image.Recipe("arm64", "full", of.arm64_binary, image.source_date())
    path, digest, size = image.make(recipe, f"{of.folder}/arm64")
    own.say(f"{path}: {digest}, {size / 2**20:.1f} MiB")
    of.arm64 = Root(f"{of.folder}/arm64.unpacked", path, recipe.tag)
    that(of.arm64.config["architecture"] == "arm64", of.arm64.config["architecture"])
    that(of.arm64.index["manifests"][0].get("platform", {}).get("architecture", "arm64") == "arm64", of.arm64.index)
    that(size < 120 * 2**20, f"{size / 2**20:.1f} MiB")


def every_program_in_it_is_for_arm64_and_needs_no_newer_c_library_than_amd64s(of):
    count = 0
    for path, status in of.arm64.files():
        full = os.path.join(of.arm64.path, path)
        if not stat.S_ISREG(status.st_mode):
            continue
        with open(full, "rb") as handle:
            head = handle.read(20)
        if head[:4] == b"\x7fELF":
            count += 1
            that(int.from_bytes(head[18:20], "little") == image.MACHINES["arm64"], path, "is for another processor")
    that(count > 100, "only", count, "were looked at")
    with open(of.arm64_binary, "rb") as handle:
        text = handle.read()
    wanted = max(number for number in range(17, 60) if b"GLIBC_2.%d\0" % number in text)
    that(wanted <= 34, f"glibc 2.{wanted}")


def emulated(of, path, *words, **more):
    """A program of the image in the emulator, with the image's libraries."""
    inside = path
    while os.path.islink(of.arm64.path + inside):
        inside = os.path.normpath(os.path.join(os.path.dirname(inside), os.readlink(of.arm64.path + inside)))
    return subprocess.run([EMULATOR, "-0", path, "-L", of.arm64.path, of.arm64.path + inside, *words], capture_output=True, text=True, timeout=120, **more)


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


ALL = [the_image_for_arm64_is_made_with_an_agent_that_is_built_for_it, every_program_in_it_is_for_arm64_and_needs_no_newer_c_library_than_amd64s, its_programs_start,
       the_agent_for_arm64_says_what_that_for_amd64_says]
