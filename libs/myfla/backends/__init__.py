"""The choice of whose code computes a rule.

==========  ===========================================================================================
auto        the rule below
naive       the loop over tokens that is this library's specification: slow, for checks
torch       this library's PyTorch code, on every device
native      compiled kernels for CPUs, from the distribution myfla-native
compiled    torch, through ``torch.compile``, which fuses single steps and what stands around the rule; on a GPU,
            in bfloat16, also what stands between its products
fla         the official Triton kernels of flash-linear-attention, on a CUDA device
==========  ===========================================================================================

A choice other than auto is honoured, or refused with the reason. It is about the recurrence (`myfla.ops`). The layers'
projections are PyTorch's under every backend; their convolutions and norms are myfla-native's where that is installed.
"""

from myfla.backends.choice import AUTO_RULE, BACKENDS, BackendError, check_backend, choose
from myfla.backends.report import describe, set_backend, summary

__all__ = [
    "AUTO_RULE",
    "BACKENDS",
    "BackendError",
    "check_backend",
    "choose",
    "describe",
    "set_backend",
    "summary",
]
