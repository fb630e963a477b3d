"""The agent for a processor, by cross-compilation where it is not this machine's.

The toolchain's standard library for that processor is used where it is installed (`rustup target add`). Where it is not, a copy of the toolchain gets one, built once from
its sources, which Debian has by version: the same compiler on the same sources. The agent is compiled as everywhere then.
"""
import os
import re
import shutil
import subprocess

from . import build, image_packages, own, packages

TARGETS = {"amd64": "x86_64-unknown-linux-gnu", "arm64": "aarch64-unknown-linux-gnu"}
LINKERS = {"amd64": {"gcc-x86-64-linux-gnu": "/usr/bin/x86_64-linux-gnu-gcc", "libc6-dev-amd64-cross": "/usr/x86_64-linux-gnu/include/stdlib.h"},
           "arm64": {"gcc-aarch64-linux-gnu": "/usr/bin/aarch64-linux-gnu-gcc", "libc6-dev-arm64-cross": "/usr/aarch64-linux-gnu/include/stdlib.h"}}
# The standard library's sources. Its version is that of rust-toolchain.toml; who raises one raises the other.
SOURCES = image_packages.Package("all", "-", "Debian", "rust-src", "1.95.0+dfsg1-2~bpo13+1", 45097356,
                                 "7b76db5b880a77f9e52975d2baa6209d2f76d2c9c2789515c3088cb960e2c83b",
                                 "pool/main/r/rustc/rust-src_1.95.0+dfsg1-2~bpo13+1_all.deb")
# What is compiled beside the standard library, of which nothing is used.
CRATE = {"Cargo.toml": '[package]\nname = "none"\nversion = "0.0.0"\nedition = "2024"\n', "src/lib.rs": "#![no_std]\n"}


def release(arch):
    """Builds the release binary for this architecture of Debian's names, which may be this machine's, and returns its path."""
    if arch == own.run("dpkg", "--print-architecture").strip():
        return build.release()
    target, linker = TARGETS[arch], LINKERS[arch]
    packages.install(linker)
    gcc = next(iter(linker.values()))
    env = {**os.environ, f"CARGO_TARGET_{target.upper().replace('-', '_')}_LINKER": gcc, f"CC_{target.replace('-', '_')}": gcc}
    cargo, sysroot = "cargo", own.run("rustc", "--print", "sysroot", cwd=own.TREE).strip()
    if not os.path.isdir(os.path.join(sysroot, "lib", "rustlib", target)):
        own_sysroot = with_library(sysroot, target)
        cargo, env["RUSTC"] = os.path.join(own_sysroot, "bin", "cargo"), os.path.join(own_sysroot, "bin", "rustc")
    return build.compiled(["build", "--release", "--locked", "--bin", "sluice"], os.path.join(target, "release"), ["--target", target], cargo, env)


def with_library(sysroot, target):
    """A copy of the toolchain, whose own folder is left alone, with a standard library for this target; its path."""
    version, commit = re.search(r"rustc (\S+) \((\w+)", own.run(os.path.join(sysroot, "bin", "rustc"), "--version")).groups()
    without = f"Rust {version} has no standard library for {target} here (`rustup target add {target}` brings one)"
    if SOURCES.version.split("+")[0] != version:
        raise own.LabError(f"{without}, and scripts/labkit/cross.py names the sources of {SOURCES.version}: name those of {version} there")
    folder = os.path.join(own.cache(), f"rust-{version}-{commit}-{target}")
    with own.locked("rust-library"):
        if os.path.isdir(folder):
            return folder
        own.say(f"{without}: building it from its sources, once")
        try:
            package = image_packages.fetch([SOURCES])[SOURCES]
        except own.LabError as error:
            raise own.LabError(f"{without}, and its sources cannot be had, which scripts/labkit/cross.py names: {error}") from error
        new = copied(sysroot, f"{folder}.new")
        unpacked = own.fresh(f"{folder}.deb")
        own.run("dpkg-deb", "-x", package, unpacked)
        os.makedirs(os.path.join(new, "lib", "rustlib", "src", "rust"))
        shutil.move(os.path.join(unpacked, "usr", "src", f"rustc-{version}", "library"), os.path.join(new, "lib", "rustlib", "src", "rust", "library"))
        shutil.rmtree(unpacked)
        into = os.path.join(new, "lib", "rustlib", target, "lib")
        os.makedirs(into)
        for path in built(new, target, commit):
            shutil.copy(path, into)
        shutil.rmtree(f"{new}.crate")
        os.rename(new, folder)
    return folder


def copied(sysroot, new):
    """The compiler and cargo, and what they need, in another folder."""
    own.fresh(new)
    os.makedirs(os.path.join(new, "bin"))
    for name in ("bin/rustc", "bin/cargo"):
        shutil.copy2(os.path.join(sysroot, name), os.path.join(new, name))
    shutil.copytree(os.path.join(sysroot, "lib"), os.path.join(new, "lib"), symlinks=True, ignore=shutil.ignore_patterns("src"))
    return new


def built(toolchain, target, commit):
    """Compiles the standard library alone; the paths of its files. Built apart, so that `RUSTC_BOOTSTRAP`, at which build scripts of other crates take what is unstable, concerns
    nobody else."""
    crate = own.fresh(f"{toolchain}.crate")
    for name, text in CRATE.items():
        os.makedirs(os.path.dirname(os.path.join(crate, name)), exist_ok=True)
        own.write(os.path.join(crate, name), text)
    # As rustup's own: optimised, with bitcode for link-time optimisation, for stable crates, and with the compiler's own name for the place of its sources. Otherwise than that one
    # it is for programs that end at a panic, as the agent's release does.
    sources = os.path.join(toolchain, "lib", "rustlib", "src", "rust")
    flags = ["-Cembed-bitcode=yes", "-Zforce-unstable-if-unmarked", f"--remap-path-prefix={sources}=/rustc/{commit}"]
    env = {**os.environ, "RUSTC": os.path.join(toolchain, "bin", "rustc"), "RUSTC_BOOTSTRAP": "1", "CARGO_TARGET_DIR": os.path.join(crate, "target"),
           "CARGO_ENCODED_RUSTFLAGS": "\x1f".join(flags), "CARGO_PROFILE_RELEASE_OPT_LEVEL": "3", "CARGO_PROFILE_RELEASE_PANIC": "abort"}
    command = [os.path.join(toolchain, "bin", "cargo"), "build", "--release", "--target", target, "-Z", "build-std=std,panic_abort"]
    if subprocess.run(command, cwd=crate, stdin=subprocess.DEVNULL, env=env).returncode:
        raise own.LabError(f"the standard library for {target} could not be built; cargo says why above")
    place = os.path.join(crate, "target", target, "release", "deps")
    return [os.path.join(place, name) for name in sorted(os.listdir(place)) if name.endswith(".rlib") and not name.startswith("libnone")]
