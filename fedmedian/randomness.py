"""Random generators, from a seed in simulation or from the operating system otherwise."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


def client_rng(seed: int | None, partition: int, server_round: int) -> np.random.Generator:
    """Return the generator for one client's noise in one round.

    Parameters
    ----------
    seed : int or None
        The strategy's seed. None draws from the operating system's entropy; see `secret_rng` for
        noise that must protect privacy.
    partition : int
        The client's partition, >= 0; each has its own stream.
    server_round : int
        The round, >= 0.

    Returns
    -------
    numpy.random.Generator
        The generator.

    Examples
    --------
    >>> one, again = (client_rng(1, partition=2, server_round=3) for _ in range(2))
    >>> float(one.random()) == float(again.random())
    True
    """
    return _generator(seed, (0, partition, server_round))


def secret_rng() -> np.random.Generator:
    """Return a cryptographic generator, for noise that must protect privacy.

    ChaCha20 with a key from the operating system's entropy. Unless the cipher is broken, known
    output reveals nothing about the rest, which PCG64, NumPy's default, does not guarantee. Drawing
    10⁶ normal values takes less than twice PCG64's time; ``python -m benchmarks generators``
    measures it.

    Returns
    -------
    numpy.random.Generator
        The generator.

    Raises
    ------
    ImportError
        If randomgen, from the extra ``privacy``, is not installed.
    """
    try:
        from fedmedian.chacha import ChaCha20
    except ModuleNotFoundError as error:
        raise ImportError(
            "noise that protects privacy needs randomgen: pip install 'fedmedian[privacy]'"
        ) from error
    return np.random.Generator(ChaCha20())


def server_rng(seed: int | None, server_round: int) -> np.random.Generator:
    """Return the generator for the server's coin flips and noise in one round.

    Parameters
    ----------
    seed : int or None
        The strategy's seed, or None for the operating system's entropy.
    server_round : int
        The round, >= 0.

    Returns
    -------
    numpy.random.Generator
        The generator, independent of every client's.
    """
    return _generator(seed, (1, server_round))


def rotation_seed(seed: int | None, server_round: int) -> int:
    """Return the seed of a round's rotation, which all participants know.

    Parameters
    ----------
    seed : int or None
        The strategy's seed, or None for the operating system's entropy.
    server_round : int
        The round, >= 0.

    Returns
    -------
    int
        A 63-bit number that does not reveal the strategy's seed.
    """
    return int(_generator(seed, (2, server_round)).integers(0, 1 << 63))


def seed_of_pass(seed: int | None, server_round: int, number: int) -> int | None:
    """Return the seed of one of a round's passes: equal noise in each would not average out.

    Parameters
    ----------
    seed : int or None
        The strategy's seed, or None.
    server_round : int
        The round.
    number : int
        How often the round has trained before, >= 0, also in runs that this one continues. The
        first pass has the strategy's seed.

    Returns
    -------
    int or None
        The seed; None without one.
    """
    if seed is None or number == 0:
        return seed
    return int(_generator(seed, (4, server_round, number)).integers(0, 1 << 63))


def downlink_seed(seed: int | None, step: int) -> int:
    """Return the seed of the basis that a coded step is sent in; see `rotation_seed`."""
    return int(_generator(seed, (3, step)).integers(0, 1 << 63))


@contextmanager
def seeded_sampling(
    seed: int | None, server_round: int, *, evaluates: bool = False, before: int = 0
) -> Iterator[None]:
    """Seed Python's global generator, which Flower samples nodes with, within this context.

    Parameters
    ----------
    seed : int or None
        The strategy's seed. None leaves the generator unchanged.
    server_round : int
        The round.
    evaluates : bool (default: False)
        Whether the nodes are to evaluate; their draw is independent of the one for training.
    before : int (default: 0)
        How often nodes have been drawn in this round before, as for another cluster.
    """
    if seed is None:
        yield
        return
    state = random.getstate()
    again = f", after {before}" if before else ""
    random.seed(f"{seed}, {server_round}{', evaluation' if evaluates else ''}{again}")
    try:
        yield
    finally:
        random.setstate(state)


def _generator(seed: int | None, key: tuple[int, ...]) -> np.random.Generator:
    if seed is None:
        return np.random.default_rng()
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))
