"""The command line in a forked child: as a process of its own, without the seconds that imports take."""

import os
import sys

from children import finish, start


class Done:
    """What a command left: exit code, standard output, standard error."""

    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err


def command(folder, *arguments, before=None):
    """``python -m app ARGUMENTS`` in ``folder``.

    Args:
        folder: where it runs; its output goes to files beside it.
        before: called in the child before anything else.
    """
    paths = [f"{folder}.{name}" for name in ("out", "err")]

    def work():
        os.chdir(str(folder))
        for number, path in enumerate(paths, 1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
        sys.stdout, sys.stderr = (open(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))
        sys.argv = ["app", *map(str, arguments)]
        from app.command import run_command

        if before is not None:
            before()
        code = 0
        try:
            run_command(sys.argv[1:])
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    code = finish(start(work))
    out, err = (open(path, encoding="utf-8").read() for path in paths)
    return Done(code, out, err)
