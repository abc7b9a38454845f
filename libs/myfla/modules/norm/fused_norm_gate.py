"""`myfla.modules.fused_norm_gate` under its name in fla 0.6."""

from myfla.modules.fused_norm_gate import *  # noqa: F403
from myfla.modules.fused_norm_gate import __all__  # noqa: F401
