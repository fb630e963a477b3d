"""What belongs to the lab on this machine: its folders, its locks and its processes.

Processes are known by number and start time, so that a number used again by somebody else is never taken for ours.
"""
import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time

TREE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
PYTHON = "/usr/bin/python3"  # in full: what PATH says first may be a version manager's slow shim


def cache():
    """The folder for what is costly to make and good for any checkout: kernels, Kubernetes programs."""
    if "SLUICE_LAB_CACHE" in os.environ:
        return os.environ["SLUICE_LAB_CACHE"]
    if os.geteuid() == 0:
        return "/var/cache/sluice-lab"
    return os.path.join(os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache")), "sluice-lab")


def state(*names):
    """The folder of one running thing, a guest or a cluster."""
    return os.path.join(cache(), "running", *names)


def fresh(folder):
    """Makes such a folder, empty; only we may read it."""
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder, mode=0o700)
    return folder


class LabError(Exception):
    """Something that the person at the terminal must know, in one sentence."""


@contextlib.contextmanager
def locked(name):
    """Holds a lock of this machine: two that want to make the same thing make it once."""
    os.makedirs(os.path.join(cache(), "locks"), exist_ok=True)
    with open(os.path.join(cache(), "locks", name), "w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another lab that holds '{name}'")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def start_time(pid):
    """When the process started, in clock ticks since boot; None for one that is gone or a zombie."""
    try:
        with open(f"/proc/{pid}/stat") as handle:
            fields = handle.read().rsplit(")", 1)[1].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[19])


def identity(pid):
    return [pid, start_time(pid)]


def is_alive(who):
    return who[1] is not None and start_time(who[0]) == who[1]


def end(processes, grace=3.0):
    """Ends processes of ours, given as identities: asks first, then kills."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for who in processes:
            if is_alive(who):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(who[0], number)
        wait(lambda: not any(is_alive(who) for who in processes), grace)


def wait(condition, seconds, pause=0.02):
    """The first true value of `condition`, or its last value when the time is over."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value or time.monotonic() > deadline:
            return value
        time.sleep(pause)


def write(path, text, mode=0o644):
    """Replaces a file whole: a reader sees the old text or the new one."""
    temporary = f"{path}.{os.getpid()}.new"
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w") as handle:
        handle.write(text)
    os.rename(temporary, path)


def read_json(path):
    try:
        with open(path) as handle:
            return json.load(handle)
    except (OSError, ValueError):
        return None


def run(*command, text_in=None, env=None, cwd=None):
    """Runs a command to its end and returns what it printed; its failure is a LabError with its words."""
    done = subprocess.run(command, input=text_in, capture_output=True, text=True, env=env, cwd=cwd)
    if done.returncode:
        words = (done.stdout + done.stderr).strip()
        raise LabError(f"{' '.join(command[:12])}: exit status {done.returncode}: {words[-1500:]}")
    return done.stdout


def say(text):
    print(text, file=sys.stderr, flush=True)
