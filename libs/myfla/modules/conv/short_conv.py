"""The short convolution under its names in fla 0.5."""

from myfla.modules.convolution import *  # noqa: F403
from myfla.modules.convolution import __all__  # noqa: F401
