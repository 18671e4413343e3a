"""The relay beside other relays: `make bench`. Figures and goals in one run, by one load generator."""
