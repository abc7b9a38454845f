"""Many tokens at a time: one inverse, one scan, one output, and their backward, for every family."""
