"""``job=stream``, part by part.

Data flow: `lines` (bytes to numbered lines) -> `rows` (lines to checked features) -> `engine` (rows to steps of the
`model` over the states in the `pool`) -> a sink (`sinks`, `parquet`). `store` is the state folder: it makes what was
read, what was written and what was kept one transaction.
"""
