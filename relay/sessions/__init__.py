"""A session while it lives: who is in it, what passes, how it ends."""

from relay.sessions.live import NODE, Leg, Port
from relay.sessions.service import CLOSE_EVENT, Recorder, Sessions, group_name, of_this_process

__all__ = ["CLOSE_EVENT", "NODE", "Leg", "Port", "Recorder", "Sessions", "group_name", "of_this_process"]
