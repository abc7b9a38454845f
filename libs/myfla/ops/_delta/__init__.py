"""One engine for the delta rule and related rules. Families define the rules, back ends compute them.

Letters in shapes, everywhere in this package::

    B  batch            T  tokens                    H   heads of queries and keys
    K  size of a key    V  size of a value           HV  heads of values, a multiple of H
    N  sequences: B, or those packed in one row      C   tokens in a chunk
    M matrices of one batched product: chunks times value heads

``h [K, V]`` is the state of one head. `chunk.recurrence` defines the recurrence that all families use.
"""
