"""Claims of the paper, each with its measurement, its figure and the check that it holds."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

Findings = dict[str, Any]
"""What was measured; JSON can hold it."""


@dataclass(frozen=True)
class Claim:
    """A claim, and how it is tried.

    Parameters
    ----------
    name : str
        The name of its files and on the command line.
    title, says, setting : str
        A heading, what the claim says, and what it is tried on, in Markdown.
    measure : callable
        Takes whether it is to be quick, with fewer rounds or runs, and returns the findings.
    draw : callable
        Draws the findings.
    tabulate : callable
        Returns the findings as a table in Markdown.
    check : callable
        Takes the findings, and returns what of the claim does not hold, nothing if all does.
    """

    name: str
    title: str
    says: str
    setting: str
    measure: Callable[[bool], Findings]
    draw: Callable[[Findings], Figure]
    tabulate: Callable[[Findings], str]
    check: Callable[[Findings], list[str]]

    def find(self, folder: Path, *, quick: bool) -> Findings:
        """Return the findings that a folder holds; measure, draw and write them there first."""
        file = folder / f"{self.name}.json"
        asked = {"setting": self.setting, "quick": quick}
        if file.exists() and (folder / f"{self.name}.png").exists():
            stored = json.loads(file.read_text())
            if stored["of"] == asked:
                return dict(stored["found"])
        found: Findings = json.loads(json.dumps(self.measure(quick)))
        folder.mkdir(parents=True, exist_ok=True)
        self.draw(found).savefig(folder / f"{self.name}.png", dpi=110)
        unfinished = file.with_suffix(".part")
        unfinished.write_text(json.dumps({"of": asked, "found": found}, indent=1) + "\n")
        unfinished.replace(file)  # whoever is killed here leaves all of it or nothing
        return found


def page(claims: Sequence[Claim], folder: Path) -> str:
    """Return the page of the claims that a folder has findings of, in Markdown.

    Parameters
    ----------
    claims : sequence of Claim
        All claims, in order.
    folder : Path
        Where the findings are.

    Returns
    -------
    str
        The page.
    """
    parts = [
        "# The paper, reproduced",
        "Claims of Chen et al., *Distributed Training with Heterogeneous Data*, NeurIPS 2020 "
        "([arXiv 1906.01736](https://arxiv.org/abs/1906.01736)), tried with this package's "
        "strategies on its own Grid. `make figures` writes this page, its figures and the numbers "
        "behind them (JSON), and does again only what is missing. The last claim is this "
        "package's own. For Figures 2 and 3 on the "
        "paper's own data there are `make figures ARGS=figure2-mnist` and `make figures "
        "ARGS=figure3-cifar-10`, from the Hugging Face Hub or from copies in the folders that the "
        "environment variables `MNIST` and `CIFAR_10` name.",
    ]
    for claim in claims:
        file = folder / f"{claim.name}.json"
        if not file.exists():
            continue
        found = json.loads(file.read_text())["found"]
        wrong = claim.check(found)
        verdict = "The check passes." if not wrong else "The check fails: " + "; ".join(wrong) + "."
        parts += [
            f"## {claim.title}",
            f"**Claim.** {claim.says}",
            f"**Tried on.** {claim.setting} `make figures ARGS={claim.name}`. {verdict}",
            f"![{claim.title}](paper/{claim.name}.png)",
            claim.tabulate(found),
        ]
    return "\n\n".join(parts) + "\n"
