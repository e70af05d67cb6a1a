"""Where random numbers come from: a seed in simulation, the operating system elsewhere."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


def client_rng(seed: int | None, partition: int, server_round: int) -> np.random.Generator:
    """Return the generator of one client's noise in one round.

    Parameters
    ----------
    seed : int or None
        The strategy's seed. None draws from the operating system's entropy; see `secret_rng` for
        noise that has to hide something.
    partition : int
        The client's partition, >= 0; each has a stream of its own.
    server_round : int
        The round, >= 0.

    Returns
    -------
    numpy.random.Generator
        The generator.
    """
    return _generator(seed, (0, partition, server_round))


def secret_rng() -> np.random.Generator:
    """Return a generator for noise that has to hide something.

    ChaCha20 under a key of the operating system's entropy: nothing of what else it draws follows
    from what has been seen of it, unless the cipher is broken. PCG64, NumPy's own, is no such
    generator. Drawing 10⁶ normal values takes less than twice PCG64's time; ``python -m
    benchmarks generators`` measures it.

    Returns
    -------
    numpy.random.Generator
        The generator.

    Raises
    ------
    ImportError
        If randomgen, of the extra ``privacy``, is not installed.
    """
    try:
        from fedmedian.chacha import ChaCha20
    except ModuleNotFoundError as error:
        raise ImportError(
            "noise that hides something needs randomgen: pip install 'fedmedian[privacy]'"
        ) from error
    return np.random.Generator(ChaCha20())


def server_rng(seed: int | None, server_round: int) -> np.random.Generator:
    """Return the generator of the server's own coins and noise in one round.

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
    """Return the seed of a round's rotation, public to those who take part in it.

    Parameters
    ----------
    seed : int or None
        The strategy's seed, or None for the operating system's entropy.
    server_round : int
        The round, >= 0.

    Returns
    -------
    int
        A number of 63 bits; nothing of the strategy's seed follows from it.
    """
    return int(_generator(seed, (2, server_round)).integers(0, 1 << 63))


@contextmanager
def seeded_sampling(seed: int | None, server_round: int) -> Iterator[None]:
    """Let Python's own generator, which Flower samples nodes with, follow from a seed for a while.

    Parameters
    ----------
    seed : int or None
        The strategy's seed. None leaves the generator as it is.
    server_round : int
        The round.
    """
    if seed is None:
        yield
        return
    state = random.getstate()
    random.seed(f"{seed}, {server_round}")
    try:
        yield
    finally:
        random.setstate(state)


def _generator(seed: int | None, key: tuple[int, ...]) -> np.random.Generator:
    if seed is None:
        return np.random.default_rng()
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))
