"""Every strategy of the family is exported: one graph for every length, and a step."""

import pytest
import torch

from app.export.formats import write_torch_export
from app.export.modules import EncoderStep, WholeEncoder
from app.export.parity import compare_whole
from myfla.testing import assert_close, cases
from small_encoders import FAMILY, small


@pytest.mark.skipif(not hasattr(getattr(torch, "compiler", None), "is_exporting"),
                    reason="torch.export as used came with PyTorch 2.7")
@pytest.mark.slow
@cases(name=FAMILY)
def test_every_strategy_has_a_stepped_graph_and_one_for_every_length(name, tmp_path):
    encoder = small(name, torch.float32, scale=0.1)
    whole, step, x = WholeEncoder(encoder), EncoderStep(encoder), torch.randn(2, 12, 3)
    with torch.no_grad():
        states = step.first_states(2)
        runner = write_torch_export(step, (x[:, :1], *states), tmp_path / "step.pt2", dynamic=False)
        hidden = []
        for t in range(12):
            out, *states = runner((x[:, t : t + 1], *states))
            hidden.append(out)
        assert_close(torch.cat(hidden, 1), encoder(x).hidden, rms=1e-5)
        runner = write_torch_export(whole, (torch.zeros(3, 101, 3),), tmp_path / "encoder.pt2", dynamic=True)
        assert compare_whole(whole, runner, [(2, 2), (1, 5), (2, 64), (3, 101), (4, 200)]) <= 1e-5
