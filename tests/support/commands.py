"""The command line in a forked child: as a process of its own, without the seconds that imports take."""

import os
import sys
from pathlib import Path

from children import finish, start


class Done:
    """What a command left: exit code, standard output, standard error."""

    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err


def begin(folder, *arguments, before=None, given=None, out=None, err=None):
    """Begin ``python -m app ARGUMENTS`` in ``folder``; returns the number of the process.

    Args:
        folder: where it runs.
        before: called in the child before anything else.
        given: descriptor of what it reads as standard input.
        out, err: paths of the files to whose ends its standard output and standard error go; by default beside the
            folder, under its name.
    """
    paths = [str(out or f"{folder}.out"), str(err or f"{folder}.err")]

    def work():
        os.chdir(str(folder))
        if given is not None:
            os.dup2(given, 0)
        for number, path in enumerate(paths, 1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), number)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))
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

    return start(work)


def command(folder, *arguments, **settings):
    """``python -m app ARGUMENTS`` in ``folder``, until it ends; as `begin`, with outputs beside the folder."""
    paths = [f"{folder}.{name}" for name in ("out", "err")]
    for path in paths:
        Path(path).write_text("")
    code = finish(begin(folder, *arguments, **settings))
    out, err = (Path(path).read_text(encoding="utf-8") for path in paths)
    return Done(code, out, err)
