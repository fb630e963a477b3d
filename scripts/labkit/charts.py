"""What is made from the chart: the files of `daemonset/`, the base for kustomize, and a list of digests that tells when they are older than the chart.

Each file of `daemonset/` is the chart rendered by Helm with the values of the same name in `charts/values/`, below the words that stand at the head of these.
"""
import hashlib
import os
import re

from . import cluster, own

CHART = os.path.join(own.TREE, "charts", "sluice")
VALUES = os.path.join(own.TREE, "charts", "values")
# What `sha256sum -c` reads, from the top of the tree.
DIGESTS = "charts/rendered.sha256"
# Files that are made of one template alone: rights that are applied beside another file.
ALONE = {"kube-router-load-balancer": "load-balancer", "kube-router-node-annotations": "node-annotations",
         "kube-router-node-status": "node-status"}
NAMESPACE = "kube-system"
# The files for kustomize, and of which file of `daemonset/` each has the objects.
KUSTOMIZE = {"kustomize/base/kube-router.yaml": "generic-kuberouter", **{f"kustomize/components/{of}/rights.yaml": name for name, of in ALONE.items()}}


def helm(*words):
    """Runs Helm without what its user has set up on this machine; what it printed."""
    home = f"{own.cache()}/helm"
    # What it asks an API server it keeps below HOME, and without one where it was started.
    env = {"PATH": os.environ["PATH"], "HOME": home, **{f"HELM_{kind}_HOME": f"{home}/{kind.lower()}" for kind in ("CACHE", "CONFIG", "DATA")}}
    return own.run(cluster.other(cluster.HELM), *words, env=env)


def names():
    return sorted(name.removesuffix(".yaml") for name in os.listdir(VALUES))


def values(name):
    return os.path.join(VALUES, f"{name}.yaml")


def rendered(*words):
    """The chart's objects as one text, without Helm's words about where each comes from."""
    text = helm("template", "kube-router", CHART, "--namespace", NAMESPACE, *words)
    parts = re.split(r"^---\n# Source: .*\n", text, flags=re.M)
    return "---\n".join(part.strip("\n") + "\n" for part in parts if part.strip())


def manifest(name):
    """A file of `daemonset/`."""
    with open(values(name)) as handle:
        head = re.match(r"(#.*\n)*", handle.read())[0]
    alone = ["--show-only", f"templates/{ALONE[name]}.yaml"] if name in ALONE else []
    return head + rendered("-f", values(name), *alone)


def made():
    """The files that are made, by their paths in the tree."""
    files = {f"daemonset/{name}.yaml": manifest(name) for name in names()}
    files.update({path: files[f"daemonset/{name}.yaml"] for path, name in KUSTOMIZE.items()})
    files[DIGESTS] = digests(files)
    return files


def digests(files):
    """A line for each file that something is made from, and for each that is made."""
    found = {path: text.encode() for path, text in files.items()}
    for top in (CHART, VALUES):
        for folder, _, inside in os.walk(top):
            for name in inside:
                path = os.path.join(folder, name)
                with open(path, "rb") as handle:
                    found[os.path.relpath(path, own.TREE)] = handle.read()
    return "".join(f"{hashlib.sha256(text).hexdigest()}  {path}\n" for path, text in sorted(found.items()))


def differing():
    """The files that are not as the chart makes them."""
    return sorted(path for path, text in made().items() if text != content(path))


def content(path):
    try:
        with open(os.path.join(own.TREE, path)) as handle:
            return handle.read()
    except FileNotFoundError:
        return None


def write():
    """Writes the files that differ; their paths."""
    changed = differing()
    for path, text in made().items():
        if path in changed:
            own.write(os.path.join(own.TREE, path), text, 0o644)
    return changed
