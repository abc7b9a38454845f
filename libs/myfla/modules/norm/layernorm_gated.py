"""`myfla.modules.layernorm_gated` under its name in fla 0.6."""

from myfla.modules.layernorm_gated import *  # noqa: F403
from myfla.modules.layernorm_gated import __all__  # noqa: F401
