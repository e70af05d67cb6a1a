"""What the two front doors share: reading ``KEY=VALUE`` overrides of the app's configuration."""

import tomllib
from pathlib import Path

from flwr.app import UserConfig

APP = Path(__file__).resolve().parent


def read_config(overrides: list[str]) -> UserConfig:
    """Return the app's run configuration with overrides, as ``flwr run -c`` takes them.

    Parameters
    ----------
    overrides : list of str
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
    project = tomllib.loads((APP / "pyproject.toml").read_text())
    config: UserConfig = dict(project["tool"]["flwr"]["app"]["config"])
    for override in overrides:
        key, _, value = override.partition("=")
        if key not in config:
            raise SystemExit(f"unknown key {key!r}; there are: {', '.join(config)}")
        try:
            config[key] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            raise SystemExit(f"{override!r}: write strings in quotes, {key}='text'") from None
    return config
