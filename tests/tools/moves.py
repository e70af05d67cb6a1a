"""Calls from one file of the package to another while a round's replies are heard.

``python -m tests.tools.moves`` prints how many there are, and the most frequent ones: whoever
reads what happens to a reply follows each of them.
"""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import numpy as np
from flwr.app import Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

import fedmedian
from experiments.studies.tables import make_table
from fedmedian.clients import InProcessGrid, perturb
from fedmedian.records import to_arrays, to_record
from fedmedian.strategies import SignSGD

_FOLDER = Path(fedmedian.__file__).parent
_FREQUENT = 5

Move = tuple[str, str, str]
"""The calling file, the called file and the called function."""


def moves_to_hear(num_clients: int) -> Counter[Move]:
    """Return the calls between files that the second round's `aggregate_train` makes.

    The first round also compiles what later ones use again.
    """
    found = Counter[Move]()

    class Observed(SignSGD):
        def aggregate_train(self, number, replies):  # type: ignore[no-untyped-def]
            replies = [*replies]
            with _counted(found if number == 2 else Counter()):
                return super().aggregate_train(number, replies)

    model = {"w": np.zeros((40, 30), np.float32), "b": np.zeros(30, np.float32)}
    grid = InProcessGrid(_app(), num_clients)
    Observed(fraction_evaluate=0.0).start(grid, to_record(model), num_rounds=2)
    return found


def _app() -> ClientApp:
    app = ClientApp(mods=[perturb])

    @app.train()
    def train(message, context):  # type: ignore[no-untyped-def]
        arrays = {name: one + 1 for name, one in to_arrays(message.content["arrays"]).items()}
        metrics = MetricRecord({"num-examples": 10})
        content = RecordDict({"arrays": to_record(arrays), "metrics": metrics})
        return Message(content, reply_to=message)

    return app


@contextmanager
def _counted(found: Counter[Move]) -> Iterator[None]:
    def count(frame: FrameType, event: str, _: object) -> None:
        called = _place_of(frame)
        if event != "call" or called is None:
            return
        caller, before = None, frame.f_back
        while before is not None and caller is None:  # calls through Python's own files count
            caller, before = _place_of(before), before.f_back
        if caller not in (None, called):
            found[caller, called, frame.f_code.co_name] += 1

    sys.setprofile(count)
    try:
        yield
    finally:
        sys.setprofile(None)


def _place_of(frame: FrameType) -> str | None:
    path = Path(frame.f_code.co_filename)
    return str(path.relative_to(_FOLDER)) if path.is_relative_to(_FOLDER) else None


def main() -> None:
    """Print the calls that hearing five replies takes."""
    found = moves_to_hear(5)
    files = {file for caller, called, _ in found for file in (caller, called)}
    print(f"{found.total()} calls between {len(files)} files to aggregate five replies\n")
    rows = [[str(n), *move] for move, n in found.most_common() if n >= _FREQUENT]
    print(make_table(["calls", "from", "to", "function"], rows))


if __name__ == "__main__":
    main()
