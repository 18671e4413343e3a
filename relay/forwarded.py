"""Where `relay.entry.forwarded` was before; projects mount its middleware."""

from relay.entry.forwarded import ForwardedMiddleware

__all__ = ["ForwardedMiddleware"]
