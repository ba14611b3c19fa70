"""One migration at a time on a machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

from pagefire.scripts.experiment.turn import one_at_a_time


def test_the_second_waits_for_the_first() -> None:
    order, waits = list[str](), threading.Event()

    def second() -> None:
        with one_at_a_time(waits.set, f"test-{os.getpid()}"):
            order.append("second")

    with one_at_a_time(name=f"test-{os.getpid()}"):
        thread = threading.Thread(target=second)
        thread.start()
        assert waits.wait(10)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


def test_the_turn_of_a_process_that_is_killed_is_free() -> None:
    name = f"killed-{os.getpid()}"
    code = (
        "import time; from pagefire.scripts.experiment.turn import one_at_a_time\n"
        f"with one_at_a_time(name={name!r}): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        holder.send_signal(signal.SIGKILL)
    with one_at_a_time(lambda: None, name):
        pass
