"""Where `relay.links.memory_layer` was before; settings of projects name it."""

from relay.links.memory_layer import MemoryChannelLayer

__all__ = ["MemoryChannelLayer"]
