"""A coverage-guided fuzz target for `relay.rules.frames` (`make fuzz`): any bytes, cut anywhere.

The first byte says how the rest is cut into chunks and how big a message may be; the rest is the stream.
"""

import sys

LIMITS = (64, 300, 70_000, 1 << 20)
STEPS = (1, 2, 3, 5, 7, 11, 64, 1 << 20)


def check(data: bytes) -> None:
    """Fail with an AssertionError where the forwarder and the oracle disagree."""
    from tests.frames_oracle import compare  # not before `main` has said what is instrumented

    if not data:
        return
    limit, step = LIMITS[data[0] & 3], STEPS[data[0] >> 2 & 7]
    # With the top bit set the stream is repeated, so that short inputs reach the way of the long runs.
    stream = data[1:] * (40 if data[0] & 0x80 else 1)
    compare(stream, [stream[at : at + step] for at in range(0, len(stream), step)], limit)


def main() -> None:
    """Run until something is found, or as libFuzzer's own arguments say."""
    import atheris  # only here: the ordinary tests replay the corpus without it

    # The code under test and no more: the paths of the oracle are not what we look for.
    with atheris.instrument_imports(include=["relay.rules.frames"]):
        import relay.rules.frames  # noqa: F401
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
