"""Ctrl-C, SIGTERM and SIGHUP: what they interrupt, and what they only ask to end."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

from bert_of_theseus.distributed import is_launched, largest, rank

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # the last where a terminal is closed


class Stopped(Exception):
    """A signal has asked for the end, and all processes have agreed to it.

    Attributes:
        signal: its number.
    """

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.signal = number


class Stop:
    """Whether the user, or the machine, wants the run to end.

    A signal ends the process with status 128 + its number: at once, or, within `when_asked`, as soon as the process
    asks; a second signal at once.
    """

    def __init__(self):
        self.signal, self.heard = 0, 0.0
        self.can_wait = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within the block the signals come here."""
        self.terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]
        # What is ignored, as nohup lets SIGHUP be, stays so.
        heeded = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        before = [(number, signal.signal(number, self._heed)) for number in heeded]
        try:
            yield
        finally:
            for number, handler in before:
                signal.signal(number, handler)

    def _heed(self, number: int, frame: object) -> None:
        name = signal.Signals(number).name
        if number == signal.SIGHUP:  # a closed terminal takes no more text
            for descriptor in self.terminals:
                os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
        if not self.can_wait:
            self._say(f"Stopped by {name}; nothing more is saved")
            raise SystemExit(128 + number)
        if self.signal:
            # A signal to a whole job comes to each process a second time, from torchrun.
            if is_launched() and time.monotonic() < self.heard + 2:
                return
            self._say(f"Stopped at once by {name}; nothing more is saved")
            os._exit(128 + number)
        self.signal, self.heard = number, time.monotonic()
        self._say("Stopping after this step; a second signal stops at once")

    def _say(self, text: str) -> None:
        if rank() == 0:  # not by print, amid whose work on the same stream this may be
            os.write(2, f"\n{text}\n".encode())

    @contextmanager
    def when_asked(self) -> Iterator[None]:
        """Within the block a first signal ends nothing until `check` is called."""
        self.can_wait = True
        try:
            yield
        finally:
            self.can_wait = False

    def check(self) -> None:
        """Raise Stopped, in all processes, where a signal has reached one of them."""
        number = int(largest(self.signal))
        if number:
            self.signal = number
            raise Stopped(number)
