"""The errors that a hub, a client and a handler may raise. They are defined in :mod:`wayside.core.errors`."""

from wayside.core.errors import *  # noqa: F403
from wayside.core.errors import __all__ as __all__
