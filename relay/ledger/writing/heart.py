"""A node's sign of life in the database, and what it does about nodes that give none any more."""

from collections.abc import Callable, Collection, Iterator

from relay import conf
from relay.ledger.records import SessionRecord
from relay.ledger.writing import nodes
from relay.ledger.writing.deadline import Deadline


class Heart:
    """Beats at each checkpoint, and then has dead nodes looked for. For the writer's thread alone.

    Without a name of its `node` it never beats. `clock` is monotonic, in seconds. Everything raises what the
    database raises; a beat that failed is due still, and so is the search that failed.
    """

    def __init__(self, node: str, using: str, deadline: Deadline, clock: Callable[[], float]) -> None:
        self._node = node
        self._using = using
        self._deadline = deadline
        self._clock = clock
        self._pause_seconds = conf.current().checkpoint_seconds
        self._lost_seconds = conf.current().node_lost_seconds
        self._place = nodes.this_place()
        self._beaten_at = float("-inf")  # when the last one that was written was begun
        self._beating_since = float("-inf")  # since when there was none missing
        self.due_at = clock() if node else float("inf")
        """When the next beat is due, by the clock."""
        self.search_due = False
        """Whether `settle` is; with each beat, until all of it was done."""

    def beat(self) -> None:
        """Leave a heartbeat if one is due."""
        began = self._clock()
        if began < self.due_at:
            return
        with self._deadline:
            nodes.beat(self._node, self._place, self._using)
        if self._clock() - self._beaten_at > self._lost_seconds:
            self._beating_since = began
        self._beaten_at = began
        self.due_at = began + self._pause_seconds
        self.search_due = True

    def settle(self, dead: Collection[str]) -> Iterator[list[SessionRecord]]:
        """Close what nodes left open that are known to be `dead`, have died on this machine or are silent.

        Gives what was closed, after each transaction.
        """
        with self._deadline:
            found = {*dead, *nodes.gone_from(self._place, self._using, but=self._node)}
            yield from nodes.settle_nodes(self._using, found - {self._node})
        # For as long as this node could not reach the database, the others perhaps could not, either.
        if self._beaten_at - self._beating_since > self._lost_seconds:
            with self._deadline:
                yield from nodes.settle(self._using, lost_seconds=self._lost_seconds)
        self.search_due = False

    def leave(self) -> None:
        """What is live of this node is nobody's from now on; should there be more, a beat is due at once."""
        if self._beating_since > float("-inf"):
            self.due_at = self._clock()
            with self._deadline:
                nodes.leave(self._node, self._using)
