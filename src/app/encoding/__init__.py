"""``job=encode``, part by part: `plan` (which parts there are, and whose), `encode` (sequences to embeddings), `files`
(a part on disk)."""
