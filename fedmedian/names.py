"""Where public names are, for errors about imports from the wrong package."""

import sys
from typing import NoReturn

_PLACES = {
    "fedmedian.clients": (
        "FullBatchGradient",
        "GradientClient",
        "InProcessGrid",
        "LocalEpochs",
        "MiniBatchGradient",
        "Policy",
        "SignClient",
        "perturb",
        "perturb_with",
    ),
    "fedmedian.privacy": (
        "Draw",
        "Mechanism",
        "PrivacyBudget",
        "honest_of",
        "limit_of_entries",
        "noise_multiplier_for",
    ),
    "fedmedian.strategies": (
        "Checkpoint",
        "Cohort",
        "MedianSGD",
        "NoMechanism",
        "RunFailedError",
        "SignSGD",
        "plot",
    ),
}
"""What these packages export; it is written out, because they must not be imported to know it."""


def refuse_name(module: str, name: str) -> NoReturn:
    """Raise for a name that a module does not have.

    Parameters
    ----------
    module : str
        The module.
    name : str
        The name.

    Raises
    ------
    ImportError
        If another module has the name. ``from … import`` would replace an AttributeError's text.
    AttributeError
        If none has.
    """
    own = getattr(sys.modules["fedmedian"], "__all__", ())
    for place, names in {"fedmedian": own, **_PLACES}.items():
        if name in names and place != module:
            raise ImportError(f"{name} is in {place}: from {place} import {name}")
    raise AttributeError(f"module {module!r} has no attribute {name!r}")
