"""The Debian packages of the image: the list, the lock, and the files that it names.

The list (image/packages.list) says what is wanted, the lock (image/packages.lock) exactly what is used: name, version, size and SHA-256
of each file. apt decides what goes into the lock, and checks the archive's signatures then; afterwards the hash alone counts, so a
file that was fetched once is good for ever, whatever the archive has by then.
"""
import hashlib
import os
import re
import shutil
import subprocess
import time
import urllib.parse

from . import own

FOLDER = os.path.join(own.TREE, "image")
LIST, LOCK = os.path.join(FOLDER, "packages.list"), os.path.join(FOLDER, "packages.lock")
# Names another lock, for tests (`settle`).
OTHER_LOCK = "SLUICE_IMAGE_LOCK"
# Names the address of an archive of Debian's former states, for what the archive has replaced since: with the words {archive} ("debian", "debian-security")
# and {time} ("20261128T235959Z", the end of the day of the lock).
SNAPSHOT = "SLUICE_IMAGE_SNAPSHOT"
ARCHITECTURES = ("amd64", "arm64")
VARIANTS = ("full", "minimal")
KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"
FETCH = "/usr/lib/apt/apt-helper"
HEAD = """# Written by `scripts/image --renew` from packages.list; not by hand.
# architecture, variants, the archive's label, package, version, size, SHA-256, file below the archive's address
"""


class Gone(own.LabError):
    """Debian's archive has a package of the lock no longer."""


class Package:
    """A line of the lock."""

    def __init__(self, arch, variants, label, name, version, size, sha256, path):
        self.arch, self.variants, self.label, self.name = arch, variants, label, name
        self.version, self.size, self.sha256, self.path = version, int(size), sha256, path

    def line(self):
        return " ".join([self.arch, self.variants, self.label, self.name, self.version, str(self.size), self.sha256, self.path])


def wanted():
    """The list: {verb: [[word, ...], ...]}."""
    found = {}
    with open(LIST) as handle:
        for line in handle:
            words = line.split("#")[0].split()
            if words:
                found.setdefault(words[0], []).append(words[1:])
    return found


def lock():
    return os.environ.get(OTHER_LOCK) or LOCK


def locked():
    """The lock: the day on which it was written, as seconds, and its packages."""
    day, packages = 0, []
    with open(lock()) as handle:
        for line in handle:
            if line.startswith("renewed "):
                day = int(line.split()[1])
            elif line.strip() and not line.startswith("#"):
                packages.append(Package(*line.split()))
    return day, packages


def of_image(arch, variant):
    """The time of the lock and its packages for one image."""
    day, packages = locked()
    here = [package for package in packages if package.arch == arch and variant in package.variants.split(",")]
    if not here:
        raise own.LabError(f"image/packages.lock has no packages for {arch}: scripts/image --renew writes it")
    return day, here


def fetch(packages):
    """The files of the packages: {package: path}; fetched once, and checked each time."""
    folder = f"{own.cache()}/image/packages"
    os.makedirs(folder, exist_ok=True)
    paths = {package: f"{folder}/{package.sha256}.deb" for package in packages}
    missing = [package for package in packages if not os.path.exists(paths[package])]
    if missing:
        own.say(f"fetching {len(missing)} Debian packages, {sum(package.size for package in missing) / 1e6:.0f} MB")
        archives = mirrors()
        for package in missing:
            fetch_one(package, archives, paths[package])
    for package, path in paths.items():
        with open(path, "rb") as handle:
            if hashlib.sha256(handle.read()).hexdigest() != package.sha256:
                os.unlink(path)
                raise own.LabError(f"{path} was not what image/packages.lock says of {package.name}, and is removed: run this again")
    return paths


def fetch_one(package, archives, path):
    try:
        download(package, archives[package.label], path)
    except Gone as error:
        if not os.environ.get(SNAPSHOT):
            raise Gone(f"{error}; scripts/image --renew writes a new lock with what it has now, and with {SNAPSHOT} former states of the archive are asked") from None
        try:
            download(package, snapshot(package.label), path)
        except Gone:
            raise Gone(f"{error}, nor is it where {SNAPSHOT} says; scripts/image --renew writes a new lock with what it has now") from None


def snapshot(label):
    """Where the archive of this label is as it was on the day of the lock."""
    time_of_lock = time.strftime("%Y%m%dT235959Z", time.gmtime(locked()[0]))
    try:
        return os.environ[SNAPSHOT].format(archive=label.lower(), time=time_of_lock).rstrip("/") + "/"
    except (IndexError, KeyError, ValueError):
        raise own.LabError(f"{SNAPSHOT} is an address with the words {{archive}} and {{time}} in it; it is {os.environ[SNAPSHOT]}") from None


def download(package, archive, path):
    new = f"{path}.{os.getpid()}.new"
    uri = f"{archive}{package.path.replace('%', '%25')}"
    done = subprocess.run([FETCH, "download-file", uri, new, f"SHA256:{package.sha256}"], capture_output=True, text=True)
    if done.returncode or not os.path.exists(new):
        words = (done.stdout + done.stderr).strip().splitlines()
        named = f"{package.name} {package.version} for {package.arch}, which image/packages.lock names,"
        gone = any(re.search(r"\b404 +Not Found|File not found", line) for line in words)
        if gone:
            raise Gone(f"{named} is no longer in Debian's archive")
        raise own.LabError(f"{named} could not be fetched: {words[-1] if words else 'nothing was said'}")
    if os.path.islink(new):  # what apt makes of an address that is a file
        there = os.path.realpath(new)
        os.unlink(new)
        shutil.copyfile(there, new)
    os.rename(new, path)


def mirrors():
    """The addresses of Debian's archives by their labels, as apt of this machine knows them."""
    needed = {label for _, label in wanted()["suite"]}
    found = known_archives()
    if needed - found.keys():
        own.run("apt-get", "update", "-q")  # apt knows the label of an archive when it has its lists
        found = known_archives()
    if needed - found.keys():
        raise own.LabError(f"apt of this machine has no archive labelled {' or '.join(sorted(needed - found.keys()))} (/etc/apt/sources.list.d)")
    return found


def known_archives():
    found = {}
    for line in own.run("apt-get", "indextargets", "--format", "$(ORIGIN)|$(LABEL)|$(REPO_URI)", "Created-By: Packages").splitlines():
        origin, label, uri = line.split("|")
        if origin == "Debian":
            found.setdefault(label, uri.rstrip("/") + "/")
    return found


# ---------------------------------------------------------------- the lock made anew


def settle(folder, architectures=ARCHITECTURES):
    """For tests that judge this tree, and not what Debian's archive has on the day: where that lacks a part of the lock, this process and those that it
    starts take another lock in this folder, with what the archive has now. Says what is other there, and returns it."""
    try:
        fetch([package for package in locked()[1] if package.arch in architectures])
    except Gone as error:
        own.say(f"{error}; tests go on with what is there:")
        path = os.path.join(folder, "packages.lock")
        with own.locked("image-lock"):
            changed = renew(True, path)
        os.environ[OTHER_LOCK] = path
        own.say("\n".join(f"  {line}" for line in changed))
        return changed
    return []


def instead(changed):
    """Lines that say what the tests had, where it was not the lock of this tree: no image of a release has been tested then. `changed`: from `settle`, whose own words
    are far above by the end."""
    if lock() == LOCK:
        return []
    return [f"image: NOT by image/packages.lock, but by another one; other packages: {len(changed)}", *[f"  {line}" for line in changed]]


def renew(downgrade=False, path=LOCK):
    """Asks Debian's archive for what the list wants and writes a lock; the differences to the one in use."""
    before = {(p.arch, p.name): p.version for p in (locked()[1] if os.path.exists(lock()) else [])}
    lines, after = [], {}
    for arch in ARCHITECTURES:
        for package in Apt(arch).solve():
            lines.append(package.line())
            after[package.arch, package.name] = package.version
    older = [f"{name} {arch}" for (arch, name), version in sorted(after.items())
             if (arch, name) in before and subprocess.run(["dpkg", "--compare-versions", version, "lt", before[arch, name]]).returncode == 0]
    if older and not downgrade:
        raise own.LabError(f"Debian's archive has older versions than image/packages.lock of {', '.join(older)}; a mirror may be behind. "
                           "scripts/image --renew --downgrade takes them")
    own.write(path, f"{HEAD}renewed {int(time.time()) // 86400 * 86400}\n" + "".join(f"{line}\n" for line in sorted(lines)))
    changed = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
    return [f"{name} {arch}: {before.get((arch, name), 'none')} -> {after.get((arch, name), 'none')}" for arch, name in changed]


class Apt:
    """apt with sources, lists and a status of its own, as if nothing were installed."""

    def __init__(self, arch):
        self.arch = arch
        self.list = wanted()
        self.folder = own.fresh(f"{own.cache()}/image/apt-{arch}")
        for name in ("lists/partial", "cache/archives/partial"):
            os.makedirs(f"{self.folder}/{name}")
        archives = mirrors()
        sources = [f"deb [signed-by={KEYS}] {archives[label]} {suite} main\n" for suite, label in self.list["suite"]]
        pins = []
        for suite in sorted({words[0] for words in self.list["newer"]}):
            names = [name for words in self.list["newer"] if words[0] == suite for name in words[1:]]
            pins += [("*", suite, 100), (" ".join(names), suite, 990)]
        preferences = "".join(f"Package: {names}\nPin: release n={suite}\nPin-Priority: {priority}\n\n" for names, suite, priority in pins)
        for name, text in (("sources", "".join(sources)), ("preferences", preferences), ("status", "")):
            own.write(f"{self.folder}/{name}", text)
        settings = {"APT::Architecture": arch, "APT::Architectures": arch, "Dir::Etc::sourcelist": "sources", "Dir::Etc::sourceparts": "/dev/null",
                    "Dir::Etc::preferences": "preferences", "Dir::Etc::preferencesparts": "/dev/null", "Dir::State::lists": "lists",
                    "Dir::State::status": "status", "Dir::Cache": "cache", "Acquire::Languages": "none",
                    "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled": "false"}
        self.options = [word for name, value in settings.items()
                        for word in ("-o", f"{name}={self.folder + '/' + value if name.startswith('Dir') and value[0] != '/' else value}")]
        own.say(f"asking Debian's archive what it has for {arch}")
        own.run("apt-get", *self.options, "-o", "APT::Update::Error-Mode=any", "update", "-q")  # all lists or none

    def names(self, verb):
        return [name for words in self.list.get(verb, []) for name in words]

    def solve(self):
        """The packages for this architecture, each with the images that it is in."""
        minimal = {name: version for name, version in self.closure(self.names("both")).items() if name not in self.names("full")}
        full = self.closure(self.names("both") + self.names("full"))
        if [key for key in minimal if full.get(key) != minimal[key]]:
            raise own.LabError("the minimal image would have other versions than the full one")
        without = self.names("without")
        unknown = set(without) - full.keys() - {"perl-base"}
        if unknown:
            raise own.LabError(f"packages.list leaves out what nothing depends on: {' '.join(sorted(unknown))}")
        return self.packages({name: version for name, version in full.items() if name not in without}, minimal)

    def closure(self, names):
        """The versions that apt would install."""
        text = own.run("apt-get", *self.options, "-sqq", "--no-install-recommends", "install", *names)
        return dict(re.match(r"Inst (\S+) \((\S+) ", line).groups() for line in text.splitlines() if line.startswith("Inst "))

    def packages(self, versions, minimal):
        exact = [f"{name}={version}" for name, version in sorted(versions.items())]
        found = {}
        for stanza in own.run("apt-cache", *self.options, "show", *exact).split("\n\n"):
            fields = dict(line.split(": ", 1) for line in stanza.splitlines() if ": " in line and line[0] != " ")
            if fields:
                found.setdefault((fields["Package"], fields["Version"]), fields)
        labels = self.labels(exact)
        result = []
        for name, version in sorted(versions.items()):
            fields = found[name, version]
            variants = "full,minimal" if name in minimal else "full"
            result.append(Package(self.arch, variants, labels[fields["Filename"]], name, version, fields["Size"], fields["SHA256"], fields["Filename"]))
        return result

    def labels(self, exact):
        """Which archive has each of the files, by its path there."""
        archives = sorted(mirrors().items(), key=lambda it: -len(it[1]))
        found = {}
        for line in own.run("apt-get", *self.options, "--print-uris", "-qq", "download", *exact).splitlines():
            uri = line.split("'")[1]
            label, at = next((label, at) for label, at in archives if uri.startswith(at))
            found[urllib.parse.unquote(uri[len(at):])] = label
        return found
