"""What failed, read from what test programs print."""
import re


class Failures:
    """What failed in one stage and the first words of why, read from what runs: said once more at the end, thousands of lines later."""
    # A test of Rust's, one of the others, and where the reason of each stands.
    TEST, OTHER = re.compile(r"test (\S+) \.\.\. FAILED"), re.compile(r"FAILED +(.+?) \(")
    STDOUT, PANIC, PASSED = re.compile(r"---- (\S+) stdout ----"), re.compile(r"thread .* panicked at "), re.compile(r"ok +.+ \(\d")
    ERROR = re.compile(r"([\w.]*(Error|Exception)|error)\b")
    LINES, LENGTH = 5, 1000

    def __init__(self):
        self.all = []  # (name, lines that say why) in the order in which they failed
        self.reason, self.more = None, 0  # the lines that are being filled, and how many more say why
        self.early = None  # a reason that was said before what it is of

    def hear(self, line):
        if found := self.TEST.match(line):
            self.add(found[1])
        elif found := self.OTHER.match(line):
            self.add(found[1], *([self.early] if self.early else []))
        elif found := self.STDOUT.match(line):
            self.reason = next((reason for name, reason in reversed(self.all) if name == found[1]), None)
        elif self.PASSED.match(line):
            self.reason = self.early = None
        elif self.more:
            self.more = 0 if line.startswith("stack backtrace") else self.more - 1
            self.reason += [line] * bool(self.more)
        elif self.reason == [] and self.PANIC.match(line):
            self.more = self.LINES
        elif self.ERROR.match(line) and self.reason == []:
            self.reason.append(line)
        elif self.ERROR.match(line) and self.reason is None:
            self.early = line

    def add(self, name, *reason):
        self.all.append((name, list(reason)))
        self.reason, self.more, self.early = self.all[-1][1], 0, None

    def lines(self):
        for name, reason in self.all:
            yield f"FAILED {name}: {' '.join(' '.join(reason).split())[:self.LENGTH]}"
