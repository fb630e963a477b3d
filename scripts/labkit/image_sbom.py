"""What an image is made of, as an SPDX 2.3 document: Debian packages, crates of the program and Rust's standard library, modules of the Go programs."""
import collections
import hashlib
import json
import os
import re
import tomllib

from . import own

TRIPLES = {"amd64": "x86_64-unknown-linux-gnu", "arm64": "aarch64-unknown-linux-gnu"}
RUST_LICENCE = "MIT OR Apache-2.0"
Crate = collections.namedtuple("Crate", "name version licence folder repository")  # `folder`: of its sources


def document(name, created, debian, modules, arch, purpose="CONTAINER"):
    """The document as JSON; the same for the same parts. `created` is a time in SPDX's form."""
    packages = [debian_package(package) for package in debian] + [crate(*it) for it in crates(arch)] + [standard_library(rust())] + [module(*it) for it in modules]
    packages.sort(key=lambda it: it["SPDXID"])
    image = {"SPDXID": "SPDXRef-image", "name": name, "downloadLocation": "NOASSERTION", "filesAnalyzed": False,
             "licenseDeclared": "Apache-2.0", "licenseConcluded": "NOASSERTION", "copyrightText": "NOASSERTION", "primaryPackagePurpose": purpose}
    relations = [{"spdxElementId": "SPDXRef-DOCUMENT", "relationshipType": "DESCRIBES", "relatedSpdxElement": "SPDXRef-image"}]
    relations += [{"spdxElementId": "SPDXRef-image", "relationshipType": "CONTAINS", "relatedSpdxElement": it["SPDXID"]} for it in packages]
    parts = hashlib.sha256(json.dumps(packages, sort_keys=True).encode()).hexdigest()
    return json.dumps({
        "spdxVersion": "SPDX-2.3", "dataLicense": "CC0-1.0", "SPDXID": "SPDXRef-DOCUMENT", "name": name,
        "documentNamespace": f"https://sluice.invalid/spdx/{name.replace(':', '-')}-{arch}-{parts[:16]}",
        "creationInfo": {"created": created, "creators": ["Tool: scripts-image"]},
        "packages": [image, *packages], "relationships": relations,
    }, indent=1) + "\n"


def entry(kind, name, version, purl, **more):
    label = re.sub(r"[^A-Za-z0-9.-]", "-", f"{kind}-{name}-{version}")
    return {"SPDXID": f"SPDXRef-{label}", "name": name, "versionInfo": version, "downloadLocation": "NOASSERTION", "filesAnalyzed": False,
            "licenseDeclared": "NOASSERTION", "licenseConcluded": "NOASSERTION", "copyrightText": "NOASSERTION",
            "externalRefs": [{"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": purl}], **more}


def checksum(value):
    return {"checksums": [{"algorithm": "SHA256", "checksumValue": value}]} if value else {}


def debian_package(package):
    version = package.version.replace(":", "%3A").replace("+", "%2B").replace("~", "~")
    purl = f"pkg:deb/debian/{package.name}@{version}?arch={package.arch}"
    return entry("deb", package.name, package.version, purl, **checksum(package.sha256))


def crate(name, version, licence, sha256):
    more = checksum(sha256)
    if licence:
        more["licenseDeclared"] = " ".join(licence.replace("/", " OR ").split())  # the form of old crates
    return entry("cargo", name, version, f"pkg:cargo/{name}@{version}", **more)


def standard_library(version):
    """No registry has it, so its name is the one under which toolchains bring it."""
    return entry("rust", "rust-std", version, f"pkg:generic/rust-std@{version}", licenseDeclared=RUST_LICENCE)


def module(name, version, _sum):
    return entry("go", name, version, f"pkg:golang/{name}@{version}")


def rust():
    """The version of the compiler, and so of the standard library, a part of which is in every program."""
    return own.run("rustc", "--version", cwd=own.TREE).split()[1]


def crates(arch):
    """The crates that are in the program, without those that only build or test it: [(name, version, licence, SHA-256)]."""
    with open(os.path.join(own.TREE, "Cargo.lock"), "rb") as handle:
        sums = {(it["name"], it["version"]): it.get("checksum", "") for it in tomllib.load(handle)["package"]}
    return [(it.name, it.version, it.licence, sums[it.name, it.version]) for it in crate_folders(arch)]


def crate_folders(arch):
    """The same crates with where their sources are here: a sorted list of `Crate`."""
    words = ["cargo", "metadata", "--locked", "--format-version", "1", "--filter-platform", TRIPLES[arch]]
    found = json.loads(own.run(*words, cwd=own.TREE))
    nodes = {node["id"]: node for node in found["resolve"]["nodes"]}
    packages = {package["id"]: package for package in found["packages"]}
    reached, waiting = set(), [found["resolve"]["root"]]
    while waiting:
        at = waiting.pop()
        if at not in reached:
            reached.add(at)
            waiting += [dep["pkg"] for dep in nodes[at]["deps"] if any(kind["kind"] is None for kind in dep["dep_kinds"])]
    of = [packages[at] for at in reached]
    return sorted(Crate(it["name"], it["version"], it["license"] or "", os.path.dirname(it["manifest_path"]), it["repository"] or "") for it in of)
