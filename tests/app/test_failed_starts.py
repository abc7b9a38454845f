"""Starts that are refused: one line with the reason, and nothing left behind."""

import os
import sys

import pytest

from app.gpu import surely_no_gpu
from app_runs import run_app, run_python
from children import needs_fork
from commands import command
from myfla.testing import cases
from runs import untrained
from streams import make_run

pytestmark = needs_fork
TABLE = ("data=table", "data.train_path=train.csv", "data.sequence=id", "data.label=kind")
QUICK = ("experiment=quick", "trainer.progress=false")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs that can be used, in a folder beside."""
    folder = tmp_path_factory.mktemp("runs")
    untrained(folder / "bidirectional")
    make_run(folder / "causal")
    return folder


def csv(*rows):
    return "id,t,x,kind\n" + "".join(row + "\n" for row in rows)


GOOD = csv(*(f"s{i},{t},{i + t / 8},{'ab'[i % 2]}" for i in range(12) for t in range(3)))
FILES = {
    "train.csv": GOOD,
    "one_class.csv": GOOD.replace(",b\n", ",a\n"),
    "few.csv": csv("s0,0,1,a", "s1,0,2,b"),
    "empty.csv": "",
    "header.csv": csv(),
    "text.csv": csv("s0,0,much,a", "s1,0,more,b"),
    "x.ts": "nonsense\n",
    "rows.csv": "id,a,b,c\n1,2,3,4\n",
    "rows.jsonl": '{"session": "a", "features": [1, 2, 3]}\n',
}

#: The command and its message; {runs} is the folder of runs.
STARTS = [
    (["encoder.num_heads=0"], "encoder.num_heads must be an integer from 1"),
    (["encoder.num_haeds=2"], "did you mean 'encoder.num_heads'?"),
    (["encodr=rwkv7"], "encodr must be a setting that exists; got 'encodr=rwkv7'; did you mean 'encoder'?"),
    (["encoder=rvkw7"], "encoder must be one of comba, delta_net, gated_deltanet, gated_deltaproduct, gdn2, gla, gru, "
     "kda, lstm, mamba2, rwkv7; got 'rvkw7'; did you mean 'rwkv7'?"),
    (["encoder.use_gate=maybe"], "encoder.use_gate must be true or false; got 'maybe'"),
    (["encoder.num_heads=four"], "encoder.num_heads must be an integer; got 'four'"),
    (["job.learning_rate=fast"], "job.learning_rate must be a number; got 'fast'"),
    (["trainer.max_epochs=null"], "trainer.max_epochs must not be null"),
    (["+encoder.width=3"], "encoder.width must be a setting that exists"),
    (["+encoder=gru"], "encoder must be given once"),
    (["job.lr=0.1"], "job.lr must be a setting that exists; got 'job.lr=0.1'; job has name, objective, learning_rate,"),
    (["batch_size=3"], "batch_size must be a setting that exists; got 'batch_size=3'; did you mean 'data.batch_size'?"),
    (["gru"], "'gru' must be a setting, written key=value"),
    (["job=trian"], "job must be one of bench, describe, encode, "),
    (["experiment=quik"], "experiment must be one of"),
    (["data=ts"], "data.train_path must be set: it names the file"),
    (["data=ts", "data.train_path=nowhere.ts"], "data.train_path must be an existing file or folder; got 'nowhere.ts'"),
    (["data=ts", "data.train_path=y.ts"], "did you mean 'x.ts'?"),
    (["data=ts", "data.train_path=x.ts", "data.test_path=z/a.ts"], "data.test_path must be an existing file or folder"),
    (["data=ts", "data.train_path=x.ts"], "x.ts"),
    (["data=text", "data.train_path=x.ts"], "text must be longer than one window"),
    (["data=text", "data.train_path=none", "job.objective=next_step"], "data.train_path must be an existing file"),
    (["data=table", "data.train_path=none.csv"], "data.train_path must be an existing file or folder; got 'none.csv'"),
    ([*TABLE, "data.label=kinds"], "data.label must be a column of"),
    ([*TABLE, "data.train_path=one_class.csv"], "at least two classes"),
    ([*TABLE, "data.train_path=few.csv"], "to validate on"),
    ([*TABLE, "data.train_path=empty.csv"], "empty.csv"),
    ([*TABLE, "data.train_path=header.csv"], "header.csv"),
    ([*TABLE, "data.train_path=text.csv", "data.features=[x]"], "text.csv"),
    ([*TABLE, "data.group=patient"], "data.group must be a column"),
    ([*TABLE, "data.label=null", "data.targets=[x]", "job.objective=classify"], "must be the same in all its rows"),
    ([*QUICK, "trainer=gpu"], "No GPU found on this machine; use trainer=cpu"),
    (["job=stream", "run={runs}/causal", "job.device=cuda"],
     "job.device=cuda: No GPU found on this machine; use job.device=cpu"),
    (["encoder=gru,lstm"], "encoder must be one value; got 'gru,lstm'; for a sweep over several say -m too, for a list "
     "write encoder=[gru,lstm]"),
    ([*QUICK, "encoder.input_size=5"], "encoder.input_size must be 12"),
    ([*QUICK, "encoder.vocab_size=5"], "encoder.vocab_size must be null"),
    ([*QUICK, "job.objective=next_step"], "encoder.direction must be causal with job.objective=next_step"),
    ([*QUICK, "run=nothing"], "run must be null with job=train; got 'nothing'"),
    ([*QUICK, "data.batch_size=0"], "data.batch_size must be an integer from 1"),
    ([*QUICK, "trainer.devices=2"], "trainer.strategy must be ddp or fsdp"),
    (["resume=true"], "run must be the folder of the run to resume, for resume=true"),
    (["resume=true", "run=nothing"], "run='nothing' must hold the config.yaml of a trained run"),
    (["resume=true", "run={runs}/bidirectional"], "it has no checkpoints/start.json"),
    (["resume=true", "run={runs}/bidirectional", "seed=3"], "seed must be left out with resume=true"),
    (["job=stream"], "run must be the folder of a finished run; got None"),
    (["job=stream", "run=nothing"], "run must be the folder of a finished run; got 'nothing', which is not a folder"),
    (["job=stream", "run=."], "which has no encoder in it"),
    (["job=stream", "run={runs}/bidirectional", "job.state=s"], "must hold an encoder that can be fed in pieces"),
    (["job=stream", "run={runs}/causal", "job.state=s", "job.input=none.jsonl", "job.output=o"],
     "job.input must be an existing file"),
    (["job=stream", "run={runs}/causal", "job.state=s", "job.input=rows.csv", "job.output=o"], "one column 'session'"),
    (["job=stream", "run={runs}/causal", "job.state=s", "job.input=rows.jsonl", "job.output=o", "job.features=[a,b]"],
     "job.features must be 3 names"),
    (["job=stream", "run={runs}/causal", "job.state=s", "job.input=rows.jsonl", "job.output=train.csv"],
     "job.output must be a new file"),
    (["job=stream", "run={runs}/causal", "job.state=s", "job.input=rows.jsonl", "job.output=train.csv/o"],
     "job.output must be a file that can be written"),
    (["job=stream", "run={runs}/causal", "job.state=s", "encoder=gru"], "encoder must be left out with job=stream"),
    (["job=stream", "run={runs}/causal", "job.state=train.csv/s", "job.input=rows.jsonl"], "job.state="),
    (["job=export", "run=nothing"], "run must be the folder of a finished run"),
    (["job=export", "run={runs}/causal", "data=s3"], "data must be left out with job=export"),
    (["job=evaluate", "run=nothing"], "run must be the folder of a finished run"),
    (["job=evaluate", "run={runs}/bidirectional", "job.input=none.ts"], "job.input must be"),
    (["job=encode", "run=nothing", "job.output=o"], "run must be the folder of a finished run"),
    (["job=encode", "run={runs}/bidirectional"], "job.output must be set: it names the folder for the embeddings; e.g. "
     "job.output=PATH"),
    (["job=encode", "run={runs}/bidirectional", "job.output=o", "job.input=none.ts"], "job.input must be"),
    (["job=bench", "job.rounds=0"], "job.rounds must be an integer from 3"),
    (["job=describe", "encoder.hidden_size=7", "encoder.expand_v=0.3"], "encoder."),
    (["hydra.run.dirr=x"], "did you mean 'hydra.run.dir'?"),
    (["hydra.run.dir=train.csv/x", "job=describe"], "hydra.run.dir must be a folder that can be written"),
    (["hydra.run.dir={runs}/done", "job=describe"],
     "hydra.run.dir must be a folder without another run's metrics.json"),
    (["-m", "encoder.num_heads=2,0", "seed=0,1"], "every job of a sweep must be able to start before any does; 2 of 4"),
    (["-m", "encoder=gru,rwkv8"], "encoder must be one of"),
    (["-m", "encoder.width=1,2"], "encoder.width must be a setting that exists"),
    (["-m", *QUICK, "data=ts", "data.train_path=x.ts,none.ts"], "got 'none.ts'"),
    (["--help", "encodr"], "--help must be followed by nothing or by one of"),
]


NO_GPU = [["trainer=gpu"], ["job=stream", "run=none", "job.device=cuda:1"]] if surely_no_gpu() else []


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@cases(start=range(0, len(STARTS), 4))
def test_a_start_that_is_refused_leaves_nothing(start, runs, tmp_path):
    refuse(start, runs, tmp_path)


@pytest.mark.slow
@cases(start=range(len(STARTS)))
def test_every_start_that_is_refused_leaves_nothing(start, runs, tmp_path):
    refuse(start, runs, tmp_path)


def refuse(start, runs, tmp_path):
    (runs / "done").mkdir(exist_ok=True)
    (runs / "done" / "metrics.json").write_text("{}")
    where = tmp_path / "here"
    where.mkdir()
    for name, text in FILES.items():
        (where / name).write_text(text)
    arguments, said = STARTS[start]
    before, others = tree(where), tree(runs)
    done = command(where, *(argument.replace("{runs}", str(runs)) for argument in arguments))
    assert done.code == 1, (done.out, done.err)
    line = done.err.splitlines()[-1]
    assert line.startswith("error: ") and said in line, line
    assert done.err.count("error") == line.count("error") and "Traceback" not in done.err
    assert "use +" not in line and "append" not in line
    assert tree(where) == before and tree(runs) == others


@cases(arguments=[["data=ts", "data.train_path=none"], ["encoder.num_haeds=3"], ["job=evaluate", "run=none"],
                  ["resume=true", "run=none"], ["-m", "encoder.num_heads=0,1"], ["--help", "data=table"],
                  ["--version"], ["encoder=gru,lstm"], ["job=encode", "run=none"], *NO_GPU])
def test_torch_is_not_loaded_to_say_so(arguments, tmp_path):
    script = "\n".join(["import atexit, os, sys", "from app.main import main",
                        "heavy = {'torch', 'numpy', 'lightning'}",
                        "atexit.register(lambda: os._exit(9) if heavy & set(sys.modules) else 0)",
                        "sys.argv = ['app', *sys.argv[1:]]", "main()"])
    paths = os.pathsep.join(path for path in sys.path if path.endswith(("src", "libs")))
    done = run_python(tmp_path, "-c", script, *arguments, environment={**os.environ, "PYTHONPATH": paths})
    assert done.returncode == (0 if arguments[0].startswith("--") else 1), done.stderr
    assert not list(tmp_path.iterdir())


def test_a_run_that_is_wrong_is_told_which_there_are(runs, tmp_path):
    place = tmp_path / "here"
    untrained(place / "outputs" / "train" / "2026-01-01" / "10-00-00")
    done = command(place, "job=evaluate", "run=outputs/train")
    assert "which has no encoder in it; trained runs here: outputs/train/2026-01-01/10-00-00" in done.err
    place = tmp_path / "bare"
    place.mkdir()
    assert "there is no trained run here; train one first" in command(place, "job=evaluate", "run=x").err


def test_a_module_of_somebody_else_is_named(tmp_path):
    (tmp_path / "encoders.py").write_text("raise SystemExit('run')\n")
    done = run_app(tmp_path, "job=describe")
    assert done.returncode == 1, done
    assert done.stderr.startswith("error: the package 'encoders' must be the one of this application; got ")
    assert str(tmp_path / "encoders.py") in done.stderr and done.stderr.endswith(
        "rename it, take its folder off PYTHONPATH, or use the command `myfla` in place of `python -m app`\n")


def test_a_first_folder_is_kept_and_files_that_were_there_stay(tmp_path):
    place = tmp_path / "here"
    (place / "mine").mkdir(parents=True)
    (place / "mine" / "notes.txt").write_text("kept")
    done = command(place, "hydra.run.dir=mine", *QUICK, "encoder.input_size=5")
    assert done.code == 1 and tree(place) == {"mine": None, "mine/notes.txt": b"kept"}
