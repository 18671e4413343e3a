"""Lem Relay: carries the WebSocket frames of two devices to each other when nothing else connects them."""
