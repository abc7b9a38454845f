"""Scripts that run an exported file with nothing of this project installed."""

__all__ = ["SAMPLES"]

_ONNX = '''"""Stream rows of numbers through step.onnx. Needs numpy and onnxruntime."""
import json
from pathlib import Path

import numpy
import onnxruntime

here = Path(__file__).resolve().parent
facts = json.loads((here / "export.json").read_text(encoding="utf-8"))
session = onnxruntime.InferenceSession(str(here / "step.onnx"), providers=["CPUExecutionProvider"])
x, *states = session.get_inputs()
kinds = {"tensor(float)": numpy.float32, "tensor(double)": numpy.float64, "tensor(int64)": numpy.int64}
values = {state.name: numpy.zeros(state.shape, kinds[state.type]) for state in states}
for step in range(5):
    row = numpy.full(x.shape, step / 10, kinds[x.type])
    hidden, *new = session.run(None, {x.name: row, **values})
    values = {state.name: value for state, value in zip(states, new)}
    print(step, hidden[0, 0, :4].tolist())
'''

_TORCH = '''"""Stream rows of numbers through step.pt2. Needs torch."""
import json
from pathlib import Path

import torch

here = Path(__file__).resolve().parent
facts = json.loads((here / "export.json").read_text(encoding="utf-8"))
step = torch.export.load(str(here / "step.pt2")).module()
shape, kind = facts["inputs"]["x"]["shape"], getattr(torch, facts["inputs"]["x"]["dtype"])
states = [torch.zeros(s["shape"], dtype=getattr(torch, s["dtype"]))
          for name, s in facts["inputs"].items() if name != "x"]
for number in range(5):
    hidden, *states = step(torch.full(shape, number / 10, dtype=kind), *states)
    print(number, hidden[0, 0, :4].tolist())
'''

_SAFETENSORS = '''"""List the weights in encoder.safetensors. Needs numpy and safetensors."""
from pathlib import Path

from safetensors.numpy import load_file

for name, value in sorted(load_file(str(Path(__file__).resolve().parent / "encoder.safetensors")).items()):
    print(name, value.dtype, list(value.shape))
'''

_ONNX_WHOLE = '''"""Run whole sequences of the data's own numbers through encoder.onnx. Needs numpy and onnxruntime."""
import json
from pathlib import Path

import numpy
import onnxruntime

here = Path(__file__).resolve().parent
facts = json.loads((here / "export.json").read_text(encoding="utf-8"))
session = onnxruntime.InferenceSession(str(here / "encoder.onnx"), providers=["CPUExecutionProvider"])
kind = facts["encoder_inputs"]["x"]
shape = [{"batch": 2, "length": 5}.get(size, size) for size in kind["shape"]]
found = session.run(None, {"x": numpy.ones(shape, kind["dtype"])})
for name, value in zip(facts["encoder_outputs"], found):
    print(name, list(value.shape), value.reshape(-1)[:4].tolist())
if facts.get("classes") and facts["encoder_outputs"][-1] == "logits":
    print([facts["classes"][i] for i in found[-1].argmax(-1).reshape(-1)])
'''

_TORCH_WHOLE = '''"""Run whole sequences of the data's own numbers through encoder.pt2. Needs torch."""
import json
from pathlib import Path

import torch

here = Path(__file__).resolve().parent
facts = json.loads((here / "export.json").read_text(encoding="utf-8"))
model = torch.export.load(str(here / "encoder.pt2")).module()
kind = facts["encoder_inputs"]["x"]
shape = [{"batch": 2, "length": 5}.get(size, size) for size in kind["shape"]]
found = model(torch.ones(shape, dtype=getattr(torch, kind["dtype"])))
for name, value in zip(facts["encoder_outputs"], found):
    print(name, list(value.shape), value.reshape(-1)[:4].tolist())
if facts.get("classes") and facts["encoder_outputs"][-1] == "logits":
    print([facts["classes"][i] for i in found[-1].argmax(-1).reshape(-1).tolist()])
'''

SAMPLES = {"onnx": _ONNX, "torch_export": _TORCH, "safetensors": _SAFETENSORS,
           "onnx_whole": _ONNX_WHOLE, "torch_export_whole": _TORCH_WHOLE}
