"""What of Flower's own cannot be put around our strategies, and is refused by name.

Nothing tells a strategy that it has been wrapped: it is called by the wrapper, and that is how it
finds out.
"""

import inspect
from collections.abc import Iterator

_DIFFERENTIAL_PRIVACY = (
    "is made for the mean of clients' weights: its clipping and noise fit neither what clients "
    "answer here nor its sensitivity. Have clients clip and add noise instead, for an L2 norm of 1 "
    "as {name}(Gaussian(11.0), client_steps=[Clip(1.0)], {unweighted}fraction_evaluate=0.0, "
    "privacy_budget=PrivacyBudget(8.0, 1e-6)), or wrap FedAvg"
)
_SECURE_SUM = (
    "shows the server nothing but a sum of weights, and here each client's answer is read by "
    "itself. Leave it and the clients' secaggplus_mod out, or use FedAvg"
)
_REFUSED = {
    "DifferentialPrivacy": _DIFFERENTIAL_PRIVACY,
    "DPFedAvg": _DIFFERENTIAL_PRIVACY,
    "SecAgg": _SECURE_SUM,
}
"""How the names of Flower's classes begin, each with what is wrong and what to do instead."""


def require_no_unfit_wrapper(strategy: object) -> None:
    """Raise if a strategy is called by one of Flower's that would spoil its rounds.

    Parameters
    ----------
    strategy : object
        The strategy, which is asked for something.

    Raises
    ------
    ValueError
        If it is wrapped for differential privacy or runs in a workflow of secure aggregation,
        naming what is around it and what to use instead.
    """
    for caller in _flowers_callers():
        for start, why in _REFUSED.items():
            if any(name.startswith(start) for name in _flowers_names(caller)):
                name = type(strategy).__name__
                unweighted = "weighted=False, " if hasattr(strategy, "weighted") else ""
                why = why.format(name=name, unweighted=unweighted)
                raise ValueError(f"{type(caller).__name__} cannot wrap {name}: it {why}")


def _flowers_callers() -> Iterator[object]:
    """Yield Flower's objects whose methods are under way, and the workflows that they run."""
    frame = inspect.currentframe()
    while frame is not None:
        caller = frame.f_locals.get("self")
        if _flowers_names(caller):
            yield caller
            yield getattr(caller, "fit_workflow", None)
        frame = frame.f_back


def _flowers_names(caller: object) -> list[str]:
    """Return the names of the classes of an object that are Flower's."""
    kinds = type(caller).__mro__
    return [kind.__name__ for kind in kinds if kind.__module__.partition(".")[0] == "flwr"]
