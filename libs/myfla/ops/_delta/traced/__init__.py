"""What ``torch.compile``, ``torch.export``, ONNX, ``torch.func`` and second derivatives see."""
