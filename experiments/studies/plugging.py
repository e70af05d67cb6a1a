"""The change that the README shows, made to an app as it stands."""

import shutil
from pathlib import Path

REPLACEMENTS = {
    "server_app.py": (
        (
            "from flwr.serverapp.strategy import FedAvg\n",
            "{imports}from fedmedian.strategies import {strategy}\n",
        ),
        ("strategy = FedAvg(", "strategy = {strategy}({arguments}"),
    ),
    "client_app.py": (
        (
            "from flwr.clientapp import ClientApp\n",
            "from flwr.clientapp import ClientApp\nfrom fedmedian.clients import perturb\n",
        ),
        ("app = ClientApp()\n", "app = ClientApp(mods=[perturb])\n"),
    ),
}
"""The texts that are replaced, each with what replaces it, by the names of an app's files.

What replaces them has the name of the strategy in it, and what a coded downlink takes.
"""

CODED = {"imports": "from fedmedian import CodedSteps\n", "arguments": "downlink=CodedSteps(), "}
"""What a coded downlink takes."""


class PlugInError(Exception):
    """An app that does not have what is to be replaced."""


def plug_in(app: Path, copy: Path, strategy: str = "SignSGD", *, downlink: bool = False) -> None:
    """Copy an app with FedAvg replaced by one of ours, and the mod added to its ClientApp.

    Parameters
    ----------
    app : Path
        The app's folder. It is not changed.
    copy : Path
        A folder to be made.
    strategy : str (default: "SignSGD")
        The strategy in FedAvg's place.
    downlink : bool (default: False)
        Whether it has a coded downlink.

    Raises
    ------
    PlugInError
        If the app does not have each file once, and each text to replace once in it.
    """
    words = {"strategy": strategy, **(CODED if downlink else dict.fromkeys(CODED, ""))}
    shutil.copytree(app, copy, ignore=shutil.ignore_patterns("__pycache__"))
    for name, replacements in REPLACEMENTS.items():
        files = list(copy.rglob(name))
        if len(files) != 1:
            raise PlugInError(f"{app.name} has {len(files)} files called {name}, must have 1")
        text = files[0].read_text()
        for old, new in replacements:
            text = _replace_once(text, old, new.format(**words), f"{app.name}/{name}")
        files[0].write_text(text)


def _replace_once(text: str, old: str, new: str, where: str) -> str:
    count = text.count(old)
    if count != 1:
        raise PlugInError(f"{where} has {old.strip()!r} {count} times, must have it once")
    return text.replace(old, new)
