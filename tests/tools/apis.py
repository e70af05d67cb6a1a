"""Strategies of both of Flower's APIs: cases of a test, and what drives their rounds."""

import pytest

from fedmedian.rounds.protocol import RoundProtocol


def each_case(names, cases, older):
    """Parametrize a test with `api` and cases: all in the Message API, some in the older one too.

    Both APIs are adapters of the same rounds: tests/strategies/test_contract.py compares them.

    Parameters
    ----------
    names : tuple of str
        The names of a case's values.
    cases : dict of str to tuple
        The values of each case by its name.
    older : container of str
        The names of the cases that run in the older API, too.
    """
    params = [
        pytest.param(api, *values, id=f"{api}-{name}")
        for api in ("Message API", "older API")
        for name, values in cases.items()
        if api == "Message API" or name in older
    ]
    return pytest.mark.parametrize(("api", *names), params, indirect=["api"])


def each_pair(name, values):
    """Parametrize a test with each of Flower's APIs and one of two values.

    Between them both APIs and both values are tried; no test here is about one pair of them.
    """
    pairs = zip(("Message API", "older API"), values, strict=True)
    params = [pytest.param(*pair, id="-".join(pair)) for pair in pairs]
    return pytest.mark.parametrize(("api", name), params, indirect=["api"])


def protocol_of(strategy):
    """Return what drives a strategy's rounds, which it keeps to itself."""
    (protocol,) = (one for one in vars(strategy).values() if isinstance(one, RoundProtocol))
    return protocol


def contexts_of(grid):
    """Return the contexts of an InProcessGrid's nodes, by partition, which it keeps to itself."""
    return list(vars(grid)["_InProcessGrid__contexts"].values())


def counting_on(base):
    """Return a subclass of a strategy that counts rounds from 101."""

    class Later(base):
        def configure_train(self, server_round, *rest):
            return super().configure_train(server_round + 100, *rest)

        def configure_fit(self, server_round, *rest, **named):
            return super().configure_fit(server_round + 100, *rest, **named)

    return Later
