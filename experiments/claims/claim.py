"""Claims, each with its measurement, its figure and the check that it holds, and their pages."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from experiments.studies.jobs import write_whole
from experiments.studies.tables import make_table

Findings = dict[str, Any]
"""What was measured; JSON can hold it."""


@dataclass(frozen=True)
class Claim:
    """A claim, and how it is measured.

    Parameters
    ----------
    name : str
        The name of its files and on the command line.
    title, says : str
        A heading, and what the claim says, in Markdown.
    setting : mapping of str to str
        What it is measured on, by kind, in Markdown.
    measure : callable
        Takes whether to be quick, with fewer rounds or runs, and returns the findings.
    draw : callable
        Draws the findings.
    tabulate : callable
        Returns the findings as a table in Markdown.
    check : callable
        Takes the findings, and returns what is wrong with the claim, empty if it holds.
    """

    name: str
    title: str
    says: str
    setting: Mapping[str, str]
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
        write_whole(file, json.dumps({"of": asked, "found": found}, indent=1) + "\n")
        return found


@dataclass(frozen=True)
class Page:
    """A page of docs/ that shows claims and what was found of them.

    Parameters
    ----------
    name : str
        The name of the page, and of the folder of its figures and findings beside it.
    beginning : str
        What it says before all claims, in Markdown.
    claims : tuple of Claim
        The claims, in order.
    """

    name: str
    beginning: str
    claims: tuple[Claim, ...]

    def text(self, docs: Path) -> str:
        """Return the page, with the claims that its folder in `docs` has findings of."""
        parts = [self.beginning]
        for claim in self.claims:
            file = docs / self.name / f"{claim.name}.json"
            if not file.exists():
                continue
            found = json.loads(file.read_text())["found"]
            wrong = claim.check(found)
            verdict = f"fails: {'; '.join(wrong)}" if wrong else "passes"
            rows = {**claim.setting, "check": f"`make figures ARGS={claim.name}` {verdict}"}
            parts += [
                f"## {claim.title}",
                f"**Claim.** {claim.says}",
                make_table(["setting", ""], [list(row) for row in rows.items()]),
                f"![{claim.title}]({self.name}/{claim.name}.png)",
                claim.tabulate(found),
            ]
        return "\n\n".join(parts) + "\n"
