"""Listen to the sea for orcas: the daemon and everything the edge needs."""

from ._version import __version__

__all__ = ["__version__"]
