"""What a receiver gets of a busy session, however it ends: real processes and sockets, each byte checked."""
