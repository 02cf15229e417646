"""Ctrl-C, SIGTERM and SIGHUP: a run ends at once, or, while it trains, after the step."""

import os
import signal
import time

from torch.distributed import is_torchelastic_launched

from bert_of_theseus.run.processes import is_main, largest

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # SIGHUP: the terminal was closed


class StopSignals:
    """Listens to the signals that ask a process to end, from `listen` to `close`.

    A signal ends the process with status 128 + its number: at once, or, when `can_wait` is set, once the process asks
    `requested`. A second signal ends it at once.

    Attributes:
        signal: the number of the signal that asked for the end; 0 if none has.
        can_wait: whether the process is going to ask.
    """

    def __init__(self):
        self.signal = 0
        self.can_wait = False
        self._received = 0.0  # when, in seconds of the monotonic clock
        self._previous: dict[int, object] = {}

    def listen(self) -> None:
        self._terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores SIGHUP: that must stay so
                self._previous[number] = signal.signal(number, self._handle)

    def close(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def requested(self) -> bool:
        """Whether a signal has reached this process or another one of the run. All processes get the same answer."""
        agreed = int(largest(self.signal))
        if agreed:  # never reset: a signal can arrive while the processes agree
            self.signal = agreed
        return bool(agreed)

    def name(self) -> str:
        return signal.Signals(self.signal).name

    def _handle(self, number: int, frame: object) -> None:
        if number == signal.SIGHUP:  # nothing can be written to a closed terminal
            for descriptor in self._terminals:
                os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
        if not self.can_wait:
            self._say(f"Stopped by {signal.Signals(number).name}; nothing more is saved")
            raise SystemExit(128 + number)
        if self.signal:
            # torchrun, also of one process, passes a signal on that has reached the whole group of processes already.
            if is_torchelastic_launched() and time.monotonic() < self._received + 2:
                return
            self._say(f"Stopped at once by {signal.Signals(number).name}; nothing more is saved")
            os._exit(128 + number)
        self.signal, self._received = number, time.monotonic()
        self._say("Stopping after this step, or when the evaluation is done; a second signal stops at once")

    def _say(self, text: str) -> None:
        if is_main():  # not by print: the signal may have interrupted a print to the same stream
            os.write(2, f"\n{text}\n".encode())
