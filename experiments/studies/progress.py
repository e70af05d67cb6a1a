"""The progress of long commands, with the time left; silent without a terminal."""

from collections.abc import Collection, Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


def tracked(items: Iterable[Item], unit: str, total: int | None = None) -> Iterator[Item]:
    """Yield items, and show in a terminal how many are done and how long the others will take.

    Parameters
    ----------
    items : iterable
        The items.
    unit : str
        The word for one of them.
    total : int, optional
        How many there are; needed if they have no length.

    Yields
    ------
    object
        Each item.
    """
    if isinstance(items, Collection):
        total = len(items)
    yield from tqdm(
        items,
        unit=unit,
        total=total,
        mininterval=0.0,  # items take long
        leave=False,
        dynamic_ncols=True,
        disable=None,  # unless in a terminal
    )


def say(text: str) -> None:
    """Print a text above the bars."""
    with tqdm.external_write_mode():
        print(text, flush=True)
