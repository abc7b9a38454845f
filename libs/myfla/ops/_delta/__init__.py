"""One engine for the delta rule and its relatives: families above it, back ends below it.

Letters in shapes, everywhere in this package::

    B  batch            T  tokens                    H   heads of queries and keys
    K  size of a key    V  size of a value           HV  heads of values, a multiple of H
    N  sequences: B, or those packed in one row      C   tokens in a chunk
    M  matrices worked on together: chunks times value heads

``h [K, V]`` is the state of one head. `chunk.recurrence` has the one recurrence that all families prepare for.
"""
