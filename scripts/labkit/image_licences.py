"""The licences of what is compiled into the programs of the image, whose terms ask that they go with it: one text for each layer."""
import collections
import html
import os
import re

from . import image_go, image_sbom, own

NAMES = re.compile(r"^\.?(licen[cs]e|copying|copyright|notice|unlicense)", re.IGNORECASE)
SOURCES = (".rs", ".c", ".h", ".toml", ".json", ".yml", ".yaml")  # `notice.rs` is none
# A program, or a part of one. `texts`: the licences that lie in its package; `licence`: its SPDX expression, where that is known; `repository`: where it is written.
Part = collections.namedtuple("Part", "name texts licence repository", defaults=("", ""))
NO_TEXT = "Its package has no text of its licence, and no other part is under that one alone."


def of_crates(arch):
    """The licences of the crates that are in the agent, and of Rust's standard library."""
    parts = [standard_library()]
    for crate in image_sbom.crate_folders(arch):
        # What lies about below this tree is no part of it.
        below = not os.path.samefile(crate.folder, own.TREE)
        parts.append(Part(f"{crate.name} {crate.version} ({crate.licence})", texts(crate.folder, below), crate.licence, crate.repository))
    return text(parts)


def of_modules(programs):
    """The licences of the modules of Go programs, and Go's own."""
    wanted = {(name, version) for name, version, _ in image_go.modules(programs)}
    found = {}
    for folder, packages in image_go.PACKAGES.items():
        form = "{{with .Module}}{{.Path}} {{.Version}} {{.Dir}}{{end}}"
        for line in own.run("go", "list", "-deps", "-f", form, *packages, cwd=f"{image_go.CLUSTER}/{folder}").splitlines():
            if line.count(" ") == 2:
                name, version, at = line.split(" ")
                found[name, version] = at
    parts = [Part(f"{name} {version}", texts(found[name, version])) for name, version in sorted(wanted & found.keys())]
    return text([Part("Go's standard library", texts(own.run("go", "env", "GOROOT", cwd=image_go.CLUSTER).strip())), *parts])


def standard_library():
    """Rust's: what the toolchain says of it and of the crates in it, which are those of all systems, then the notices of these crates, then the licences that are named by
    their SPDX names alone. A toolchain that does not come from Rust's makers may have none of these files."""
    name = f"Rust's standard library {image_sbom.rust()} ({image_sbom.RUST_LICENCE})"
    folder = os.path.join(own.run("rustc", "--print", "sysroot", cwd=own.TREE).strip(), "share", "doc", "rust")
    path, found = os.path.join(folder, "COPYRIGHT-library.html"), []
    if os.path.isfile(path):
        page = read(path)
        notices = [html.unescape(notice).strip() for notice in re.findall(r"<pre>(.*?)</pre>", page, re.DOTALL)]
        page = plain(re.sub(r"<pre>.*?</pre>|<title>.*?</title>", "", page, flags=re.DOTALL))
        named = [os.path.join(folder, "licenses", f"{word}.txt") for word in sorted(set(re.findall(r"[\w.-]+", page)))]
        found = [page, *notices, *(read(file) for file in named if os.path.isfile(file))]
    return Part(name, found, image_sbom.RUST_LICENCE)


def plain(page):
    """The words of a page of HTML, without what lays them out."""
    lines = [line.strip() for line in html.unescape(re.sub(r"<[^>]*>", "", page)).splitlines()]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def texts(folder, below=False):
    """The licences in a folder. With `below` also those that lie deeper: of what its authors have taken from others."""
    found = []
    for at, folders, files in os.walk(folder):
        is_of_licences = at != folder and NAMES.match(os.path.basename(at))
        for file in files:
            path = os.path.join(at, file)
            if (is_of_licences or NAMES.match(file)) and not file.endswith(SOURCES) and os.path.isfile(path):
                found.append(read(path))
        if not below:
            folders.clear()
    return found


def read(path):
    with open(path, encoding="utf-8", errors="replace") as handle:
        return handle.read().strip()


def text(parts):
    """Each licence once, behind the names of the parts that have it. No part is left out: one without a text stands with the texts of others that are under the same licence."""
    having = {}
    for part in parts:
        for licence in part.texts:
            having.setdefault(licence, []).append(part.name)
    for part in parts:
        if not part.texts:
            borrowed = at_hand(part, parts)
            for licence in borrowed:
                having[licence].append(f"{part.name}: no text in its package, this is that of the others here")
            if not borrowed:
                having.setdefault(NO_TEXT, []).append(part.name)
    blocks = sorted(having.items(), key=lambda it: (sorted(it[1]), it[0]))
    return "".join("\n".join(sorted(set(names))) + f"\n{'-' * 70}\n{licence}\n\n{'=' * 70}\n" for licence, names in blocks)


def at_hand(part, parts):
    """A text for each licence of the expression of a part, from others that have one licence and one text: of the same repository, where there are such, because a text
    may name its authors; of several texts the one that most have."""
    found = []
    for name in sorted(set(re.findall(r"[\w.+-]+", part.licence))):
        under = [other for other in parts if other.licence == name and len(set(other.texts)) == 1]
        near = [other for other in under if other.repository and other.repository == part.repository]
        count = collections.Counter(other.texts[0] for other in near or under)
        if count:
            found.append(max(count, key=lambda licence: (count[licence], licence)))
    return found
