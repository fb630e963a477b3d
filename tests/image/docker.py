"""image/Dockerfile, built by buildah. No registry is asked: the two images that it begins with are stand-ins, made of Debian's packages and of this
machine's own Rust and Go."""
import contextlib
import hashlib
import json
import os
import shutil
import stat
import subprocess

from labkit import image, image_packages, own, packages
from root import that

GO, RUST = "golang:1.26-bookworm", "rust:1.95-bookworm"
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
# The first is what such an image has; with the others the agent is compiled in minutes, and is no other program for what is asked here.
SETTINGS = {"CARGO_HOME": "/usr/local/cargo", "CARGO_PROFILE_RELEASE_LTO": "off", "CARGO_PROFILE_RELEASE_CODEGEN_UNITS": "16", "CARGO_PROFILE_RELEASE_OPT_LEVEL": "1"}


class Buildah:
    """buildah with a store of its own."""

    def __init__(self, folder):
        self.folder = folder
        self.options = ["--root", f"{folder}/store", "--runroot", f"{folder}/run"]
        own.write(f"{folder}/policy.json", '{"default": [{"type": "insecureAcceptAnything"}]}')
        self.policy = ["--signature-policy", f"{folder}/policy.json"]

    def __call__(self, verb, *words, policy=False):
        command = ["buildah", *self.options, verb, *(self.policy if policy else []), *words]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, cwd=own.TREE)
        that(done.returncode == 0, "buildah", verb, "ended with", done.returncode, done.stdout[-2000:])
        return done.stdout.strip()

    def make(self, name, fill):
        """An image of this name, from nothing."""
        container = self("from", "scratch", policy=True)
        fill(container)
        self("commit", "--quiet", container, name, policy=True)
        self("rm", container)

    def end(self):
        with contextlib.suppress(Exception):
            self("rm", "--all")
        with contextlib.suppress(Exception):
            self("rmi", "--all", "--force")
        with open("/proc/mounts") as handle:
            mounts = [line.split()[1] for line in handle if line.split()[1].startswith(self.folder + "/")]
        for mount in reversed(mounts):
            subprocess.run(["umount", "-l", mount])
        shutil.rmtree(self.folder, ignore_errors=True)


def of_go(buildah):
    root = own.run("go", "env", "GOROOT").strip()
    buildah.make(GO, lambda container: buildah("copy", "--quiet", container, root, "/usr/local/go"))


def of_rust(buildah):
    archives, base = image_packages.mirrors(), f"{buildah.folder}/base.tar"
    sources = f"deb {archives['Debian']} bookworm main\ndeb {archives['Debian-Security']} bookworm-security main\n"
    words = ["mmdebstrap", "--quiet", "--variant=apt", "--include=ca-certificates,gcc,libc6-dev", "bookworm", base, "-"]
    done = subprocess.run(words, input=sources, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    that(done.returncode == 0, "mmdebstrap ended with", done.returncode, done.stdout[-2000:])
    toolchain = own.run("rustc", "--print", "sysroot", cwd=own.TREE).strip()

    def fill(container):
        buildah("add", "--quiet", container, base, "/")
        # Of the documents those alone that licences of the standard library are read from: the others are hundreds of megabytes.
        for part in ("bin", "lib", "libexec", "share/doc/rust/COPYRIGHT-library.html", "share/doc/rust/licenses"):
            if os.path.exists(f"{toolchain}/{part}"):
                buildah("copy", "--quiet", container, f"{toolchain}/{part}", f"/usr/local/cargo/{part}")
        buildah("copy", "--quiet", container, CERTIFICATES, CERTIFICATES)  # of a mirror that has an authority of its own
        for name, value in SETTINGS.items():
            buildah("config", "--env", f"{name}={value}", container)

    buildah.make(RUST, fill)
    os.unlink(base)


def entries(folder):
    """{path: what it is} of everything in a folder."""
    found = {}
    for at, folders, files in os.walk(folder):
        for name in folders + files:
            path = os.path.join(at, name)
            status = os.lstat(path)
            what = os.readlink(path) if stat.S_ISLNK(status.st_mode) else ""
            if stat.S_ISREG(status.st_mode):
                with open(path, "rb") as handle:
                    what = hashlib.file_digest(handle, "sha256").hexdigest()
            found[os.path.relpath(path, folder)] = (stat.filemode(status.st_mode), status.st_uid, status.st_gid, what)
    return found


def a_build_by_the_dockerfile_has_the_files_of_the_image(of):
    packages.install(packages.BUILDERS)
    buildah, epoch = Buildah(own.fresh(f"{of.folder}/buildah")), str(image.source_date())
    try:
        of_go(buildah)
        of_rust(buildah)
        fetched = f"{own.cache()}/image/packages"
        buildah("bud", "--isolation", "chroot", "--pull-never", "--layers=false", "--volume", f"{fetched}:/var/cache/sluice-lab/image/packages",
                "--volume", f"{image_packages.lock()}:/src/image/packages.lock:ro",
                "--build-arg", f"SOURCE_DATE_EPOCH={epoch}", "-f", "image/Dockerfile", "-t", "sluice:built", ".", policy=True)
        container = buildah("from", "--pull-never", "sluice:built", policy=True)
        built = buildah("mount", container)
        folder = of.scratch("docker")
        done = subprocess.run([f"{own.TREE}/scripts/image", "--binary", f"{built}/usr/local/bin/kube-router", "--folder", folder], text=True,
                              capture_output=True, env={**os.environ, "SOURCE_DATE_EPOCH": epoch})
        that(done.returncode == 0, done.stdout + done.stderr)
        there, here = entries(built), entries(folder)
        differing = sorted(path for path in there.keys() | here.keys() if there.get(path) != here.get(path))
        that(not differing, len(differing), "files differ:", *[(path, there.get(path), here.get(path)) for path in differing[:9]])
        that(len(there) > 900, "only", len(there), "files were compared")
        config = of.root.config["config"]
        found = json.loads(buildah("inspect", "--type", "image", "sluice:built"))["OCIv1"]["config"]
        for part in ("Entrypoint", "Env", "WorkingDir"):
            that(found[part] == config[part], part, found[part], config[part])
        # Its context has no history, and a date would make each build another image.
        wanted = {key: value for key, value in config["Labels"].items() if key.rsplit(".", 1)[1] not in ("created", "revision")}
        labels = {key: value for key, value in found["Labels"].items() if key.startswith("org.opencontainers.")}
        that(labels == wanted, labels, wanted)
    finally:
        buildah.end()


ALL = [a_build_by_the_dockerfile_has_the_files_of_the_image]
