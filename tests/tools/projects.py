"""The project file of a small Flower app."""


def project_of(
    name: str, description: str, num_clients: int, server: str = ":server", client: str = ":client"
) -> str:
    """Return the ``pyproject.toml`` of an app whose module or package has the project's name."""
    module = name.replace("-", "_")
    return f"""[project]
name = "{name}"
version = "1.0.0"
description = "{description}"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "fedmedian"

[tool.flwr.app.components]
serverapp = "{module}{server}"
clientapp = "{module}{client}"

[tool.flwr.app.config]
num-clients = {num_clients}
folder = ""
"""
