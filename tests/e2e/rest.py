"""Agents that have nothing to do."""
import time

import expect

SECONDS = 4


def _busy(agent):
    """The processor's time that an agent has had, in hundredths of a second (proc_pid_stat(5): `utime` and `stime`)."""
    with open(f"/proc/{agent.process.pid}/stat") as handle:
        return sum(int(ticks) for ticks in handle.read().rsplit(") ", 1)[1].split()[11:13])


def agents_with_nothing_to_do_leave_the_processor_to_others(bed):
    """What an earlier test has left them to do may take some time; a loop that comes back at once never ends."""
    shares = []
    for _ in range(6):
        before = {i: _busy(agent) for i, agent in bed.agents.items()}
        time.sleep(SECONDS)
        shares.append({i: (_busy(agent) - before[i]) / (100 * SECONDS) for i, agent in bed.agents.items()})
        if max(shares[-1].values()) < 0.5:
            print(f"       {', '.join(f'{share:.0%}' for share in shares[-1].values())} of a core", flush=True)
            return
    expect.that(False, "of a core, by agent and one after the other:", shares)
