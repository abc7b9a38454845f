"""`myfla.modules.layernorm` under its name in fla 0.6."""

from myfla.modules.layernorm import *  # noqa: F403
from myfla.modules.layernorm import __all__  # noqa: F401
