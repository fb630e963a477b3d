"""Steps of others in the image: init containers and probes as integrators write them, the installer of CNI plugins, and modules as distributions
pack them. The scripts are in words of our own; commands, paths and order are theirs."""
import glob
import os
import re
import subprocess

from labkit import own
from root import CHROOT, said, that

CONFLIST = '{"cniVersion":"0.3.0","name":"mynet","plugins":[{"type":"bridge"}]}'
PLUGINS = ["bridge", "host-local", "loopback", "portmap"]

# The files of kube-router, k0s, kops, the chart: a list that is missing is copied from a ConfigMap, files of others go.
COPY_CONFLIST = """
set -e -x
if [ ! -f /etc/cni/net.d/10-kuberouter.conflist ]; then
  if [ -f /etc/cni/net.d/*.conf ]; then
    rm -f /etc/cni/net.d/*.conf
  fi
  TMP=/etc/cni/net.d/.tmp-kuberouter-cfg
  cp /etc/kube-router/cni-conf.json ${TMP}
  mv ${TMP} /etc/cni/net.d/10-kuberouter.conflist
fi
"""
INSTALL = """
if [ -x /usr/local/bin/cni-install ]; then
  /usr/local/bin/cni-install
fi
"""
# The generic files: the kubeconfig goes to the host by way of a temporary file too.
COPY_KUBECONFIG = """
if [ ! -f /var/lib/kube-router/kubeconfig ]; then
  TMP=/var/lib/kube-router/.tmp-kubeconfig
  cp /etc/kube-router/kubeconfig ${TMP}
  mv ${TMP} /var/lib/kube-router/kubeconfig
fi
"""


def host(of, name):
    """Folders of a host, and where the init containers see them."""
    folder = of.scratch(name)
    places = {"/etc/cni/net.d": "net.d", "/opt": "opt", "/etc/kube-router": "config", "/var/lib/kube-router": "lib"}
    for below in places.values():
        os.mkdir(f"{folder}/{below}")
    own.write(f"{folder}/config/cni-conf.json", CONFLIST)
    own.write(f"{folder}/config/kubeconfig", "kind: Config")
    return folder, {there: f"{folder}/{below}" for there, below in places.items()}


def the_init_step_of_kube_routers_files_k0s_kops_and_the_chart_runs_as_written(of):
    for shell in ("/bin/sh", "/bin/bash"):
        folder, binds = host(of, "conflist")
        own.write(f"{folder}/net.d/99-other.conf", "{}")
        for _ in range(2):  # again after a restart of the node
            done = of.root.run(shell, "-c", COPY_CONFLIST + INSTALL + COPY_KUBECONFIG, binds=binds)
            that(done.returncode == 0, said(done))
        that(os.listdir(f"{folder}/net.d") == ["10-kuberouter.conflist"], os.listdir(f"{folder}/net.d"))
        with open(f"{folder}/net.d/10-kuberouter.conflist") as handle:
            that(handle.read() == CONFLIST)
        that(sorted(os.listdir(f"{folder}/opt/cni/bin")) == PLUGINS, os.listdir(f"{folder}/opt/cni/bin"))
        that(os.listdir(f"{folder}/lib") == ["kubeconfig"], os.listdir(f"{folder}/lib"))
        done = subprocess.run([f"{folder}/opt/cni/bin/bridge"], input='{"cniVersion":"1.0.0"}', capture_output=True, text=True, env={"CNI_COMMAND": "VERSION"})
        that("supportedVersions" in done.stdout, "on the host:", said(done))


def the_init_step_of_our_manifests_installs_plugins_and_the_agents_own(of):
    ran = 0
    for path in sorted(glob.glob(f"{own.TREE}/daemonset/*.yaml")):
        with open(path) as handle:
            text = handle.read()
        for name in re.findall(r'image: "?([^"\s]+)', text):
            that(name == f"sluice:{of.version}", path, "names", name)
        found = re.search(r"command:\n\s+- /bin/sh\n\s+- -ec\n\s+- \|\n((?:          .*\n)+)", text)
        if not found:
            continue
        folder, binds = host(of, "ours")
        done = of.root.run("/bin/sh", "-ec", found[1], binds=binds)
        that(done.returncode == 0, path, said(done))
        that(sorted(os.listdir(f"{folder}/opt/cni/bin")) == sorted([*PLUGINS, "sluice-cni"]), path, os.listdir(f"{folder}/opt/cni/bin"))
        done = subprocess.run([f"{folder}/opt/cni/bin/sluice-cni"], input='{"cniVersion":"1.0.0"}', capture_output=True, text=True, env={"CNI_COMMAND": "VERSION"})
        that("supportedVersions" in done.stdout, "on the host:", said(done))
        plugin = f"{folder}/opt/cni/bin/sluice-cni"
        before = os.stat(plugin)
        # Again, in a folder that nobody can write to any more, with the plugins in it: all are there, and nothing is to be done.
        read_only = 'mount -o remount,bind,ro "$ROOT/opt"'
        done = of.root.run("/bin/sh", "-ec", found[1], binds=binds, outside=read_only)
        that(done.returncode == 0 and "sluice-cni" not in said(done), path, said(done))
        that((os.stat(plugin).st_ino, os.stat(plugin).st_mtime_ns) == (before.st_ino, before.st_mtime_ns), path, "it was copied again")
        # And without the agent's own: nobody needs it until a CNI file names it.
        os.unlink(plugin)
        for text, status in (("", 0), ('{"plugins": [{"type": "sluice-cni"}]}', 1)):
            own.write(f"{folder}/net.d/10-kuberouter.conflist", text)
            done = of.root.run("/bin/sh", "-ec", found[1], binds=binds, outside=read_only)
            that(done.returncode == status and "sluice-cni cannot be installed" in done.stderr, path, done.returncode, said(done))
        ran += 1
    that(ran >= 4, "only", ran, "manifests have an init step")


def plugins_by_tls_and_tar_come_as_the_chart_fetches_them(of):
    folder = of.scratch("fetch")
    for below in ("www", "cni-bin"):
        os.mkdir(f"{folder}/{below}")
    own.run("tar", "-C", f"{of.root.path}/usr/libexec/cni", "-czf", f"{folder}/www/plugins.tgz", "./bridge", "./loopback")
    own.run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj", "/CN=localhost",
            "-addext", "subjectAltName=DNS:localhost", "-keyout", f"{folder}/key.pem", "-out", f"{folder}/www/ca.pem")
    # A server in the container's own network: nothing leaves it.
    server = f'cd "{folder}/www" && openssl s_server -accept 4433 -cert ca.pem -key ../key.pem -WWW -quiet >/dev/null 2>&1 & sleep 1'
    script = """
    version=1
    eval "url=https://localhost:4433/plugins.tgz"
    cat >/tmp/hosts </etc/hosts || true
    wget --ca-certificate=/www/ca.pem -qO- "$url" | tar -xz -C /cni-bin
    curl -sS --cacert /www/ca.pem -o /tmp/again.tgz "$url" && tar -tzf /tmp/again.tgz
    wget -qO- "$url"; echo "without the authority: $?"
    """
    hosts = f"{folder}/hosts"
    own.write(hosts, "127.0.0.1 localhost\n")
    done = of.root.run("/bin/sh", "-c", script, binds={"/cni-bin": f"{folder}/cni-bin", "/www": f"{folder}/www"},
                       outside=f': > "$ROOT/etc/hosts"; mount --bind "{hosts}" "$ROOT/etc/hosts"; {server}')
    that(sorted(os.listdir(f"{folder}/cni-bin")) == ["bridge", "loopback"], said(done))
    that("./bridge" in done.stdout and "without the authority: 5" in done.stdout, said(done))


def cni_install(of, folder, **environment):
    return of.root.run("/usr/local/bin/cni-install", binds={"/host": folder}, environment=environment)


def cni_install_fills_an_empty_host_and_makes_the_folder(of):
    folder = of.scratch("install")
    done = cni_install(of, folder, HOST_BIN_PATH="/host/some/where")
    that(done.returncode == 0, said(done))
    for name in PLUGINS:
        that(os.stat(f"{folder}/some/where/{name}").st_mode & 0o7777 == 0o755, name)
    that(sorted(os.listdir(f"{folder}/some/where")) == PLUGINS, "nothing else:", os.listdir(f"{folder}/some/where"))


def cni_install_never_replaces_an_executable_file(of):
    folder = of.scratch("install")
    for name, mode in (("bridge", 0o755), ("portmap", 0o644), ("other", 0o755)):
        own.write(f"{folder}/{name}", "the host's", mode)
    for _ in range(2):
        done = cni_install(of, folder, HOST_BIN_PATH="/host")
        that(done.returncode == 0, said(done))
        texts = {}
        for name in os.listdir(folder):
            with open(f"{folder}/{name}", "rb") as handle:
                texts[name] = handle.read(10) == b"the host's"
        that(texts == {"bridge": True, "other": True, "portmap": False, "host-local": False, "loopback": False}, texts)


def cni_install_leaves_a_link_of_the_host_that_leads_to_a_place_which_is_not_mounted(of):
    folder = of.scratch("install")
    os.symlink("/usr/lib/cni/bridge", f"{folder}/bridge")
    done = cni_install(of, folder, HOST_BIN_PATH="/host")
    that(done.returncode == 0 and "bridge is there and stays" in done.stdout, said(done))
    that(os.readlink(f"{folder}/bridge") == "/usr/lib/cni/bridge", "the link is gone")
    that(os.path.getsize(f"{folder}/portmap") > 1000, "the others came")


def cni_install_removes_what_a_killed_run_left_and_nothing_that_another_still_writes(of):
    folder = of.scratch("install")
    for name in (".bridge.aaaaaa", ".portmap.bbbbbb", ".portmap.host"):
        own.write(f"{folder}/{name}", "half a plugin")
    for name in (".bridge.aaaaaa", ".portmap.host"):
        os.utime(f"{folder}/{name}", (0, 0))
    done = cni_install(of, folder, HOST_BIN_PATH="/host")
    hidden = sorted(name for name in os.listdir(folder) if name.startswith("."))
    that(done.returncode == 0 and hidden == [".portmap.bbbbbb", ".portmap.host"], hidden, said(done))


def cni_install_takes_plugins_from_where_it_is_told(of):
    folder = of.scratch("install")
    os.makedirs(f"{folder}/from")
    for name in PLUGINS:
        own.write(f"{folder}/from/{name}", f"mine: {name}", 0o755)
    done = cni_install(of, folder, HOST_BIN_PATH="/host/to", LOCAL_BIN_PATH="/host/from")
    with open(f"{folder}/to/bridge") as handle:
        that(done.returncode == 0 and handle.read() == "mine: bridge", said(done))


def cni_install_ends_with_1_without_a_folder_and_with_2_without_a_plugin(of):
    folder = of.scratch("install")
    own.write(f"{folder}/file", "no folder")
    done = cni_install(of, folder, HOST_BIN_PATH="/host/file/bin")
    that(done.returncode == 1 and "/host/file/bin" in done.stderr, done.returncode, said(done))
    done = cni_install(of, folder, HOST_BIN_PATH="/host/to", LOCAL_BIN_PATH="/nowhere")
    that(done.returncode == 2 and "/nowhere/bridge" in done.stderr, done.returncode, said(done))
    that(not os.listdir(f"{folder}/to"), "half a file is left:", os.listdir(f"{folder}/to"))


def cni_install_leaves_whole_plugins_also_when_two_run_at_once_or_one_is_killed(of):
    """Each in a container of its own, where processes have the same numbers."""
    folder = of.scratch("install")
    whole = {}
    for name in PLUGINS:
        with open(f"{of.root.path}/usr/libexec/cni/{name}", "rb") as handle:
            whole[name] = handle.read()
    for turn in range(4):
        words = of.root.command(["/usr/local/bin/cni-install"], {"/host": folder}, {"HOST_BIN_PATH": f"/host/{turn}"})
        running = [subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in range(3)]
        that(own.wait(lambda: os.path.isdir(f"{folder}/{turn}") and os.listdir(f"{folder}/{turn}"), 20, 0.001), "nothing was begun")
        running[0].kill()
        that([one.wait() for one in running[1:]] == [0, 0], "one of the others failed")
        for name in PLUGINS:
            with open(f"{folder}/{turn}/{name}", "rb") as handle:
                that(handle.read() == whole[name], name, "is not whole")


def cni_install_takes_an_empty_file_for_none_and_leaves_a_folder(of):
    folder = of.scratch("install")
    own.write(f"{folder}/bridge", "", 0o755)
    os.mkdir(f"{folder}/portmap")
    done = cni_install(of, folder, HOST_BIN_PATH="/host")
    that(done.returncode == 0 and os.path.getsize(f"{folder}/bridge") > 1000 and os.listdir(f"{folder}/portmap") == [], said(done))


def modules_packed_with_zstd_and_xz_are_read_also_by_the_minimal_image(of):
    folder = of.scratch("modules")
    below = f"{folder}/lib/modules/9.9/kernel"
    os.makedirs(below)
    text = '__attribute__((section(".modinfo"), used)) static const char a[] = "license=GPL\\0description=packed\\0vermagic=9.9";\n'
    own.write(f"{folder}/m.c", text)
    own.run("gcc", "-c", "-o", f"{folder}/m.ko", f"{folder}/m.c")
    for name, tool in (("zst", "zstd"), ("xz", "xz")):
        done = of.root.sh(f"{tool} -c /f/m.ko > /f/lib/modules/9.9/kernel/packed_{name}.ko.{name}", binds={"/f": folder})
        that(done.returncode == 0, said(done))
    for root in (of.root, of.minimal):
        target = f"{root.path}/tmp/m"
        own.run("cp", "-r", folder, target)
        try:
            run = [CHROOT, root.path]
            own.run(*run, "/usr/sbin/depmod", "-b", "/tmp/m", "9.9")
            for name in ("zst", "xz"):
                shown = own.run(*run, "/usr/sbin/modinfo", "-b", "/tmp/m", "-k", "9.9", f"packed_{name}")
                that("description:    packed" in shown, shown)
                shown = own.run(*run, "/usr/sbin/modprobe", "-d", "/tmp/m", "-S", "9.9", "--show-depends", f"packed_{name}")
                that(f"packed_{name}.ko.{name}" in shown, shown)
            # And it is these libraries that do it.
            library = glob.glob(f"{root.path}/usr/lib/*/libzstd.so.1")[0]
            os.rename(library, library + ".gone")
            done = subprocess.run([*run, "/usr/sbin/modinfo", "-b", "/tmp/m", "-k", "9.9", "packed_zst"], capture_output=True, text=True)
            os.rename(library + ".gone", library)
            that("description:    packed" not in done.stdout, "without the library the test has to fail:", said(done))
        finally:
            own.run("rm", "-r", target)


ALL = [the_init_step_of_kube_routers_files_k0s_kops_and_the_chart_runs_as_written, the_init_step_of_our_manifests_installs_plugins_and_the_agents_own,
       plugins_by_tls_and_tar_come_as_the_chart_fetches_them, cni_install_fills_an_empty_host_and_makes_the_folder,
       cni_install_never_replaces_an_executable_file, cni_install_leaves_a_link_of_the_host_that_leads_to_a_place_which_is_not_mounted,
       cni_install_removes_what_a_killed_run_left_and_nothing_that_another_still_writes, cni_install_takes_plugins_from_where_it_is_told,
       cni_install_ends_with_1_without_a_folder_and_with_2_without_a_plugin,
       cni_install_leaves_whole_plugins_also_when_two_run_at_once_or_one_is_killed, cni_install_takes_an_empty_file_for_none_and_leaves_a_folder, modules_packed_with_zstd_and_xz_are_read_also_by_the_minimal_image]
