"""The way of a record to its row: memory, disk, database."""
