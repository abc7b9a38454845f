"""The convolution's functions under their names in fla 0.5; no Triton is involved."""

from myfla.modules.convolution import *  # noqa: F403
from myfla.modules.convolution import __all__  # noqa: F401
