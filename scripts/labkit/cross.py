"""The agent for another processor than this machine's, by cross-compilation.

The pinned toolchain's standard library for that processor is used where it is installed (`rustup target add`). Where it is not, it is built from its sources, which
Debian has by version: the same compiler on the same sources.
"""
import os
import re
import shutil
import subprocess
import time

from . import build, image_packages, own, packages

TARGETS = {"arm64": "aarch64-unknown-linux-gnu"}
LINKERS = {"arm64": {"gcc-aarch64-linux-gnu": "/usr/bin/aarch64-linux-gnu-gcc", "libc6-dev-arm64-cross": "/usr/aarch64-linux-gnu/include/stdlib.h"}}
# The standard library's sources. Its version is that of rust-toolchain.toml; who raises one raises the other.
SOURCES = image_packages.Package("all", "-", "Debian", "rust-src", "1.95.0+dfsg1-2~bpo13+1", 45097356,
                                 "7b76db5b880a77f9e52975d2baa6209d2f76d2c9c2789515c3088cb960e2c83b",
                                 "pool/main/r/rustc/rust-src_1.95.0+dfsg1-2~bpo13+1_all.deb")


def release(arch):
    """Builds the release binary for this architecture of Debian's names and returns its path."""
    target, linker = TARGETS[arch], LINKERS[arch]
    packages.install(linker)
    gcc = next(iter(linker.values()))
    name = target.upper().replace("-", "_")
    env = {**os.environ, f"CARGO_TARGET_{name}_LINKER": gcc, f"CC_{target.replace('-', '_')}": gcc}
    words = ["build", "--release", "--locked", "--bin", "sluice", "--target", target]
    sysroot = own.run("rustc", "--print", "sysroot", cwd=own.TREE).strip()
    if os.path.isdir(os.path.join(sysroot, "lib", "rustlib", target)):
        command = ["cargo", *words]
    else:
        own.say(f"the Rust toolchain has no standard library for {target}: building it, from Debian's rust-src (`rustup target add {target}` brings a built one)")
        own_sysroot = with_sources(sysroot)
        # `-Z` is for who builds the standard library, as here; the crate itself is compiled as everywhere.
        env |= {"RUSTC": os.path.join(own_sysroot, "bin", "rustc"), "RUSTC_BOOTSTRAP": "1"}
        command = [os.path.join(own_sysroot, "bin", "cargo"), *words, "-Z", "build-std=std,panic_abort"]
    began = time.monotonic()
    own.say(f"building the binary for {arch} ({' '.join(['cargo', *command[1:]])})")
    if subprocess.run(command, cwd=own.TREE, stdin=subprocess.DEVNULL, env=env).returncode:
        raise own.LabError(f"the build for {arch} failed; cargo says why above")
    path = os.path.join(build.target(), target, "release", "sluice")
    own.say(f"binary: {os.path.getsize(path) / 1e6:.1f} MB, {time.monotonic() - began:.0f} s")
    return path


def with_sources(sysroot):
    """A copy of the toolchain, whose own folder is left alone, with the standard library's sources where cargo looks for them; its path."""
    found = re.search(r"rustc (\S+) \((\w+)", own.run(os.path.join(sysroot, "bin", "rustc"), "--version"))
    version, commit = found.groups()
    if SOURCES.version.split("+")[0] != version:
        raise own.LabError(f"this is Rust {version}, and scripts/labkit/cross.py names the standard library of {SOURCES.version}: "
                           f"name that of {version} there, or install a built one (rustup target add)")
    folder = os.path.join(own.cache(), f"rust-{version}-{commit}")
    with own.locked("rust-sources"):
        if os.path.isdir(folder):
            return folder
        new = own.fresh(f"{folder}.new")
        for name in ("bin/rustc", "bin/cargo"):
            os.makedirs(os.path.join(new, "bin"), exist_ok=True)
            shutil.copy2(os.path.join(sysroot, name), os.path.join(new, name))
        shutil.copytree(os.path.join(sysroot, "lib"), os.path.join(new, "lib"), symlinks=True, ignore=shutil.ignore_patterns("src"))
        unpacked = own.fresh(f"{folder}.deb")
        own.run("dpkg-deb", "-x", image_packages.fetch([SOURCES])[SOURCES], unpacked)
        os.makedirs(os.path.join(new, "lib", "rustlib", "src", "rust"))
        shutil.move(os.path.join(unpacked, "usr", "src", f"rustc-{version}", "library"), os.path.join(new, "lib", "rustlib", "src", "rust", "library"))
        shutil.rmtree(unpacked)
        os.rename(new, folder)
    return folder
