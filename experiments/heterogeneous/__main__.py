"""The comparison without Ray: ``python -m experiments.heterogeneous [KEY=VALUE ...]``."""

import logging
import sys
import tomllib
from pathlib import Path

from flwr.app import UserConfig

from experiments.heterogeneous.fedmedian_heterogeneous import client_app, server_app
from experiments.heterogeneous.fedmedian_heterogeneous.report import print_table, write_report
from fedmedian.clients import InProcessGrid

_DEFAULTS = Path(__file__).with_name("pyproject.toml")


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
    config = tomllib.loads(_DEFAULTS.read_text())["tool"]["flwr"]["app"]["config"]
    for override in overrides:
        key, _, value = override.partition("=")
        if key not in config:
            raise SystemExit(f"unknown key {key!r}; there are: {', '.join(config)}")
        try:
            config[key] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            raise SystemExit(f"{override!r}: write strings in quotes, {key}='text'") from None
    return dict(config)


def main() -> None:
    """Compare the strategies in this process, and print and write what the app does."""
    config = read_config(sys.argv[1:])
    logging.getLogger("flwr").setLevel(logging.ERROR)
    grid = InProcessGrid(client_app.app, int(config["num-clients"]), run_config=config)
    runs = server_app.compare(grid, config)
    print_table(runs)
    if config["output"]:
        title = server_app.describe(config)
        write_report(Path(str(config["output"])), runs, config, title)


if __name__ == "__main__":
    main()
