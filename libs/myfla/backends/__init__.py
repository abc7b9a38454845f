"""The backends: which code computes a rule.

==========  ===========================================================================================
auto        the rule below
naive       the loop over tokens that is this library's specification: slow, for checks
torch       this library's PyTorch code, on every device
native      compiled kernels for CPUs, from the distribution myfla-native
compiled    torch, through ``torch.compile``, which fuses single steps and the operations around the rule; on a GPU, in
bfloat16, also those between its products fla         the official Triton kernels of flash-linear-attention, on a CUDA
device ==========  ===========================================================================================

A backend other than auto is used, or refused with the reason. The choice is about the recurrence (`myfla.ops`). PyTorch
always computes the layers' projections; myfla-native, if installed, computes their convolutions and norms.
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
