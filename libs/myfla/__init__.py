"""Linear-recurrent sequence layers in pure PyTorch, equal to flash-linear-attention's.

Shape legend, used everywhere in this package:

====  =====================================================================
B     batch rows                   T     time steps (tokens)
H     query/key heads              HV    value heads, a multiple of H
K     key size of one head         V     value size of one head
N     sequences (B, or the number packed by ``cu_seqlens``)
D     channels                     W     convolution width
C     tokens in a chunk
====  =====================================================================

A recurrent state is ``[N, HV, K, V]``.
"""

__version__ = "0.1.0"
