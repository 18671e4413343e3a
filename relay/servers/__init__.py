"""What a particular ASGI server needs so that the relay keeps its promises on it."""
