"""The files of an image, unpacked by a program of others, and commands that run in them as in a container: namespaces and a root of their own."""
import json
import os
import shutil
import subprocess
import tarfile

from labkit import image, own

CHROOT = "/usr/sbin/chroot"  # in full, for calls with an environment of their own
# What a container runtime gives: a small /dev, /proc and /sys; no network but a loopback.
PREPARE = """
set -e
mount --make-rprivate /
mount -t proc proc "$ROOT/proc"
mount -t sysfs sysfs "$ROOT/sys"
mount -t tmpfs -o mode=755 dev "$ROOT/dev"
for one in null zero full random urandom tty; do : > "$ROOT/dev/$one"; mount --bind "/dev/$one" "$ROOT/dev/$one"; done
ln -s /proc/self/fd "$ROOT/dev/fd"
mount -t tmpfs run "$ROOT/run"
mkdir -p "$ROOT/run/lock" "$ROOT/run/sluice" "$ROOT/run/netns"
while read -r from to; do mkdir -p "$ROOT$to"; mount --bind "$from" "$ROOT$to"; done < "$BINDS"
ip link set lo up
"""


def that(true, *words):
    if not true:
        raise AssertionError(" ".join(str(w) for w in words))


def said(done):
    return (done.stdout + done.stderr).strip()


class Root:
    def __init__(self, folder, archive, tag):
        self.folder = own.fresh(folder)
        self.archive = archive
        layout = f"{folder}/layout"
        os.mkdir(layout)
        with tarfile.open(archive) as handle:
            handle.extractall(layout)
        # umoci checks every digest and size on its way.
        own.run("umoci", "unpack", "--image", f"{layout}:{tag}", f"{folder}/bundle")
        self.path = f"{folder}/bundle/rootfs"
        with open(f"{layout}/index.json") as handle:
            self.index = json.load(handle)
        self.manifest = self.blob(self.index["manifests"][0]["digest"])
        self.config = self.blob(self.manifest["config"]["digest"])

    def blob(self, digest):
        with open(f"{self.folder}/layout/blobs/{digest.replace(':', '/')}") as handle:
            return json.load(handle)

    def command(self, words, binds, environment, outside=""):
        """The command line that runs words in the image. `outside`: a script before it, with the programs of this machine."""
        listed = f"{self.folder}/binds.{os.getpid()}.{len(os.listdir(self.folder))}"
        own.write(listed, "".join(f"{source} {target}\n" for target, source in binds.items()))
        inner = [f"{name}={value}" for name, value in {**environment, "PATH": image.PATH, "HOME": "/root"}.items()]
        script = f'{PREPARE}\n{outside}\nexec chroot "$ROOT" "$ENV" -i "$@"'
        # Programs of the image have to be found by paths of their own, so `env` is this machine's where the image has none.
        return ["unshare", "--mount", "--net", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "env", f"ROOT={self.path}", f"BINDS={listed}",
                "ENV=/usr/bin/env", "sh", "-c", script, "sh", *inner, *words]

    def run(self, *words, binds=None, environment=None, outside="", text_in=None, timeout=60):
        """Runs a program of the image to its end; `binds`: {path there: path here}."""
        return subprocess.run(self.command(words, binds or {}, environment or {}, outside), input=text_in or "", capture_output=True, text=True,
                              timeout=timeout)

    def sh(self, script, **more):
        return self.run("/bin/sh", "-c", script, **more)

    def start(self, log, *words, **more):
        with open(log, "wb") as handle:
            return subprocess.Popen(self.command(words, more.get("binds", {}), more.get("environment", {}), more.get("outside", "")),
                                    stdin=subprocess.DEVNULL, stdout=handle, stderr=handle)

    def files(self):
        """Every path below the top, and what it is: [(path, lstat)]."""
        for folder, folders, names in os.walk(self.path):
            for name in sorted(folders + names):
                path = os.path.join(folder, name)
                yield os.path.relpath(path, self.path), os.lstat(path)

    def end(self):
        shutil.rmtree(self.folder, ignore_errors=True)
