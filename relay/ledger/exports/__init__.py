"""The way of a row to finance: which rows, in which form, delivered once."""
