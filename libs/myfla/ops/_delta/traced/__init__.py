"""The rules for ``torch.compile``, ``torch.export``, ONNX, ``torch.func`` and second derivatives."""
