"""The Go programs of the image: the client of GoBGP and the CNI plugins, built from modules that go.sum pins.

Without a C library: the CNI plugins are copied to hosts, whose library may be another one. Debian's packages of both link against glibc.
"""
import hashlib
import json
import os
import re
import shutil
import subprocess

from . import build, own

CLUSTER = os.path.join(own.TREE, "scripts", "cluster")
PLUGINS = {"bridge": "main", "loopback": "main", "host-local": "ipam", "portmap": "meta"}
PLUGINS_OF = "github.com/containernetworking/plugins"
GOBGP = "github.com/osrg/gobgp/v4"
# The folder below scripts/cluster that pins it, and what is built there.
PACKAGES = {"gobgp": [f"{GOBGP}/cmd/gobgp"], "cni": [f"{PLUGINS_OF}/plugins/{kind}/{name}" for name, kind in PLUGINS.items()]}
# Of Go's settings, from where modules and the compiler come and where they are kept.
OF_MODULES = ["GOPROXY", "GONOPROXY", "GOSUMDB", "GONOSUMDB", "GOPRIVATE", "GOINSECURE", "GOTOOLCHAIN", "GOMODCACHE", "GOCACHE"]


def programs(arch):
    """Where the programs are for this architecture, by their paths in the image."""
    found = {"usr/local/bin/gobgp": compiled("gobgp", GOBGP, "cmd/gobgp", arch)}
    flag = f" -X {PLUGINS_OF}/pkg/utils/buildversion.BuildVersion={pinned('cni', PLUGINS_OF)}"
    for name, kind in PLUGINS.items():
        found[f"usr/libexec/cni/{name}"] = compiled("cni", PLUGINS_OF, f"plugins/{kind}/{name}", arch, flag)
    return found


def pinned(folder, module):
    """The version of a module that go.mod names."""
    with open(f"{CLUSTER}/{folder}/go.mod") as handle:
        return re.search(rf"{re.escape(module)} (\S+)", handle.read())[1]


def compiled(folder, module, path, arch, flag=""):
    """Builds a program of a module once for each state of what pins it and each Go; where it is. Two builds give the same bytes."""
    if not shutil.which("go"):
        build.go()
    name = os.path.basename(path)
    words = ["go", "build", "-trimpath", "-buildvcs=false", "-ldflags", f"-s -w -buildid={flag}"]
    # What the build of somebody's own choice would change is said here. The compiler is the one of `go version`.
    chosen = {"CGO_ENABLED": "0", "GOOS": "linux", "GOARCH": arch, "GOFLAGS": "", "GOAMD64": "v1", "GOARM64": "v8.0", "GOEXPERIMENT": "",
              "GOENV": "off", "GOFIPS140": "off", "GOWORK": "off", "GO111MODULE": "on"}
    key = hashlib.sha256(repr((own.run("go", "version", cwd=f"{CLUSTER}/{folder}"), words, chosen, f"{module}/{path}")).encode())
    for pins in ("go.mod", "go.sum"):  # an indirect module that changes is a change too
        with open(f"{CLUSTER}/{folder}/{pins}", "rb") as handle:
            key.update(handle.read())
    target = f"{own.cache()}/image/go/{key.hexdigest()[:16]}/{name}"
    with own.locked("image-go"):
        if not os.path.exists(target):
            own.say(f"building {name} for {arch} (once)")
            os.makedirs(os.path.dirname(target), exist_ok=True)
            new = f"{target}.{os.getpid()}.new"
            # A variable that is empty counts as not set, and then the file that `go env -w` writes has the word: of that nothing counts but where modules come from.
            kept = json.loads(own.run("go", "env", "-json", *OF_MODULES, cwd=f"{CLUSTER}/{folder}"))
            done = subprocess.run(["nice", "-n", "10", *words, "-o", new, f"{module}/{path}"], cwd=f"{CLUSTER}/{folder}", stdin=subprocess.DEVNULL,
                                  env={**os.environ, **kept, **chosen})
            if done.returncode:
                raise own.LabError(f"building {name} failed with exit status {done.returncode}; go says why above")
            os.rename(new, target)
    return target


def modules(paths):
    """The modules that programs were built from, as they say themselves: sorted (module, version, sum)."""
    found = set()
    for path in paths:
        for line in own.run("go", "version", "-m", path, cwd=CLUSTER).splitlines():
            words = line.split()
            if len(words) >= 3 and words[0] in ("mod", "dep"):
                found.add((words[1], words[2], words[3] if len(words) > 3 else ""))
        found.add(("stdlib", own.run("go", "version", path, cwd=CLUSTER).split()[-1].removeprefix("go"), ""))
    return sorted(found)
