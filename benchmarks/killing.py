"""What the scenarios of benchmarks/kills.py share: processes that are killed, and an account of what was found."""

from __future__ import annotations

import os
import random
import signal
import statistics
import sys
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from select import select

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # a process with threads must not fork

from orcawatch import cli

BEYOND = 1.1  # of the median of the lives that nobody killed: a kill comes before
AFTER_WORD = 0.5  # share of the kills that come after the first word, when it is about to change something
PATIENCE_S = 60.0
BROKEN = 70  # exit code of a process that an error ended
TELL_EVERY = 50  # kills


@dataclass
class Account:
    """What was found.

    Attributes
    ----------
    kills : so far.
    counts : how often what happened.
    faults : what must not be.
    """

    kills: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def expect(self, right: bool, fault: str) -> None:
        """Note a fault, and tell it at once."""
        if not right:
            self.faults.append(fault)
            print(f"fault after {self.kills} kills: {fault}", file=sys.stderr, flush=True)

    def count_kill(self, killed: bool, late: str) -> None:
        """One more life, which was killed, or had ended before the kill came."""
        self.kills += killed
        self.counts[late] += not killed

    def tell(self, wanted: int) -> None:
        """One line on stderr, now and then."""
        if self.kills % TELL_EVERY == 0:
            print(f"{self.kills} of {wanted} kills, {len(self.faults)} faults", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Ended:
    """How a process ended: what it told, and its exit code, or minus the number of the signal."""

    told: str
    code: int

    @property
    def killed(self) -> bool:
        """Whether SIGKILL has ended it."""
        return self.code == -signal.SIGKILL


class Forked:
    """A process forked from this one, in which everything is loaded.

    Parameters
    ----------
    call : its work, given the end of the pipe that it tells on; returns the exit code.
    """

    def __init__(self, call: Callable[[int], int]) -> None:
        self._reading, writing = os.pipe()
        self.number = os.fork()
        if self.number:
            os.close(writing)
            return
        code = BROKEN
        try:
            os.close(self._reading)
            code = call(writing)
        except BaseException:
            os.write(writing, traceback.format_exc().encode())
        finally:
            os._exit(code)

    def wait_for_word(self, longest_s: float) -> None:
        """Until it tells something, or ends."""
        select([self._reading], [], [], longest_s)

    def kill(self) -> None:
        """SIGKILL."""
        os.kill(self.number, signal.SIGKILL)

    def end(self) -> Ended:
        """Wait for its end, by the kill or by itself."""
        with os.fdopen(self._reading, errors="replace") as pipe:
            told = pipe.read()
        _, status = os.waitpid(self.number, 0)
        return Ended(told, os.waitstatus_to_exitcode(status))


def command(*words: object) -> Callable[[int], int]:
    """The work of a process: `orcawatch` with these words, which tells what it prints."""

    def work(pipe: int) -> int:
        for stream in (1, 2):
            os.dup2(pipe, stream)
        try:
            cli.main([str(word) for word in words], prog_name="orcawatch")
        except SystemExit as end:
            return end.code if isinstance(end.code, int) else int(end.code is not None)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
        return 0

    return work


class Lengths:
    """How long lives take, and how much of them is left after the first word, by kind; kills come before."""

    def __init__(self) -> None:
        self._seen: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)

    def live(self, kind: str, work: Callable[[int], int]) -> Ended:
        """A life to its end."""
        began_s = time.monotonic()
        process = Forked(work)
        process.wait_for_word(PATIENCE_S)
        word_s = time.monotonic()
        ended = process.end()
        now_s = time.monotonic()
        self._seen[kind].append((now_s - began_s, now_s - word_s))
        return ended

    def kill(self, kind: str, work: Callable[[int], int], rng: random.Random) -> Ended:
        """A life that is killed at any moment of it, or, every second time, of what follows its first word."""
        process, after_word = Forked(work), rng.random() < AFTER_WORD
        if after_word:
            process.wait_for_word(PATIENCE_S)
        time.sleep(rng.uniform(0, BEYOND * statistics.median(life[after_word] for life in self._seen[kind])))
        process.kill()
        return process.end()


def print_table(account: Account, what: str, seconds: float) -> None:
    """The account."""
    print(f"| {what}: {account.kills} kills in {seconds:.0f} s | |\n|---|---|")
    for name, count in account.counts.items():
        print(f"| {name} | {count} |")
    print(f"| faults | {len(account.faults)} |")
    for fault in account.faults[:20]:
        print(f"\n- {fault}")
