"""The Debian packages that the lab, the demo and the tests need, and the guest's kernel."""
import glob
import os
import shutil
import subprocess

from . import own

TOOLS = {
    "iproute2": "/sbin/ip",
    "iputils-ping": "/usr/bin/ping",
    "nftables": "/usr/sbin/nft",
    "procps": "/sbin/sysctl",
    "iptables": "/usr/sbin/iptables",
    "ipset": "/usr/sbin/ipset",
    "ipvsadm": "/usr/sbin/ipvsadm",
    "conntrack": "/usr/sbin/conntrack",
    "containernetworking-plugins": "/usr/lib/cni/bridge",
    "kmod": "/sbin/modprobe",
    "util-linux": "/usr/bin/nsenter",
    "openssl": "/usr/bin/openssl",
    "ca-certificates": "/etc/ssl/certs/ca-certificates.crt",
}
GUEST = {
    "qemu-system-x86": "/usr/bin/qemu-system-x86_64",
    "qemu-system-common": "/usr/lib/qemu/virtiofsd",
    "busybox-static": "/bin/busybox",
    "cpio": "/usr/bin/cpio",
    "xz-utils": "/usr/bin/xz",
}
# Routing daemons of others. Where there is an init system Debian starts them at once, with configurations that do nothing.
SPEAKERS = {"gobgpd": "/usr/bin/gobgpd", "bird2": "/usr/sbin/bird", "frr": "/usr/lib/frr/bgpd"}
# The router outside and the client that the demo shows.
SHOWN = {"bird2": "/usr/sbin/bird", "gobgpd": "/usr/bin/gobgp"}
# Pods as a kubelet makes them, without a kubelet; busybox is all that they run.
RUNTIME = {"containerd": "/usr/bin/containerd", "runc": "/usr/sbin/runc", "busybox-static": "/bin/busybox"}
# What Kubernetes' own tests call in pods.
IN_PODS = {"curl": "/usr/bin/curl", "netcat-openbsd": "/bin/nc.openbsd", "bind9-dnsutils": "/usr/bin/dig", "wget": "/usr/bin/wget",
           "busybox-static": "/bin/busybox", "iproute2": "/sbin/ip"}
# Others that change the packet filter beside us, and who sees what a program asks of the kernel. Where there is an init system `install` keeps it
# from starting the first one, which would close the machine.
BESIDE = {"firewalld": "/usr/sbin/firewalld", "strace": "/usr/bin/strace"}
KEPT_FROM_STARTING = {"firewalld": "/etc/systemd/system/firewalld.service"}
# What reads manifests as others do.
YAML = {"python3-yaml": "/usr/lib/python3/dist-packages/yaml/__init__.py"}
# What the tests of the image judge it with: programs of others that read and start images.
IMAGE = {"umoci": "/usr/bin/umoci", "containerd": "/usr/bin/containerd", "runc": "/usr/sbin/runc", "gcc": "/usr/bin/gcc", "libc6-dev": "/usr/include/stdlib.h",
         **YAML}
# What builds by a Dockerfile, and the image that such a build begins with.
BUILDERS = {"buildah": "/usr/bin/buildah", "mmdebstrap": "/usr/bin/mmdebstrap"}
# Programs for another processor, run one by one.
OTHER_PROCESSORS = {"qemu-user": "/usr/bin/qemu-aarch64"}
COMPILER = {"gcc": "/usr/bin/gcc", "libc6-dev": "/usr/include/stdlib.h"}
# Each series of Debian's kernels for clouds, by the package that always names its newest one.
KERNELS = {"6.1": "linux-image-cloud-amd64", "6.12": "linux-image-6.12-cloud-amd64"}
# A mirror that fails once, and a program that installs something meanwhile, end nothing.
APT = ["-o", "Acquire::Retries=5", "-o", "DPkg::Lock::Timeout=600"]


def install(wanted):
    """Installs those of the packages whose file is missing. Needs root and Debian 12."""
    missing = [name for name, path in wanted.items() if not os.path.exists(path)]
    if not missing:
        return
    if os.geteuid():
        raise own.LabError(f"these Debian packages are missing and only root can install them: {' '.join(missing)}")
    with own.locked("apt"):
        own.say(f"installing Debian packages: {' '.join(missing)}")
        env = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
        for unit in [KEPT_FROM_STARTING[name] for name in missing if name in KEPT_FROM_STARTING]:
            if os.path.isdir("/run/systemd/system") and not os.path.lexists(unit):
                os.symlink("/dev/null", unit)  # `systemctl mask`
        own.run("apt-get", *APT, "update", "-q", env=env)
        own.run("apt-get", *APT, "install", "-qy", "--no-remove", "--no-install-recommends", *missing, env=env)


def kernels():
    """The unpacked kernels: [(version, its image, its modules)], by series and then by version."""
    found = []
    for modules in glob.glob(f"{own.cache()}/k/*/lib/modules/*"):
        version = os.path.basename(modules)
        root = modules[: modules.index("/lib/modules/")]
        found.append((version, f"{root}/boot/vmlinuz-{version}", modules))
    return sorted(found, key=lambda k: [int(n) for n in k[0].split("-")[0].split("+")[0].split(".")])


def kernel(series):
    """The newest unpacked kernel of a series, fetched from Debian when there is none yet."""
    def here():
        return [k for k in kernels() if k[0].startswith(series + ".")]
    if not here():
        with own.locked("kernel"):
            if not here():
                fetch_kernel(KERNELS[series])
    return here()[-1]


def fetch_kernel(package):
    own.say("fetching the guest's kernel from Debian")
    own.run("apt-get", *APT, "update", "-q")
    depends = own.run("apt-cache", "depends", package)
    names = [line.split()[1] for line in depends.splitlines() if "Depends: linux-image" in line]
    if not names:
        raise own.LabError(f"the Debian package {package} names no kernel image")
    image = names[0]
    work = f"{own.cache()}/download.{os.getpid()}"
    os.makedirs(work)
    try:
        # As root, apt wants to download as another user, who may not write here: it says so and goes on.
        own.run("apt-get", *APT, "download", "-q", image, cwd=work)
        own.run("dpkg", "-x", glob.glob(f"{work}/*.deb")[0], f"{work}/root")
        packed = glob.glob(f"{work}/root/lib/modules/**/*.ko.xz", recursive=True)
        for at in range(0, len(packed), 500):  # once here, not at every load on the emulated processor
            own.run("xz", "-d", *packed[at:at + 500])
        version = os.path.basename(glob.glob(f"{work}/root/lib/modules/*")[0])
        own.run("depmod", "-b", f"{work}/root", version)
        os.makedirs(f"{own.cache()}/k", exist_ok=True)
        os.rename(f"{work}/root", f"{own.cache()}/k/{version}")
    finally:
        shutil.rmtree(work, ignore_errors=True)


def has_ipvs():
    """Whether this machine's own kernel has IPVS, as a module or built in."""
    if os.path.exists("/proc/net/ip_vs"):
        return True
    modprobe = shutil.which("modprobe", path="/sbin:/usr/sbin:/bin:/usr/bin")
    if not modprobe or os.geteuid():
        return False
    subprocess.run([modprobe, "-q", "ip_vs"], capture_output=True)
    return os.path.exists("/proc/net/ip_vs")
