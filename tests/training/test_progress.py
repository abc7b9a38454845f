"""What is shown while a training runs."""

import io
import logging

from rich.console import Console

from app.jobs import run_job
from app_runs import QUICK, compose_app
from encoders.training.loop import progress


def shown(monkeypatch, folder, terminal, *overrides):
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=160)
    monkeypatch.setattr(progress, "Console", lambda **given: console)
    folder.mkdir(exist_ok=True)
    run_job(compose_app([*QUICK, "job.baselines=false", *overrides]), folder)
    return file.getvalue()


def test_one_bar_tells_of_every_batch_and_is_gone_at_the_end(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(progress, "_PAUSE", 0.0)
    with caplog.at_level(logging.INFO):
        text = shown(monkeypatch, tmp_path, True, "trainer.max_epochs=2", "trainer.limit_batches=3")
    for part in ("fit: epoch 1/2, batch 1/3", "fit: epoch 2/2, batch 3/3", "refit: epoch", "loss ", "val ", "tokens/s",
                 "left"):
        assert part in text, part
    assert text.rstrip().endswith("\x1b[2K"), "the last thing that is drawn clears the bar"
    lines = [record.getMessage() for record in caplog.records if "epochs  " in record.getMessage()]
    assert len(lines) == 2 and lines[0].startswith("fit: 2 epochs  loss ") and lines[1].startswith("refit: ")


def test_without_a_terminal_there_are_a_few_lines(tmp_path, monkeypatch, caplog):
    with caplog.at_level(logging.INFO):
        text = shown(monkeypatch, tmp_path / "a", False, "trainer.max_epochs=3", "job.refit=false")
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("fit: epoch")]
    assert not text and [line.split("  ")[0] for line in lines] == [f"fit: epoch {i}/3" for i in (1, 2, 3)]
    assert "batch" not in "".join(lines)
    caplog.clear()
    monkeypatch.setattr(progress, "_SILENCE", 0.0)
    with caplog.at_level(logging.INFO):
        shown(monkeypatch, tmp_path / "b", False, "trainer.max_epochs=1", "job.refit=false", "trainer.limit_batches=3")
    lines = [record.getMessage() for record in caplog.records if "batch" in record.getMessage()]
    assert [line.split("  ")[0] for line in lines if line.startswith("fit")] == [
        f"fit: epoch 1/1, batch {i}/3" for i in (1, 2, 3)], "a minute of silence is broken"
    caplog.clear()
    with caplog.at_level(logging.INFO):
        shown(monkeypatch, tmp_path / "c", True, "trainer.max_epochs=1", "job.refit=false", "trainer.progress=false")
    assert not [record for record in caplog.records if record.getMessage().startswith("fit")]
