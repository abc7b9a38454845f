"""The short convolution under its names in fla 0.5."""

# The module first: importing it later would put it in place of the function of the same name.
import myfla.modules.conv.causal_conv1d  # noqa: F401
from myfla.modules.convolution import *  # noqa: F403
from myfla.modules.convolution import __all__  # noqa: F401
