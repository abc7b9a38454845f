"""What Lightning is given: the module, its optimizer, callbacks, logger and checkpoints."""
