"""The Flower apps to copy from: their folders, and their run configurations."""

from collections.abc import Sequence
from pathlib import Path

from click import ClickException
from flwr.app import UserConfig
from flwr.common.config import get_fused_config_from_dir, parse_config_args

_APPS = Path(__file__).resolve().parent

HETEROGENEOUS = _APPS / "heterogeneous"
"""The app that compares strategies on clients whose data differ."""

QUICKSTARTS = tuple(_APPS / f"quickstart-{name}" for name in ("torch", "sklearn", "numpy"))
"""Apps as Flower's quickstarts are, which know nothing of fedmedian."""


def read_config(app: Path, overrides: Sequence[str] = ()) -> UserConfig:
    """Return an app's run configuration with overrides, as ``flwr run -c`` takes them.

    Parameters
    ----------
    app : Path
        The app's folder.
    overrides : sequence of str (default: none)
        ``KEY=VALUE`` with a TOML value; only keys that the app has.

    Returns
    -------
    dict
        The run configuration.

    Raises
    ------
    SystemExit
        If an override is not of that form or its key is unknown.
    """
    try:
        return get_fused_config_from_dir(app, parse_config_args(list(overrides)))
    except (ValueError, ClickException) as error:
        raise SystemExit(str(error)) from None
