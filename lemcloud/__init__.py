"""The platform project that mounts the relay app."""
