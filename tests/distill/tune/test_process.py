"""Programs are started with a log, and ended with all that they have started."""

import os
import subprocess
import sys
import time

from distill.tune.process import descendants, end, start, start_time, stop, tail


def wait_for(condition, seconds: float = 20.0):
    begin = time.monotonic()
    while not (found := condition()):
        assert time.monotonic() - begin < seconds
        time.sleep(0.02)
    return found


def test_the_log_has_the_command_and_all_output(tmp_path):
    code = "import os, sys; print(os.environ['X']); print('e', file=sys.stderr)"
    log = tmp_path / "logs" / "a.log"
    process = start(["python", "-uc", code], log, os.environ | {"X": "y z"})
    assert process.wait() == 0
    first, *rest = log.read_text().splitlines()
    assert first.startswith("python -uc ")
    assert sorted(rest) == ["e", "y z"]


def test_no_shell_reads_the_words(tmp_path):
    code = "import sys; print(sys.argv[1:])"
    start(["python", "-c", code, "$HOME; *", "a b"], tmp_path / "log").wait()
    assert (tmp_path / "log").read_text().splitlines()[1] == "['$HOME; *', 'a b']"


def test_stopping_ends_what_does_not_listen_and_its_children(tmp_path):
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    child = f"{deaf}; import time; time.sleep(60)"
    code = f"{deaf}; import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    process = start(["python", "-c", code], tmp_path / "log")
    below = wait_for(lambda: list(descendants(process.pid)))
    time.sleep(0.3)
    stop(process, grace=0.2)
    assert process.returncode == -9
    wait_for(lambda: start_time(below[0][0]) != below[0][1])


def test_only_the_process_that_is_meant_is_ended():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    started = start_time(process.pid)
    assert not end(process.pid, "1")
    assert process.poll() is None
    assert end(process.pid, started)
    assert process.wait() == -9
    assert start_time(process.pid) is None


def test_a_tail_has_the_last_state_of_a_bar(tmp_path):
    (tmp_path / "log").write_bytes(b"one\n10%\r50%\rdone \xff\n")
    assert tail(tmp_path / "log", 2) == "done \ufffd"
