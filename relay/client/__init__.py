"""The reference client: end-to-end encryption between two peers, through a relay that can't read it.

It needs neither Django nor the server part.
"""
