"""A guest: a second kernel with IPVS on a machine that has none (qemu, emulated; a Debian kernel).

Its root is the machine's own root, read-only below a layer in memory. The guest caches that root for good: what may
change while it runs (the checkout, the build folder) must be shared, and shares are always looked up anew.

`/dev/kvm` is left alone even where it exists: under a hypervisor it often cannot start this kernel, and emulation
always can. From inside, the machine's loopback is 10.0.2.2, and there is no way to anywhere else.
"""
import json
import os
import re
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import time

from . import own, packages
from .guest_exec import FRAME, PORT

VIRTIOFSD = "/usr/lib/qemu/virtiofsd"
BOOT_SECONDS = 600
BOOT_MODULES = ["virtio_pci", "virtio_net", "virtio_rng", "overlay", "virtiofs"]
PRELOAD = ["ip_vs", "ip_vs_rr", "nf_conntrack", "nf_conntrack_netlink", "br_netfilter", "bridge", "veth", "dummy",
           "xt_set", "ip_set_hash_ip", "ip_set_hash_ipport", "ip_set_hash_ipportnet", "xt_ipvs", "iptable_filter", "iptable_nat",
           "ip6table_filter", "ip6table_nat", "nft_compat", "nft_chain_nat", "xt_comment", "xt_MASQUERADE", "sctp",
           # The emulated processor takes seconds for each that the kernel loads when it is first asked for.
           "nft_ct", "nft_fib_inet", "nft_reject_inet", "nft_limit", "nft_log", "nft_nat", "nft_masq"]
# On a busy machine the guest measures its time stamp counter wrongly while it boots, and then runs several times too
# fast; the other clock needs no measuring.
CLOCK = "clocksource=hpet tsc=unstable"
# Where the clock counts instructions, the counter of the processor is that clock, and read without a system call as on a machine.
COUNTED = "clocksource=tsc tsc=reliable"
# A processor of the guest that never leaves the kernel would hold up everybody who waits: the guest ends instead and says where it was.
# So does one whose kernel has failed: the process that met it would be gone with all it holds, and the others would wait for it. The emulator
# itself makes such failures where the guest has several processors: one may go on with a byte of code that another has replaced since (a
# breakpoint, while a kprobe comes or goes), where a processor would not. Then the kernel fails, or a process meets the breakpoint without end.
STALL = "rcupdate.rcu_cpu_stall_timeout=60 sysctl.kernel.panic_on_rcu_stall=1 oops=panic"
# Packets that wait for the processor: of a thousand, the usual number, the emulator drops some where others have its processor for a second (/proc/net/softnet_stat).
BACKLOG = "sysctl.net.core.netdev_max_backlog=100000"
# Folders below the root of which the guest has its own.
HIDDEN = {"tmp", "run", "proc", "sys", "dev"}
HERE = os.path.dirname(os.path.realpath(__file__))
LOST = 125  # exit status of an exec whose guest is gone, as in `env` and `nice`
TIMED_OUT = 124


class Guest:
    def __init__(self, name):
        if not re.fullmatch(r"[A-Za-z0-9_.-]{1,40}", name):
            raise own.LabError(f"'{name}' is no name for a guest: letters, digits, '-', '_' and '.' are")
        self.name = name
        self.folder = own.state("guests", name)

    def record(self):
        return own.read_json(f"{self.folder}/guest.json")

    def is_up(self):
        record = self.record()
        return bool(record) and own.is_alive(record["qemu"])

    # ------------------------------------------------------------------ up and down

    def up(self, series="6.1", shares=(), memory=2048, processors=2, seconds=7200, preload=PRELOAD, arguments="", counted=False):
        """Boots the guest; it is ended after `seconds` should everybody forget it.

        `preload` are kernel modules to load at the start, `arguments` more words for the kernel's command line. In a `counted` guest a
        nanosecond of its clock is one instruction of its only processor, and what waits waits as long as outside: what else this machine does changes no figure.
        """
        packages.install({**packages.TOOLS, **packages.GUEST})
        with own.locked(f"guest-{self.name}"):
            if self.is_up():
                raise own.LabError(f"the guest '{self.name}' is up already")
            began = time.monotonic()
            version, image, initrd, record = self.prepare(series, shares, preload)
            self.boot(record, self.machine(image, initrd, memory, processors, arguments, counted), seconds)
            own.say(f"guest '{self.name}' up in {time.monotonic() - began:.1f} s, kernel {version}")

    def prepare(self, series, shares, preload):
        version, image, modules = packages.kernel(series)
        own.fresh(self.folder)
        shares = self.shares(shares)
        record = {"kernel": version, "token": secrets.token_hex(16), "port": free_port(), "shares": shares,
                  "files": [], "qemu": [0, None]}
        return version, image, self.initrd(version, modules, preload, record), record

    def machine(self, image, initrd, memory, processors, arguments, counted):
        size = f"{memory}M"
        accelerator = ["tcg,thread=single,tb-size=512", "-icount", "shift=0,sleep=on,align=off"] if counted else ["tcg,thread=multi,tb-size=512"]
        return [
            "qemu-system-x86_64", "-M", "q35,memory-backend=ram", "-accel", *accelerator, "-cpu", "max",
            "-smp", str(1 if counted else processors), "-m", size, "-object", f"memory-backend-memfd,id=ram,size={size},share=on",
            "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-serial", f"file:{self.folder}/console.log", "-device", "virtio-rng-pci", "-kernel", image, "-initrd", initrd,
            "-append", f"console=ttyS0 quiet panic=-1 norandmaps mitigations=off nowatchdog {COUNTED if counted else CLOCK} {STALL} {BACKLOG} {arguments}"]

    def boot(self, record, machine, seconds):
        command = ["timeout", "-k", "5", str(seconds), *machine,
                   "-netdev", f"user,id=net,hostfwd=tcp:127.0.0.1:{record['port']}-10.0.2.15:{PORT}",
                   "-device", "virtio-net-pci,netdev=net,romfile="]
        try:
            for number, (tag, path, mode) in enumerate([("root", "/", "ro")] + record["shares"]):
                daemon, plug = self.serve_files(number, tag, path, mode)
                record["files"].append(daemon)
                command += plug
            with open(f"{self.folder}/qemu.log", "wb") as log:
                qemu = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
            record["qemu"] = own.identity(qemu.pid)
            own.write(f"{self.folder}/guest.json", json.dumps(record), 0o600)
            answers = lambda: self.execute(["/bin/true"], quiet=True, timeout=10) == 0  # noqa: E731
            if not own.wait(lambda: qemu.poll() is not None or answers(), BOOT_SECONDS, 0.1) or qemu.poll() is not None:
                raise own.LabError(f"the guest '{self.name}' did not come up:\n{self.last_words()}")
        except BaseException:
            own.end([record["qemu"], *record["files"]], grace=0.5)
            raise

    def shares(self, shares):
        """[(tag, folder, rw or ro)]; the kernels' folder comes along when the root file system of the guest does not show it."""
        wanted = [s if s.endswith((":ro", ":rw")) else s + ":rw" for s in shares]
        if os.stat(own.cache()).st_dev != os.stat("/").st_dev or os.path.realpath(own.cache()).split("/")[1] in HIDDEN:
            wanted.append(f"{own.cache()}:ro")
        return [(f"share{n}", os.path.realpath(s[:-3]), s[-2:]) for n, s in enumerate(wanted)]

    def serve_files(self, number, tag, path, mode):
        """Starts the file server of one folder: (its identity, qemu's arguments)."""
        sock, mount, log = (f"{self.folder}/{kind}{number}" for kind in ("files", "mount", "files.log"))
        os.mkdir(mount)
        # A bind mount of its own: what is mounted below (/proc, say) is not part of it, and it can be read-only.
        script = 'mount --bind "$1" "$2" && ' + ('mount -o remount,bind,ro "$2" && ' if mode == "ro" else "")
        script += f'exec {VIRTIOFSD} --socket-path="$3" -o source="$2" -o sandbox=chroot --thread-pool-size=0 -o "$4"'
        caching = "cache=always" if tag == "root" else "cache=auto,timeout=0"
        with open(log, "wb") as handle:
            daemon = subprocess.Popen(
                ["unshare", "-m", "--propagation", "private", "sh", "-c", script, "sh", path, mount, sock, caching],
                stdin=subprocess.DEVNULL, stdout=handle, stderr=handle, start_new_session=True)
        if not own.wait(lambda: os.path.exists(sock) or daemon.poll() is not None, 20) or daemon.poll() is not None:
            with open(log) as handle:
                raise own.LabError(f"the file server for {path} did not start: {handle.read()[-800:]}")
        return own.identity(daemon.pid), [
            "-chardev", f"socket,id=files{number},path={sock}", "-device", f"vhost-user-fs-pci,chardev=files{number},tag={tag}"]

    def initrd(self, version, modules, preload, record):
        """Writes the first root of this guest: busybox, the modules to reach the machine's root, and its settings."""
        root = f"{self.folder}/initrd"
        for name in ("bin", "modules", "proc", "sys", "dev"):
            os.makedirs(f"{root}/{name}")
        shutil.copy("/bin/busybox", f"{root}/bin/busybox")
        shutil.copy(f"{HERE}/guest_init.sh", f"{root}/init")
        os.chmod(f"{root}/init", 0o755)
        shutil.copy(f"{HERE}/guest_exec.py", root)
        base = modules[: modules.index("/lib/modules/")]
        order = []
        for module in BOOT_MODULES:
            for line in own.run("modprobe", "-d", base, "-S", version, "--show-depends", module).splitlines():
                path = line.split()[1] if line.startswith("insmod ") else None
                if path and path not in order:
                    order.append(path)
        for path in order:
            shutil.copy(path, f"{root}/modules/")
        own.write(f"{root}/modules/list", "".join(os.path.basename(path) + "\n" for path in order))
        own.write(f"{root}/token", record["token"])
        own.write(f"{root}/guest.conf",
                  f"NAME={self.name}\nMODULES='{modules}'\nPRELOAD='{' '.join(preload)}'\n"
                  f"SHARES='{' '.join(f'{path}:{mode}' for _, path, mode in record['shares'])}'\n")
        image = f"{self.folder}/initrd.img"
        with open(os.open(image, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as handle:
            subprocess.run("find . | cpio -o -H newc --quiet", shell=True, cwd=root, stdout=handle, check=True)
        shutil.rmtree(root)
        return image

    def down(self):
        record = self.record()
        if record:
            if own.is_alive(record["qemu"]):
                self.execute(["/bin/sh", "-c", "echo o > /proc/sysrq-trigger"], quiet=True, timeout=3)
                own.wait(lambda: not own.is_alive(record["qemu"]), 2)
            own.end([record["qemu"], *record["files"]])
        shutil.rmtree(self.folder, ignore_errors=True)

    def last_words(self, lines=15):
        text = ""
        for name in ("qemu.log", "console.log"):
            if os.path.exists(f"{self.folder}/{name}"):
                with open(f"{self.folder}/{name}", errors="replace") as handle:
                    text += "".join("  " + line for line in handle.readlines()[-lines:])
        return text

    # ------------------------------------------------------------------ commands

    def execute(self, argv, stdin=False, timeout=None, quiet=False, env=None):
        """Runs a command in the guest with our streams; its exit status. TIMED_OUT and LOST are ours."""
        record = self.record()
        if not record or not own.is_alive(record["qemu"]):
            return LOST
        request = {"token": record["token"], "argv": list(argv), "cwd": os.getcwd(), "env": env or environment()}
        deadline = time.monotonic() + timeout if timeout else None
        try:
            with socket.create_connection(("127.0.0.1", record["port"]), 10) as server:
                server.settimeout(None)
                server.sendall(json.dumps(request).encode() + b"\n")
                return follow(server, stdin, deadline, quiet)
        except OSError:
            return LOST


def environment():
    """What a command in the guest sees of our environment: all but what names places of this session."""
    drop = ("XDG_", "SSH_", "TMPDIR", "OLDPWD", "PWD")
    env = {k: v for k, v in os.environ.items() if not k.startswith(drop)}
    env["PATH"] = env.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin"
    env["SLUICE_LAB_CACHE"] = own.cache()
    return env


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def follow(server, stdin, deadline, quiet):
    """Carries the streams of one command; signals that we get are handed on to it."""
    signals = []
    previous = {}
    if stdin:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            previous[number] = signal.signal(number, lambda n, _: signals.append(n))
    else:
        server.sendall(FRAME.pack(b"e", 0))
    watch = [server] + ([0] if stdin else [])
    received = b""
    timed_out = False
    try:
        while True:
            while signals:
                word = str(int(signals.pop(0))).encode()
                server.sendall(FRAME.pack(b"s", len(word)) + word)
            left = 1.0 if deadline is None else min(1.0, deadline - time.monotonic())
            if left <= 0:
                if timed_out:
                    return TIMED_OUT
                timed_out, deadline = True, time.monotonic() + 3
                server.sendall(FRAME.pack(b"s", 1) + b"9")
                continue
            ready, _, _ = select.select(watch, [], [], left)
            if 0 in ready:
                chunk = os.read(0, 1 << 16)
                server.sendall(FRAME.pack(b"i" if chunk else b"e", len(chunk)) + chunk)
                if not chunk:
                    watch.remove(0)
            if server in ready:
                chunk = server.recv(1 << 16)
                if not chunk:
                    return LOST
                received, status = show(received + chunk, quiet)
                if status is not None:
                    return TIMED_OUT if timed_out else status
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def show(received, quiet):
    """Writes out the whole frames in `received`: (the rest, the exit status when the command has ended)."""
    while len(received) >= FRAME.size:
        kind, length = FRAME.unpack_from(received)
        if len(received) < FRAME.size + length:
            break
        payload, received = received[FRAME.size:FRAME.size + length], received[FRAME.size + length:]
        if kind == b"q":
            end = json.loads(payload)
            if "error" in end and not quiet:
                own.say(f"lab: {end['error']}")
            return received, end["status"]
        if not quiet:
            stream = sys.stdout if kind == b"o" else sys.stderr
            stream.buffer.write(payload)
            stream.flush()
    return received, None
