"""The modules of ``job=stream``.

Data flow: `lines` (bytes to numbered lines) -> `rows` (lines to checked features) -> `engine` (rows to steps of the
`model` over the states in the `pool`) -> a sink (`sinks`, `parquet`). `store` is the state folder: it records the
position in the input, the output and the states in one transaction.
"""
