"""The modules of ``job=encode``: `plan` (which parts the output has, and which process makes them), `encode` (sequences
to embeddings), `files` (a part on disk)."""
