"""The parts of a training for Lightning: the module, its optimizer, callbacks, logger and checkpoints."""
