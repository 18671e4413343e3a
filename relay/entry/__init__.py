"""The way in, in the order in which a request meets it: forwarded addresses, its token, its consumer."""
