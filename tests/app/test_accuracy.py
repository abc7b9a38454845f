"""The default settings reach their accuracy: Japanese Vowels, five seeds, choices made on validation data. Takes
minutes."""

import json

import pytest

from app_runs import run_app

SEEDS = range(5)


@pytest.mark.slow
@pytest.mark.parametrize(("encoder", "least"), [("gated_deltanet", 0.98), ("rwkv7", 0.975)])
def test_default_settings_reach_the_bar(tmp_path, encoder, least):
    seeds = ",".join(map(str, SEEDS))
    done = run_app(tmp_path, "-m", f"encoder={encoder}", f"seed={seeds}", "hydra.sweep.dir=all", timeout=3000)
    assert done.returncode == 0, done.stderr
    results = [json.loads((tmp_path / "all" / str(seed) / "metrics.json").read_text()) for seed in SEEDS]
    accuracies = [result["test_accuracy"] for result in results]
    shown = ", ".join(f"{100 * accuracy:.2f}" for accuracy in accuracies)
    mean = sum(accuracies) / len(accuracies)
    print(f"{encoder}: test accuracy {shown}; mean {100 * mean:.2f} %; "
          f"training {', '.join(str(result['fit_seconds']) for result in results)} s")
    assert mean >= least, shown
