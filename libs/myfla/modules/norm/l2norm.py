"""`myfla.modules.l2norm` under its name in fla 0.6."""

from myfla.modules.l2norm import *  # noqa: F403
from myfla.modules.l2norm import __all__  # noqa: F401
