"""Flower's client side: the mod, client classes for torch models, and a Grid without Ray.

The client classes need torch and are imported on first use.
"""

from typing import TYPE_CHECKING, Any

from fedmedian.clients.in_process import InProcessGrid
from fedmedian.clients.mod import perturb, perturb_with
from fedmedian.clients.policy import Policy
from fedmedian.names import refuse_name

if TYPE_CHECKING:
    from fedmedian.clients.torch_clients import (
        FullBatchGradient,
        GradientClient,
        LocalEpochs,
        MiniBatchGradient,
        SignClient,
    )

__all__ = [
    "FullBatchGradient",
    "GradientClient",
    "InProcessGrid",
    "LocalEpochs",
    "MiniBatchGradient",
    "Policy",
    "SignClient",
    "perturb",
    "perturb_with",
]


if not TYPE_CHECKING:  # or type checkers would take any name for one of these

    def __getattr__(name: str) -> Any:
        if name not in __all__:  # names that are imported above never get here
            refuse_name(__name__, name)
        try:
            from fedmedian.clients import torch_clients
        except ModuleNotFoundError as error:
            raise ImportError(f"{name} needs torch: pip install 'fedmedian[torch]'") from error
        return getattr(torch_clients, name)


def __dir__() -> list[str]:
    return [*__all__, "attacks"]
