"""Detection of Flower's wrappers that do not work around these strategies.

A strategy does not know that it is wrapped, so it looks for wrappers among its callers.
"""

from collections.abc import Iterator
from inspect import currentframe
from traceback import walk_stack

_DIFFERENTIAL_PRIVACY = (
    "is made for the mean of clients' weights: its clipping and noise fit neither clients' answers "
    "here nor their sensitivity. Let clients clip and add noise instead, for an L2 norm of 1 "
    "as {name}(Gaussian(11.0), client_steps=[Clip(1.0)], {unweighted}fraction_evaluate=0.0, "
    "privacy_budget=PrivacyBudget(8.0, 1e-6)), or wrap FedAvg"
)
_SECURE_SUM = (
    "shows the server only a sum of weights, but these strategies read each client's answer. "
    "Remove it and the clients' secaggplus_mod, and use fedmedian.strategies.SignSGD("
    "secure=SecureSum(), weighted=False), or use FedAvg"
)
_REFUSED = {
    "DifferentialPrivacy": _DIFFERENTIAL_PRIVACY,
    "DPFedAvg": _DIFFERENTIAL_PRIVACY,
    "SecAgg": _SECURE_SUM,
}
"""Prefixes of Flower's class names, each with the problem and its remedy."""


def require_no_unfit_wrapper(strategy: object) -> None:
    """Raise if a strategy is wrapped by a Flower class that would break its rounds.

    Parameters
    ----------
    strategy : object
        The strategy, called during a round.

    Raises
    ------
    ValueError
        If it is wrapped for differential privacy or runs in a workflow for secure aggregation,
        naming the wrapper and what to use instead.
    """
    for caller in _flowers_callers():
        for start, why in _REFUSED.items():
            if any(name.startswith(start) for name in _flowers_names(caller)):
                name = type(strategy).__name__
                unweighted = "weighted=False, " if hasattr(strategy, "weighted") else ""
                why = why.format(name=name, unweighted=unweighted)
                raise ValueError(f"{type(caller).__name__} cannot wrap {name}: it {why}")


def _flowers_callers() -> Iterator[object]:
    """Yield Flower's objects on the call stack, and the workflows that they run."""
    for frame, _ in walk_stack(currentframe()):
        caller = frame.f_locals.get("self")
        if _flowers_names(caller):
            yield caller
            yield getattr(caller, "fit_workflow", None)


def _flowers_names(caller: object) -> list[str]:
    """Return the names of an object's classes that are Flower's."""
    kinds = type(caller).__mro__
    return [kind.__name__ for kind in kinds if kind.__module__.partition(".")[0] == "flwr"]
