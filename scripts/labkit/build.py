"""Builds of the project for the demo and the tests: toolchains checked, one release binary, progress shown."""
import glob
import os
import re
import shutil
import subprocess
import time

from . import own, packages

RUST, GO = (1, 95), (1, 26)
CARGO_DENY = "0.20.2"


def target():
    return os.environ.get("CARGO_TARGET_DIR") or os.path.join(own.TREE, "target")


def toolchain(program, least, where):
    """Checks that a toolchain is there and new enough, and says what it is."""
    path = shutil.which(program)
    if not path:
        raise own.LabError(f"{program} is not in PATH: {where}")
    text = own.run(path, "version" if program == "go" else "--version", cwd=own.TREE).strip()
    found = re.search(r"(\d+)\.(\d+)", text)
    if not found or tuple(map(int, found.groups())) < least:
        raise own.LabError(f"{text}: at least {least[0]}.{least[1]} is needed; {where}")
    own.say(text)


def rust():
    packages.install(packages.COMPILER)
    toolchain("cargo", RUST, f"install Rust {RUST[0]}.{RUST[1]} or newer (rustup.rs)")


def go():
    toolchain("go", GO, f"install Go {GO[0]}.{GO[1]} or newer (go.dev/dl)")


def release(profile="release"):
    """Builds the binary by this profile of Cargo.toml and returns its path."""
    return compiled(["build", "--profile", profile, "--locked", "--bin", "sluice"], profile)


def compiled(words, folder, target_words=(), cargo="cargo", env=None):
    """Runs cargo with these words, those of `target_words`, which name another processor, behind them; the path of the binary, in this folder of the target.

    The compiler gets the flags that the environment names, and ours behind them. What a cargo configuration has in `build.rustflags` or for a target does not count: it never
    does beside flags of the environment, of which there are some here in any case."""
    began = time.monotonic()
    words = [*words, *target_words]
    own.say(f"building the binary (cargo {' '.join(words)})")
    env = env or {**os.environ}
    # Our flags name the folders of crates, which are there from here on: to show the tree, cargo unpacks what the build takes, build scripts' crates too. `cargo fetch` would
    # want those of tests as well, and of every other system, which a mirror that builds have filled may lack.
    shown = [cargo, "tree", "--locked", "--quiet", "--edges", "normal,build", *target_words]
    if subprocess.run(shown, cwd=own.TREE, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=env).returncode:
        raise own.LabError("the crates cannot be had; cargo says why above")
    env["CARGO_ENCODED_RUSTFLAGS"] = "\x1f".join([*flags_of(env), *without_places()])
    env.pop("RUSTFLAGS", None)
    if subprocess.run([cargo, *words], cwd=own.TREE, stdin=subprocess.DEVNULL, env=env).returncode:
        raise own.LabError(f"cargo {' '.join(words)} failed; it says why above")
    path = os.path.join(target(), folder, "sluice")
    own.say(f"binary: {os.path.getsize(path) / 1e6:.1f} MB, {time.monotonic() - began:.0f} s")
    return path


def flags_of(env):
    """The compiler's flags that an environment names, as cargo reads them: where the first variable is set, even to nothing, the second one does not count."""
    if "CARGO_ENCODED_RUSTFLAGS" in env:
        return [flag for flag in env["CARGO_ENCODED_RUSTFLAGS"].split("\x1f") if flag]
    return env.get("RUSTFLAGS", "").split()


def without_places():
    """The compiler's flags by which no place of this machine is in a program: of what panics can name the path is that below `/src`, `/target` and `/crates`, whoever builds it.
    The last one that fits counts."""
    home = os.environ.get("CARGO_HOME") or os.path.expanduser("~/.cargo")
    crates = glob.glob(os.path.join(glob.escape(home), "registry", "src", "*"))  # one for each registry or mirror of it
    names = {home: "/cargo", **{folder: "/crates" for folder in sorted(crates)}, own.TREE: "/src", os.path.abspath(target()): "/target"}
    return [f"--remap-path-prefix={folder}={name}" for folder, name in names.items()]


def cargo_deny():
    """Builds `cargo deny` once and returns its path."""
    root = os.path.join(own.cache(), f"cargo-deny-{CARGO_DENY}")
    path = os.path.join(root, "bin", "cargo-deny")
    with own.locked("cargo-deny"):
        if not os.path.exists(path):
            own.say("building cargo-deny (from source, once; minutes on a cold machine)")
            # It judges a lock file: how fast does not matter.
            env = {**os.environ, "CARGO_TARGET_DIR": os.path.join(root, "target"), "CARGO_PROFILE_RELEASE_LTO": "off", "CARGO_PROFILE_RELEASE_OPT_LEVEL": "1"}
            words = ["nice", "-n", "10", "cargo", "install", "--locked", "--version", CARGO_DENY, "--root", root, "cargo-deny"]
            # Beside the tree, whose toolchain is pinned for the project alone.
            done = subprocess.run(words, cwd="/", stdin=subprocess.DEVNULL, env=env)
            shutil.rmtree(os.path.join(root, "target"), ignore_errors=True)
            if done.returncode:
                raise own.LabError("building cargo-deny failed; cargo says why above")
    return path
