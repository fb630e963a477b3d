"""The licences of what is compiled into the programs of the image, whose terms ask that they go with it: one text for each layer."""
import os
import re

from . import image_go, image_sbom, own

NAMES = re.compile(r"^(licen[cs]e|copying|copyright|notice|unlicense)", re.IGNORECASE)


def of_crates(arch):
    """The licences of the crates that are in the agent."""
    return text((f"{name} {version} ({licence})", folder) for name, version, licence, folder in image_sbom.crate_folders(arch))


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
    parts = [(f"{name} {version}", found[name, version]) for name, version in sorted(wanted & found.keys())]
    return text([("Go's standard library", own.run("go", "env", "GOROOT", cwd=image_go.CLUSTER).strip()), *parts])


def text(parts):
    """Each licence once, behind the names of the parts that have it. `parts`: (name, folder of its sources)."""
    having = {}
    for name, folder in parts:
        for file in sorted(os.listdir(folder)):
            path = os.path.join(folder, file)
            if NAMES.match(file) and os.path.isfile(path):
                with open(path, errors="replace") as handle:
                    having.setdefault(handle.read().strip(), []).append(name)
    blocks = sorted(having.items(), key=lambda it: (sorted(it[1]), it[0]))
    return "".join("\n".join(sorted(set(names))) + f"\n{'-' * 70}\n{licence}\n\n{'=' * 70}\n" for licence, names in blocks)
