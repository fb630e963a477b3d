"""What a demonstration says: titles, steps with their time, tables, and at the end what held."""
import sys
import time

BEGAN = time.monotonic()
results = []


def title(text):
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n== {text}", flush=True)


def say(text):
    print(f"  [{time.monotonic() - BEGAN:5.1f} s] {text}", flush=True)


def show(command, text):
    """A command that somebody may type, and what it printed."""
    print(f"  {command}\n" + "".join(f"    {line}\n" for line in text.splitlines()), end="", flush=True)


def hold(what, true, why=""):
    """Notes one thing that must hold, and says at once when it does not."""
    results.append((what, bool(true)))
    if not true:
        print(f"  NOT SO: {what}  {why}", flush=True)


def all_held():
    return all(true for _, true in results)


def logs(bed):
    """What the agents have to say, where not everything held."""
    if all_held():
        return
    for i in bed.agents:
        print(f"\nlog of the agent of node {i}:\n{bed.tail(i)}", flush=True)


def summary():
    title("Summary")
    for what, true in results:
        print(f"  {'ok ' if true else 'NOT'}  {what}", flush=True)
    bad = sum(not true for _, true in results)
    print(f"\n{len(results) - bad} of {len(results)} held, {time.monotonic() - BEGAN:.0f} s inside.", flush=True)
    sys.exit(1 if bad or not results else 0)
