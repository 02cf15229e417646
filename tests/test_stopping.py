import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bert_of_theseus.stopping import Stop, Stopped

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_process_at_once_or_when_it_asks(number, capfd):
    before = signal.getsignal(number)
    stop = Stop()
    with stop.listening():
        with pytest.raises(SystemExit) as end:
            os.kill(os.getpid(), number)
        assert end.value.code == 128 + number
        with stop.when_asked():
            stop.check()
            os.kill(os.getpid(), number)
            assert "Stopping after this step" in capfd.readouterr().err
            with pytest.raises(Stopped, match=f"stopped by {number.name}") as stopped:
                stop.check()
        assert stopped.value.signal == number
    assert signal.getsignal(number) is before


SECOND = """
import os, signal, sys
from bert_of_theseus.stopping import Stop
stop = Stop()
with stop.listening(), stop.when_asked():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        print("still here", flush=True)
        os.kill(os.getpid(), signal.SIGINT)
        print("and here", flush=True)
        stop.heard -= 3
        os.kill(os.getpid(), signal.SIGINT)
    finally:
        print("not here")
"""


def test_a_second_signal_ends_the_process_whatever_it_is_at():
    done = subprocess.run([sys.executable, "-c", SECOND], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (130, "still here\n")


def test_a_signal_that_torchrun_passes_on_as_well_is_not_taken_for_a_second_one():
    environment = os.environ | {"WORLD_SIZE": "2", "RANK": "0"}
    done = subprocess.run([sys.executable, "-c", SECOND], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (130, "still here\nand here\n")
