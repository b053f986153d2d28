"""The libraries to compare with. Each is optional, and imported only when it is asked for."""

from __future__ import annotations

from importlib import import_module

from ..contestant import Peer, UnavailableError

PEERS = ("pytorch", "onednn", "jax", "numpy")


def load(name: str, large_numpy: bool) -> Peer:
    """The peer of this name; UnavailableError if it is not installed."""
    try:
        library = import_module(f".{name}", __name__).Library
    except ImportError as error:
        raise UnavailableError(f"{name} is skipped: {error}") from None
    peer: Peer = library(large_numpy) if name == "numpy" else library()
    return peer
