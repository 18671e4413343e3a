"""A coverage-guided fuzz target for `relay.frames` (`make fuzz`): any bytes, cut anywhere.

The first byte says how the rest is cut into chunks and how big a message may be; the rest is the stream.
"""

import sys

from tests.frames_oracle import compare

LIMITS = (64, 300, 70_000, 1 << 20)
STEPS = (1, 2, 3, 5, 7, 11, 64, 1 << 20)


def check(data: bytes) -> None:
    """Fail with an AssertionError where the forwarder and the oracle disagree."""
    if not data:
        return
    limit, step = LIMITS[data[0] & 3], STEPS[data[0] >> 2 & 7]
    # With the top bit set the stream is repeated, so that short inputs reach the way of the long runs.
    stream = data[1:] * (40 if data[0] & 0x80 else 1)
    compare(stream, [stream[at : at + step] for at in range(0, len(stream), step)], limit)


def main() -> None:
    """Run until something is found, or as libFuzzer's own arguments say."""
    import atheris  # only here: the ordinary tests replay the corpus without it

    atheris.instrument_all()
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
