"""What has to be done at the exit of the process, be it a worker that a server started with multiprocessing.

Such a worker runs no `atexit` handlers, only multiprocessing's own finalizers. One that ends itself by a
signal runs neither: what must not depend on this is drained before.
"""

import atexit
import multiprocessing
from collections.abc import Callable
from multiprocessing import util

_finalizers: dict[Callable[[], None], util.Finalize] = {}


def at_exit(call: Callable[[], None]) -> None:
    """Have `call()` called once at the exit of this process; what was registered later is called earlier."""
    if multiprocessing.parent_process() is None:
        atexit.register(call)
    else:
        _finalizers[call] = util.Finalize(None, call, exitpriority=0)


def not_at_exit(call: Callable[[], None]) -> None:
    """Have `call` not called at the exit after all."""
    atexit.unregister(call)
    if call in _finalizers:
        _finalizers.pop(call).cancel()
