"""The models inside transformers: Auto classes, loading, saving, generation, training."""

import math
import os
import subprocess
import sys
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from safetensors.torch import load_file, save_file

from folders import WEIGHTS, edit, same, saved
from myfla import models
from myfla.testing import assert_close, cases, raises
from small_models import KINDS, prompt, small_config, small_model

transformers = pytest.importorskip("transformers", minversion="5.6.2")
import myfla.models.hf as hf  # noqa: E402

Language = transformers.AutoModelForCausalLM


@pytest.fixture(autouse=True)
def _served_by_us():
    hf.register()  # the official library, where it is installed and imported, takes the same names
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def test_the_library_itself_does_not_import_transformers():
    code = "import sys, myfla.models as m; m.RWKV7ForCausalLM; m.load_model; print('transformers' in sys.modules)"
    path = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=path, stdout=subprocess.PIPE, check=True)
    assert done.stdout.strip() == b"False"


def test_without_transformers_the_error_says_what_to_install():
    code = ("import sys; sys.modules['transformers'] = None\n"
            "try:\n    import myfla.models.hf\nexcept ImportError as error:\n    print(error)")
    path = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=path, stdout=subprocess.PIPE, check=True)
    assert b"pip install 'myfla[hf]'" in done.stdout


@cases(kind=KINDS, tied=[False, True], shards=[None, "20KB"])
def test_auto_classes_read_our_folders_and_we_read_theirs(kind, tied, shards):
    with TemporaryDirectory() as folder, TemporaryDirectory() as other:
        model = saved(folder, kind, shards, tie_word_embeddings=tied, my_note={"a": 1})
        config = transformers.AutoConfig.from_pretrained(folder)
        assert type(config).__module__ == "myfla.models.hf" and config.my_note == {"a": 1}
        for name, value in model.config.to_dict().items():
            assert getattr(config, name) == value, name
        theirs = Language.from_pretrained(folder)
        assert isinstance(theirs, transformers.PreTrainedModel) and same(theirs.state_dict(), model.state_dict())
        assert torch.equal(theirs(prompt()).logits, model(prompt()).logits)
        theirs.save_pretrained(other, max_shard_size=shards or "5GB")
        again = models.load_model(other)
        assert same(again.state_dict(), model.state_dict()) and again.config.my_note == {"a": 1}
        base = transformers.AutoModel.from_pretrained(folder)
        assert torch.equal(base(prompt()).last_hidden_state, model.model(prompt()).last_hidden_state)


@cases(kind=KINDS)
def test_fresh_models_follow_the_same_law(kind):
    for config in (small_config(kind), transformers.AutoConfig.for_model(**small_config(kind).to_dict())):
        theirs = Language.from_config(config)
        assert type(theirs).__module__ == "myfla.models.hf"
        ours = type(small_model(kind))(small_config(kind))
        for (name, a), b in zip(theirs.state_dict().items(), ours.state_dict().values()):
            if name.endswith(("A_log", "dt_bias")):  # four numbers: see where they lie
                low, high = (-9.0, math.log(16)) if name.endswith("A_log") else (-7.0, -2.2)
                assert low <= a.min() and a.max() <= high and len(a.unique()) == len(a), name
                continue
            a, b = a.double(), b.double()
            chance = 6 * b.std() / b.numel() ** 0.5 + 1e-8
            assert abs(a.std() - b.std()) <= chance and abs(a.mean() - b.mean()) <= 1.5 * chance, name


@cases(kind=KINDS)
def test_what_a_folder_lacks_is_drawn_and_the_rest_is_kept(kind):
    with TemporaryDirectory() as folder:
        model = saved(folder, kind)
        lost = ["lm_head.weight", "model.layers.1.attn.k_proj.weight",
                {"rwkv7": "model.layers.1.attn.x_r", "delta_net": "model.layers.1.attn.b_proj.weight"}.get(
                    kind, "model.layers.1.attn.A_log")]
        edit(Path(folder) / WEIGHTS, lambda tensors: [tensors.pop(name) for name in lost])
        state = Language.from_pretrained(folder).state_dict()
        for name, value in model.state_dict().items():
            assert torch.equal(state[name], value) != (name in lost), name
        assert all(state[name].isfinite().all() and state[name].std() > 0 for name in lost)


@cases(shape=[(6, 32), (6, 1, 1, 32)])
def test_older_rwkv7_names_are_converted(shape):
    with TemporaryDirectory() as folder:
        model = saved(folder, "rwkv7")
        tensors = load_file(os.path.join(folder, WEIGHTS))
        for i in range(2):
            stack = [tensors.pop(f"model.layers.{i}.attn.x_{c}").reshape(32) for c in "rwkvag"]
            tensors[f"model.layers.{i}.attn.x_x"] = torch.stack(stack).reshape(shape)
        save_file(tensors, os.path.join(folder, WEIGHTS), {"format": "pt"})
        assert same(Language.from_pretrained(folder).state_dict(), model.state_dict())
        base = transformers.AutoModel.from_pretrained(folder)
        assert same(base.state_dict(), model.model.state_dict())


def theirs_of(model):
    """The same model as one of transformers."""
    theirs = Language.from_config(model.config)
    theirs.load_state_dict(model.state_dict())
    return theirs.eval()


@cases(kind=KINDS, settings=[{}, {"do_sample": True}, {"do_sample": True, "temperature": 0.7},
                             {"do_sample": True, "top_k": 5}, {"do_sample": True, "top_p": 0.8, "temperature": 1.4}])
def test_their_generation_gives_our_tokens(kind, settings):
    model, ids = small_model(kind), prompt(3, 7)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    theirs, got = theirs_of(model), []
    end = int(model.generate(ids, attention_mask=mask, max_new_tokens=9)[1, 11])
    for side in (model, theirs):
        torch.manual_seed(3)
        got.append(side.generate(ids, attention_mask=mask, max_new_tokens=9, eos_token_id=end, pad_token_id=0,
                                 **settings))
    assert torch.equal(*got)


@cases(kind=KINDS)
def test_their_beam_search_reorders_our_cache(kind):
    model, ids = small_model(kind), prompt(3, 5)
    theirs = theirs_of(model)
    moves, reorder = [], models.Cache.reorder_cache

    def watched(cache, rows):
        moves.append(rows.tolist() != list(range(len(rows))))
        reorder(cache, rows)

    try:
        models.Cache.reorder_cache = watched
        cached = theirs.generate(ids, max_new_tokens=8, num_beams=4, do_sample=False)
    finally:
        models.Cache.reorder_cache = reorder
    assert any(moves)
    assert torch.equal(cached, theirs.generate(ids, max_new_tokens=8, num_beams=4, do_sample=False, use_cache=False))


@cases(kind=KINDS, name=hf.CACHES)
def test_the_cache_comes_by_each_name_that_transformers_gives_it(kind, name):
    model, ids = theirs_of(small_model(kind)), prompt(2, 9)
    with torch.no_grad():
        want = model(ids, use_cache=False).logits[:, 5:]
        first = model(ids[:, :5], use_cache=True, **{name: models.Cache()})
        assert first["cache" if "cache" in first else "past_key_values"].get_seq_length() == 5
        for base in (model, model.model):
            cache = models.Cache.from_legacy_cache(first.past_key_values.to_legacy_cache(), seen_tokens=5)
            others = {other: None for other in hf.CACHES if other != name}
            out = base(ids[:, 5:], use_cache=True, **{name: cache}, **others)
            assert out.past_key_values is cache and cache.get_seq_length() == 9
            assert_close(out.logits if base is model else model.lm_head(out.last_hidden_state), want, rms=1e-5)
        with raises(ValueError, "forward: past_key_values excludes cache: both name the cache", "give one of them"):
            model(ids, past_key_values=cache, cache=cache)
        with raises(TypeError, "unknown keyword 'cash'"):
            model(ids, cash=cache)


@cases(kind=KINDS)
def test_gradients_and_checkpointing_are_ours(kind):
    model, ids = small_model(kind).train(), prompt()
    model(ids, labels=ids).loss.backward()
    theirs = theirs_of(model).train()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs.gradient_checkpointing_enable()
    assert theirs.model.gradient_checkpointing
    runs = []
    theirs.model.layers[0].attn.register_forward_hook(lambda *given: runs.append(1))
    out = theirs(ids, labels=ids, return_dict=True)
    assert isinstance(out, transformers.modeling_outputs.CausalLMOutputWithPast)
    out.loss.backward()
    assert len(runs) == 2
    for (name, a), b in zip(theirs.named_parameters(), model.parameters()):
        assert_close(a.grad, b.grad, rms=1e-6, name=name)
    assert isinstance(theirs.eval()(ids, return_dict=False), tuple)
    assert theirs.get_input_embeddings() is theirs.model.embeddings


def test_embeddings_can_be_resized():
    theirs = theirs_of(small_model("gated_deltanet", tie_word_embeddings=True))
    theirs.resize_token_embeddings(70)
    assert theirs(torch.tensor([[69, 1]])).logits.shape[-1] == 70
    assert theirs.lm_head.weight is theirs.model.embeddings.weight
