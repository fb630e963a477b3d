"""The cgroups of nodes. A node's group is the root of what the node sees of them: one group where the controllers are in version 2, elsewhere one in each hierarchy of version 1."""
import os

from labkit import own

ROOT = "/sys/fs/cgroup"
CONTROLLERS = "+cpuset +cpu +io +memory +pids"
# What the root of a cpuset has, and a new group has not: without it no process may enter.
INHERITED = ("cpuset.cpus", "cpuset.mems")


def hierarchies():
    """Of version 1: the option that mounts a hierarchy, and our own group in it, by its folder. None where version 2 has the controllers."""
    if os.path.exists(f"{ROOT}/cgroup.controllers"):
        return {}
    found = {}
    with open("/proc/self/cgroup") as handle:
        for line in handle:
            _, names, group = line.rstrip("\n").split(":", 2)
            name = names.removeprefix("name=")
            if names and os.path.isdir(f"{ROOT}/{name}"):
                found[name] = (names if name == names else f"none,{names}", group.rstrip("/"))
    return found


def folders(i):
    """Where the groups of a node are. Of version 1 below our own groups, whose limits and accounts stay those of what started us, by a name that no other place of nodes has."""
    place = os.readlink("/proc/self/ns/pid").strip("pid:[]")
    return [f"{ROOT}/{name}{group}/nodes-{place}-{i}" for name, (_, group) in hierarchies().items()] or [f"{ROOT}/node{i}"]


def entering(i):
    """The shell commands by which a shell goes into the groups of a node."""
    inside = "" if hierarchies() else "/init"
    return "; ".join(f"echo 0 > {path}{inside}/cgroup.procs" for path in folders(i))


def make(i, kept, mounts):
    """Makes the groups and has the node see them as roots. `kept`: a file that keeps the namespace, `mounts`: the one of the node's mounts."""
    version_1, paths = hierarchies(), folders(i)
    for path in paths:
        os.makedirs(path, exist_ok=True)
        for name in INHERITED if version_1 else ():
            if os.path.exists(f"{path}/{name}"):
                with open(f"{os.path.dirname(path)}/{name}") as above:
                    own_value = above.read()
                with open(f"{path}/{name}", "w") as handle:
                    handle.write(own_value)
    with open(kept, "w"):
        pass
    if version_1:
        inner = [f"mount -t tmpfs tmpfs {ROOT}"]
        inner += [line for name, (option, _) in version_1.items() for line in (f"mkdir {ROOT}/{name}", f"mount -t cgroup -o {option} cgroup {ROOT}/{name}")]
    else:
        with open(f"{ROOT}/cgroup.subtree_control", "w") as handle:
            handle.write(CONTROLLERS)
        inner = [f"umount {ROOT}", f"mount -t cgroup2 cgroup2 {ROOT}", f"mkdir -p {ROOT}/init", f"echo 0 > {ROOT}/init/cgroup.procs",
                 f"echo {CONTROLLERS} > {ROOT}/cgroup.subtree_control"]
    enter = "; ".join(f"echo 0 > {path}/cgroup.procs" for path in paths)
    own.run("sh", "-ec", f"{enter}; exec unshare --cgroup={kept} nsenter --mount={mounts} sh -ec '{'; '.join(inner)}'")


def remove(path):
    """Takes away a group with those below it; false while a process is in one of them."""
    try:
        for folder, _, _ in os.walk(path, topdown=False):
            os.rmdir(folder)
    except OSError:
        return False
    return True
