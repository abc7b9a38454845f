"""The table of mutants (``make test-mutants``) fits the code: each line that it changes is there, once."""

import importlib.util
from pathlib import Path

from app_runs import ROOT


def tool():
    spec = importlib.util.spec_from_file_location("mutants", str(ROOT / "tools" / "mutants.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_line_to_change_is_there_once():
    mutants = tool()
    wrong = mutants.check(mutants.MUTANTS)
    assert not wrong, "\n".join([*wrong, "write these rows of tools/mutants.py anew for the code as it is now"])
    assert len(mutants.MUTANTS) >= 40 and len({row.name for row in mutants.MUTANTS}) == len(mutants.MUTANTS)


def test_every_mutant_is_still_python():
    for row in tool().MUTANTS:
        path = ROOT / row.file
        compile(path.read_text(encoding="utf-8").replace(row.old, row.new, 1), str(path), "exec")


def test_a_row_out_of_date_is_an_error(tmp_path):
    mutants = tool()
    gone = mutants.Mutant("gone", "tools/mutants.py", "no line " + "reads so", "", "tests/none.py")
    twice = mutants.Mutant("twice", "tools/mutants.py", "import", "", "tools/mutants.py")
    wrong = mutants.check([gone, twice])
    assert wrong[0] == "gone: its text is 0 times in tools/mutants.py, not once" and "tests/none.py" in wrong[1]
    assert wrong[2].startswith("twice: its text is ") and Path(ROOT / gone.file).exists()
