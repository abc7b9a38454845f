"""The benchmarks run, say what is missing, and take their floors from what is really multiplied."""

import json
import sys
from pathlib import Path

import pytest
import torch

from app_runs import run_python

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks import document, floors, inputs, measure, peers, registry, report  # noqa: E402
from benchmarks.cases_varlen import lengths_of, mask_of  # noqa: E402
from benchmarks.memory import peaks  # noqa: E402
from benchmarks.rows import Row  # noqa: E402

from myfla.testing import assert_close, cases, raises  # noqa: E402
from myfla.utils.native import missing_native  # noqa: E402


def _bench(folder, *arguments, first=()):
    """``python -m benchmarks``, with some folders before all others on the path."""
    code = f"import sys; sys.path[:0] = {[str(p) for p in (*first, ROOT, ROOT / 'libs')]!r}; import runpy;"
    code += f" sys.argv[1:] = {[*arguments, '--out', str(folder)]!r};"
    code += " runpy.run_module('benchmarks', run_name='__main__')"
    return run_python(folder, "-c", code)


def test_a_quick_run_prints_a_table_and_writes_json(tmp_path):
    done = _bench(tmp_path, "ops", "rwkv7", "decode", "layer", "varlen", "packing", "--quick", "--no-memory")
    assert done.returncode == 0, done.stderr
    for part in ("==== ops ====", "gated delta rule | 1 x 40 x 2 x 16 | float32 | forward | 1 thread"):
        assert part in done.stdout, done.stdout
    content = json.loads((tmp_path / "benchmarks_cpu.json").read_text())
    assert content["machine"]["torch"] and content["options"]["quick"] is True
    rows = content["rows"]
    ours = [row for row in rows if row["side"] == "myfla"]
    assert {row["section"] for row in ours} == {"ops", "rwkv7", "decode", "layer"}
    for row in ours:
        assert row["status"] == "ok" and row["samples"] == 2 and row["ratio"] == 1.0, row
        assert row["fastest"] <= row["seconds"] and row["tokens_per_second"] > 0
    assert all(row["share"] > 0 for row in ours if row["dtype"] == "float32")
    assert [report.table([Row(**row)]) for row in rows]  # what was written can be read and shown again
    loops = [row for row in rows if row["section"] in ("ops", "rwkv7") and row["side"] == "token loop"]
    loops += [row for row in rows if row["section"] == "decode" and row["side"] == "plain operations"]
    assert len(loops) == 5 and all(row["error"] < 1e-5 for row in loops)  # other code, the same result


def test_the_compiled_kernels_are_measured_or_missed_with_the_reason(tmp_path):
    done = _bench(tmp_path, "native", "--quick", "--no-memory")
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "benchmarks_cpu.json").read_text())["rows"]
    works = {"forward", "forward + backward", "step in place", "decoding, one row", "training step", "prefill"}
    assert {row["work"] for row in rows} - {"decode", "train"} == works
    assert all(row["status"] == "ok" for row in rows if row["side"] == "myfla")
    for row in (row for row in rows if row["side"] == "myfla native"):
        assert row["seconds"] > 0 if missing_native() is None else "myfla-native" in row["reason"], row


def test_members_of_the_family_run_beside_the_gated_rule_and_their_peers(tmp_path):
    done = _bench(tmp_path, "family", "--quick", "--no-memory", "--only", "KDA", "GDN-2")
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "benchmarks_cpu.json").read_text())["rows"]
    assert {row["op"] for row in rows} == {"KDA", "GDN-2"}
    for side in ("myfla", "gated delta rule"):
        mine = [row for row in rows if row["side"] == side]
        assert len(mine) == 4 and all(row["status"] == "ok" and row["ratio"] > 0 for row in mine)
    peers = [row for row in rows if row["side"] in ("transformers chunk", "attn_gym chunk")]
    assert len(peers) == 4 and all(row["status"] == "missing" or row["error"] < 1e-5 for row in peers)


def test_a_peer_that_cannot_be_imported_is_reported_as_missing(tmp_path):
    broken = tmp_path / "first" / "transformers"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ValueError('broken on purpose')\n")
    asked = ("decode", "layer", "hf", "--quick", "--no-memory", "--threads", "1,2")
    done = _bench(tmp_path, *asked, first=[tmp_path / "first"])
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "benchmarks_cpu.json").read_text())["rows"]
    missing = [row for row in rows if row["side"].startswith("transformers")]
    assert {row["section"] for row in missing} == {"decode", "layer", "hf"}
    assert {row["threads"] for row in missing} == {1, 2}
    for row in missing:
        assert row["status"] == "missing" and row["reason"] == "ValueError: broken on purpose", row
    assert "transformers recurrent  missing: ValueError: broken on purpose" in done.stdout, done.stdout


def test_a_side_that_fails_is_not_called_missing():
    def fails():
        raise RuntimeError("out of\n memory")

    sides = [measure.Side("bad", lambda: fails), measure.Side("good", lambda: int)]
    timings = measure.time_in_turn(sides, 3, 1.0, "cpu")
    assert (timings["bad"].status, timings["bad"].reason) == ("failed", "RuntimeError: out of memory")
    assert timings["good"].status == "ok" and len(timings["good"].wall) == 3


def test_sides_take_turns_and_patience_ends():
    calls = []

    def slow(name):
        def work():
            calls.append(name)
            end = measure.time.perf_counter() + 0.03
            while measure.time.perf_counter() < end:
                pass

        return lambda: work

    sides = [measure.Side(name, slow(name)) for name in "ab"]
    timings = measure.time_in_turn(sides, 3, 100.0, "cpu")
    assert calls == list("aaabbb" + "ab" * 3)  # untimed three times, then three rounds
    assert [(len(timing.wall), len(timing.process)) for timing in timings.values()] == [(3, 3), (3, 3)]
    assert len(measure.time_in_turn(sides, 9, 0.0, "cpu")["a"].wall) == 1  # one run already takes longer


def test_a_run_that_is_slow_once_does_not_decide_how_often_it_is_repeated(monkeypatch):
    seconds = iter([0.5] + [1e-3] * 1000)
    monkeypatch.setattr(measure, "_sample", lambda work, repeat, device: (next(seconds), work()))
    timings = measure.time_in_turn([measure.Side("x", lambda: lambda: 0.0)], 2, 1.0, "cpu")
    assert next(seconds) == 1e-3 and timings["x"].repeat == 20


def test_what_works_in_place_is_compared_after_one_run():
    total, found = torch.zeros(()), []
    works = {"new": lambda: torch.ones(()), "in place": lambda: total.add_(1)}
    sides = [measure.Side(name, lambda work=work: work) for name, work in works.items()]
    measure.time_in_turn(sides, 2, 1.0, "cpu", lambda got, want: found.append((got.item(), want.item())))
    assert found == [(1.0, 1.0)]


def test_hiding_a_module_lasts_for_the_block_only():
    import json as before

    with peers.hidden("json", "no_such_module_at_all"), raises(ImportError):
        import json  # noqa: F401
    import json as after

    assert before is after and "no_such_module_at_all" not in sys.modules


def test_an_unknown_section_is_refused(tmp_path):
    done = _bench(tmp_path, "opps")
    assert done.returncode == 2 and "unknown section 'opps' on cpu; choose from ops, rwkv7, decode" in done.stderr


def _counted(call):
    counter = pytest.importorskip("torch.utils.flop_counter", reason="this PyTorch counts no flops")
    with counter.FlopCounterMode(display=False) as mode:
        result = call()
    return mode.get_total_flops(), result


@cases(chunk=[16, 24], key=[8, 12], value=[8, 20])
def test_the_floor_of_the_gated_delta_rule_counts_the_naive_forms_products(chunk, key, value):
    from myfla.ops.gated_delta_rule import naive_chunk_gated_delta_rule

    batch, heads, chunks = 2, 3, 4
    q, k = (torch.randn(batch, chunk * chunks, heads, key, requires_grad=True) for _ in range(2))
    v = torch.randn(batch, chunk * chunks, heads, value, requires_grad=True)
    g = -torch.rand(batch, chunk * chunks, heads)
    state = torch.randn(batch, heads, key, value, requires_grad=True)

    def call():
        return naive_chunk_gated_delta_rule(q, k, v, g, -g, chunk, initial_state=state, output_final_state=True)

    products = floors.gated_delta_rule_products(chunk, key, value)
    matrices = batch * heads * chunks
    seen = sum(product.dense for product in products if not product.solve)  # a solve is not counted
    forward, (o, final) = _counted(call)
    assert forward == matrices * seen
    # Each product has two of its size as backward; the backward of the solve is a solve and one product.
    solve = sum(product.dense for product in products if product.solve)
    total, _ = _counted(lambda: torch.autograd.grad([o, final], [q, k, v, state], [o, final]))
    assert total == matrices * (2 * seen + solve)


@cases(chunk=[8, 16], key=[8, 12], value=[8, 20])
def test_the_floor_of_rwkv7_counts_the_products_of_its_chunk_form(chunk, key, value):
    from myfla.ops.generalized_delta_rule.dplr.naive import dplr_recurrence

    torch.manual_seed(0)
    batch, heads, chunks = 2, 3, 2
    q, k, a, b, gk = (0.3 * torch.randn(batch, heads, chunk * chunks, key).double() for _ in range(5))
    gk, v = -0.1 * gk.abs(), torch.randn(batch, heads, chunk * chunks, value).double()
    state = torch.randn(batch, heads, key, value).double()
    want, final = dplr_recurrence(q, k, v, a, b, gk, state)
    flops, (o, last) = _counted(lambda: _chunk_form(q * key**-0.5, k, v, a, b, gk, state, chunk))
    assert_close(o, want, rms=1e-10)
    assert_close(last, final, rms=1e-10)
    products = floors.rwkv7_products(chunk, key, value)
    assert flops == batch * heads * chunks * sum(product.dense for product in products if not product.solve)


def _chunk_form(q, k, v, a, b, gk, state, chunk):
    """RWKV-7 as matrix products, for mild decays: the factors of a pair's decay are divided between the two."""
    outputs = []
    for x in range(0, q.shape[2], chunk):
        qc, kc, vc, ac, bc, gc = (t[:, :, x : x + chunk] for t in (q, k, v, a, b, gk))
        c = gc.cumsum(2)
        read, early, back = qc * c.exp(), ac * (c - gc).exp(), (-c).exp()
        k_back, b_back = (kc * back).transpose(2, 3), (bc * back).transpose(2, 3)
        right = (early @ k_back).tril(-1) @ vc + early @ state
        u = torch.linalg.solve_triangular(-(early @ b_back).tril(-1), right, upper=False, unitriangular=True)
        outputs.append(read @ state + (read @ k_back).tril() @ vc + (read @ b_back).tril() @ u)
        whole = c[:, :, -1:].exp()
        state = whole.transpose(2, 3) * state + (whole * kc * back).transpose(2, 3) @ vc
        state = state + (whole * bc * back).transpose(2, 3) @ u
    return torch.cat(outputs, 2), state


@cases(op=["gated delta rule", "RWKV-7"])
def test_a_triangle_needs_as_many_products_as_it_has_entries(op):
    chunk, key, value = 16, 8, 20
    below, up_to = (int(torch.ones(chunk, chunk).tril(diagonal).sum()) for diagonal in (-1, 0))
    products = floors.PRODUCTS[op](chunk, key, value)
    triangles = [product for product in products if product.triangle]
    by_entry = (below + up_to) * (key + value) * len(triangles) // 4  # of each pair one without, one with the diagonal
    dense = sum(product.dense for product in products if not product.triangle)
    assert sum(product.needed for product in products) == 2 * by_entry + dense
    shape = (2, 48, 3, key, value)
    forward = floors.op_flops(op, *shape, backward=False)
    assert forward == 2 * 3 * 3 * (2 * by_entry + dense)  # 2 rows, 3 heads, 3 chunks
    assert floors.op_flops(op, *shape, backward=True) == 3 * forward
    large = sum(product.dense for product in floors.PRODUCTS[op](64, key, value))
    assert floors.dense_flops(op, *shape, backward=False) == 2 * 3 * large * 48 / 64


def test_the_floor_of_the_layer_counts_its_projections():
    from myfla.layers import GatedDeltaNet

    hidden, heads, key, tokens = 32, 3, 8, 10
    layer = GatedDeltaNet(hidden_size=hidden, head_dim=key, num_heads=heads)
    own = [m for m in layer.children() if isinstance(m, torch.nn.Linear)]
    multiplied = 2 * tokens * sum(m.weight.numel() for m in own)
    op = floors.op_flops("gated delta rule", 1, tokens, heads, key, 2 * key, backward=True)
    assert floors.layer_flops(tokens, hidden, heads, key, 2 * key) == 3 * multiplied + op
    assert floors.state_bytes(2, 3, 4, 5) == 2 * torch.zeros(2, 3, 4, 5).numel() * 4


@cases(op=["gated delta rule", "RWKV-7"], side=["myfla", "token loop", "myfla recurrent"], work=list(inputs.WORKS))
def test_own_implementations_compute_the_same(op, side, work):
    tensors = inputs.INPUTS[op](2, 40, 2, 16, torch.float32, "cpu")
    results = [inputs.WORKS[work](registry.load_op(op, name), tensors)() for name in ("token loop", side)]
    assert len(results[0]) == (1 if work == "forward" else 1 + len(tensors))
    assert inputs.largest_error(results[1], results[0]) < 2e-6


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_peak_memory_grows_with_the_work():
    spec = dict(op="gated delta rule", side="myfla", work="forward", dtype="float32", threads=1)
    found, reason = peaks({**spec, "shapes": [(1, 1024, 4, 64), (1, 16384, 4, 64)]}, timeout=120)
    output = 4 * 64 * 4  # bytes for a token of the result, which must be there at the end
    assert reason == "" and 1024 * output <= found[0] < 50 * 1024 * output, found
    assert 0.9 * 15360 * output < found[1] - found[0] < 50 * 15360 * output, found
    found, reason = peaks({**spec, "side": "no such side", "shapes": [(1, 16, 1, 16)]}, timeout=120)
    assert found == [] and reason == "KeyError: 'no such side'"


def test_tables_go_between_their_marks(tmp_path):
    path = tmp_path / "doc.md"
    path.write_text("a\n<!-- benchmark cpu ops -->\nold\n<!-- end cpu ops -->\nb\n")
    case = ("ops", "rule", "1 x 2", "forward", "float32", 1)
    row = Row(*case, "myfla", seconds=0.5, ratio=1.0, peak_bytes=2e6, share=0.25, goal="twice the speed")
    slow, gone = Row(*case, "loop", seconds=1.0, ratio=2.0), Row(*case, "peer", status="missing", reason="no module")
    part = Row(*case[:3], "backward", *case[4:], "loop", status="not run", reason="too slow")
    document.insert(path, {"cpu ops": report.markdown([row, slow, gone, part])})
    text = path.read_text()
    assert text.startswith("a\n<!--") and text.endswith("<!-- end cpu ops -->\nb\n") and "old" not in text
    assert "| rule, float32 | myfla | share of floor | loop |" in text
    assert "| 1 x 2, forward, 1 thread | 500.0 (2.0 MB) | 0.25 | 1000 (2.00x) |" in text
    assert "- loop not run: too slow" in text and "peer" not in text and "twice the speed" not in text
    document.insert(path, {"cpu ops": "new"})
    assert path.read_text() == "a\n<!-- benchmark cpu ops -->\nnew\n<!-- end cpu ops -->\nb\n"
    with raises(ValueError, "no lines '<!-- benchmark cpu decode -->'", "add them where the table belongs"):
        document.insert(path, {"cpu decode": "x"})


def test_results_of_another_machine_go_into_the_document(tmp_path):
    case = ("ops", "rule", "1 x 2", "forward", "bfloat16", 0)
    rows = [Row(*case, "myfla", seconds=0.001).to_json(), Row(*case, "peer", seconds=0.004, ratio=4.0).to_json()]
    facts = {"processor": "p", "cores": 1, "instructions": [], "load": None, "python": "3", "time": "now", "gpu": "G1"}
    saved = {"machine": facts, "options": {"device": "cuda"}, "rows": rows}
    (tmp_path / "saved.json").write_text(json.dumps(saved))
    (tmp_path / "doc.md").write_text("<!-- benchmark cuda ops -->\n<!-- end cuda ops -->\n")
    done = _bench(tmp_path, "--results", str(tmp_path / "saved.json"), "--markdown", str(tmp_path / "doc.md"))
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "doc.md").read_text()
    assert "Measured on G1" in text and "| 1 x 2, forward | 1.00 | 4.00 (4.00x) |" in text, text
    assert not (tmp_path / "benchmarks_cpu.json").exists()


def test_results_of_several_runs_become_one_table(tmp_path):
    facts = {"processor": "p", "cores": 1, "instructions": [], "load": None, "python": "3", "time": "now"}
    for i, shape in enumerate(("1 x 2", "1 x 4")):
        rows = [Row("ops", "rule", shape, "forward", "float32", 1, "myfla", seconds=0.001 * (i + 1)).to_json()]
        saved = {"machine": {**facts, "time": f"time{i}"}, "options": {"device": "cpu"}, "rows": rows}
        (tmp_path / f"{i}.json").write_text(json.dumps(saved))
    (tmp_path / "doc.md").write_text("<!-- benchmark cpu ops -->\n<!-- end cpu ops -->\n")
    files = [str(tmp_path / f"{i}.json") for i in range(2)]
    done = _bench(tmp_path, "--results", *files, "--markdown", str(tmp_path / "doc.md"))
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "doc.md").read_text()
    for part in ("time0", "| 1 x 2, forward, 1 thread | 1.00 |", "| 1 x 4, forward, 1 thread | 2.00 |"):
        assert part in text, text


@pytest.mark.slow
def test_scaling_in_parts_becomes_one_table_with_times_and_memory(tmp_path):
    parts = []
    for op in ("gated delta rule", "RWKV-7"):
        parts.append(tmp_path / op / "benchmarks_cpu.json")
        parts[-1].parent.mkdir()
        done = _bench(parts[-1].parent, "scaling", "--quick", "--only", op, "forward")
        assert done.returncode == 0, done.stderr
        rows = json.loads(parts[-1].read_text())["rows"]
        assert {(row["op"], row["work"]) for row in rows} == {(op, "forward")}
        assert all(row["peak_bytes"] > 0 for row in rows if row["side"] == "myfla")
    document = tmp_path / "document.md"
    document.write_text("<!-- benchmark cpu scaling -->\n<!-- end cpu scaling -->\n")
    done = _bench(tmp_path, "--results", *map(str, parts), "--markdown", str(document))
    assert done.returncode == 0, done.stderr
    text = document.read_text()
    assert "| gated delta rule, float32 |" in text and "| RWKV-7, float32 |" in text and " MB)" in text


def test_masks_have_the_lengths_asked_for():
    lengths = lengths_of(5, 9)
    assert lengths[0] == 9 and all(1 <= n <= 9 for n in lengths)
    for left in (True, False):
        mask = mask_of(lengths, left)
        assert mask.sum(1).tolist() == lengths
        assert torch.equal(mask.sort(1, descending=not left).values, mask)
