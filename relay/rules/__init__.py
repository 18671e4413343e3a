"""What is so by itself: no I/O, no clock, no Django and no settings; tested to the last branch."""
