"""The Flower apps to copy from: their folders, and their run configurations."""

import argparse
import json
import re
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

_PAIR = re.compile(r"""\S+?=('[^']*'|"[^"]*"|\S+)""")
"""An override as Flower finds it; Flower ignores all other words."""


def read_command_line(command: str, arguments: Sequence[str] | None = None) -> UserConfig:
    """Return the configuration of `HETEROGENEOUS` with the overrides on a command line.

    Parameters
    ----------
    command : str
        The command's module.
    arguments : sequence of str, optional
        The command line; this process's if not given.

    Returns
    -------
    dict
        The run configuration.

    Raises
    ------
    SystemExit
        As `read_config`, and for options that it does not know.
    """
    usual = read_config(HETEROGENEOUS)
    parser = argparse.ArgumentParser(
        prog=f"python -m {command}",
        epilog="\n  ".join(["keys:", *(f"{k}={json.dumps(v)}" for k, v in usual.items())]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "override",
        nargs="*",
        metavar="KEY=VALUE",
        help="another value for a key, with quotes around a string: \"partition='iid'\"",
    )
    return read_config(HETEROGENEOUS, parser.parse_args(arguments).override)


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
        If an override is not of that form, its key is unknown, or its value is of another type.
    """
    is_file = len(overrides) == 1 and overrides[0].endswith(".toml")
    for override in () if is_file else overrides:
        if other := _PAIR.sub("", override).strip():
            raise SystemExit(f"an override must be KEY=VALUE, got {other!r}")
    try:
        usual = get_fused_config_from_dir(app, {})
        config = get_fused_config_from_dir(app, parse_config_args(list(overrides)))
    except (OSError, ValueError, ClickException) as error:
        raise SystemExit(str(error)) from None
    for key, value in config.items():
        kind = type(usual[key])
        if type(value) is not kind and not (kind is float and type(value) is int):
            example = f"{key}={json.dumps(usual[key])}"
            raise SystemExit(f"{key} must be {kind.__name__}, as in {example}, got {value!r}")
    return config
