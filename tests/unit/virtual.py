"""An event loop whose time passes at once: it jumps to the next timer when there is nothing else to do.

So a test of what happens after seconds takes none, and comes out the same on any machine.
"""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any

STUCK_SECONDS = 10.0
"""How long a loop without any timer waits for something from outside: only a test that hangs gets there."""


class _Selector(selectors.SelectSelector):
    """Waits for nothing: what it would have waited is added to the loop's time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if not ready and timeout is None:
            ready = super().select(STUCK_SECONDS)
            assert ready, "nothing is left that could happen"
        elif not ready and timeout is not None and timeout > 0:
            self.now += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """See the module. What is given to a thread is done at once, in this one."""

    def __init__(self) -> None:
        self._waits = _Selector()
        super().__init__(self._waits)

    def time(self) -> float:
        return self._waits.now

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:
        done = self.create_future()
        done.set_result(func(*args))
        return done


def virtually(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Have a test run on such a loop; what goes wrong in the background fails it, too."""

    @wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        wrong: list[dict[str, Any]] = []
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.get_loop().set_exception_handler(lambda loop, context: wrong.append(context))
            runner.run(test(*args, **kwargs))
        assert not wrong

    return run
