"""The study of half precision: models that travel as float16 or bfloat16, beside float32.

``python -m experiments.studies.half`` prints the table. Results are kept in experiments/results,
and a study that was killed resumes there.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import fmean

from experiments.studies.both_ways import run_setting
from experiments.studies.commands import show_tables
from experiments.studies.federation import Setting
from experiments.studies.jobs import run_jobs
from experiments.studies.random_basis import late
from experiments.studies.tables import make_table

RESULTS = Path(__file__).resolve().parents[1] / "results" / "half"

DTYPES = ("float32", "float16", "bfloat16")

ROUNDS = {0.05: 20, 0.005: 50, 0.0005: 100}
"""The numbers of rounds, by the clients' learning rate."""

CELLS = [
    (strategy, dtype)
    for strategy in ("FedAvg", "SignSGD()", "MedianSGD()")
    for dtype in DTYPES
    if (strategy, dtype) != ("FedAvg", "bfloat16")  # Flower's cannot average it
]


def accuracy_table(seeds: Sequence[int] = (0, 1)) -> str:
    """Compare dtypes of the model: ten clients of alike digits, which train in float32.

    Parameters
    ----------
    seeds : sequence of int (default: 0, 1)
        The seeds.

    Returns
    -------
    str
        The table: mean accuracy over seeds and the last five rounds.
    """
    digits = partial(Setting, dataset="digits", partition="iid", tested=5)
    jobs = {
        (strategy, dtype, rate, seed): (
            f"{strategy} | {dtype} | {rate} | {rounds} | seed {seed}",
            partial(
                run_setting,
                strategy,
                digits(learning_rate=rate, rounds=rounds, dtype=dtype),
                seed,
            ),
        )
        for strategy, dtype in CELLS
        for rate, rounds in ROUNDS.items()
        for seed in seeds
    }
    results = run_jobs(jobs, RESULTS)
    rows = []
    for strategy, dtype in CELLS:
        ends = [
            fmean(late([results[strategy, dtype, rate, seed]]) for seed in seeds) for rate in ROUNDS
        ]
        rows.append([strategy, dtype, *(f"{end:.3f}" for end in ends)])
    heads = [f"rate {rate}, {rounds} rounds" for rate, rounds in ROUNDS.items()]
    return make_table(["strategy", "model in", *heads], rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    show_tables("half", {"accuracy": accuracy_table}, arguments)


if __name__ == "__main__":
    main()
