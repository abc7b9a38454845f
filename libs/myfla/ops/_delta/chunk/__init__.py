"""The chunk form, many tokens at a time: inverse, scan, outputs and their backward pass, shared by all families."""
