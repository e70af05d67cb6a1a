"""What the client adds to Flower's memory and time, each part measured in its own process."""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

_FIRST_ANSWER = """
import numpy as np
from fedmedian import Layout, Gaussian, Rotation
from fedmedian.steps.encodings import Signs
from fedmedian.steps.instruction import Instruction, perturb_update
from fedmedian.steps.noise import AddNoise
steps = Rotation(seed=0), AddNoise(Gaussian(), np.ones(1, np.float32)), Signs()
model = {"w": np.zeros(1000, np.float32)}
layout, rng = Layout.of_model(model), np.random.default_rng(0)
perturb_update(Instruction(steps, 1, 0, ()), layout, model["w"], model, rng)
"""

PARTS = {
    "import fedmedian.clients": "import fedmedian.clients",
    "the same and a first answer in votes": f"import fedmedian.clients{_FIRST_ANSWER}",
}
"""What is done once flwr.clientapp is imported, in words and in Python."""

_MEASURED = """
import time
import flwr.clientapp
def resident():
    lines = open("/proc/self/status").read().splitlines()
    return int(dict(line.split(":") for line in lines)["VmRSS"].split()[0]) / 2**10
mebibytes, seconds = resident(), time.process_time()
{part}
print(mebibytes, seconds, resident() - mebibytes, time.process_time() - seconds)
"""


@dataclass(frozen=True)
class Part:
    """What some work adds to a process that has imported flwr.clientapp.

    Parameters
    ----------
    work : str
        What is done.
    mebibytes, seconds : float
        What it adds of resident memory and of the processor's time; medians.
    flower_mebibytes, flower_seconds : float
        The process's, before.
    """

    work: str
    mebibytes: float
    seconds: float
    flower_mebibytes: float
    flower_seconds: float


COLUMNS = ["beside flwr.clientapp", "adds MiB", "adds ms", "Flower's MiB", "Flower's ms"]


def parts(runs: int = 7) -> list[Part]:
    """Measure each of `PARTS`; in turns, so that all meet the same disturbances."""
    found: dict[str, list[list[float]]] = {work: [] for work in PARTS}
    for _ in range(runs):
        for work, code in PARTS.items():
            found[work].append(_measure(code))
    return [_part(work, taken) for work, taken in found.items()]


def rows(found: Sequence[Part]) -> list[list[str]]:
    """Return the measurements as a table's rows, under `COLUMNS`."""
    return [
        [
            one.work,
            f"{one.mebibytes:.1f}",
            f"{1e3 * one.seconds:.0f}",
            f"{one.flower_mebibytes:.1f}",
            f"{1e3 * one.flower_seconds:.0f}",
        ]
        for one in found
    ]


def _measure(part: str) -> list[float]:
    code = _MEASURED.format(part=part)
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return [float(number) for number in done.stdout.split()]


def _part(work: str, taken: list[list[float]]) -> Part:
    before_mebibytes, before_seconds, mebibytes, seconds = map(median, zip(*taken, strict=True))
    return Part(work, mebibytes, seconds, before_mebibytes, before_seconds)
