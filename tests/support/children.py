"""Work in a forked child: to be killed, to run out of room, or to have no right to write."""

import os
import signal
import time
import traceback

import pytest

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and POSIX signals")


def start(work):
    """Fork; the child runs ``work`` and leaves with 0, or with 1 and its traceback. Returns its process number."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def finish(child):
    """Wait for a child; its exit code, negative for the signal that ended it."""
    _, status = os.waitpid(child, 0)
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def kill_after(child, seconds):
    """SIGKILL a child after a while; it must still have been at work."""
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    assert finish(child) == -signal.SIGKILL, "the writer ended by itself"


def as_nobody():
    """Give up the rights of root, for whom no folder is read-only."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
