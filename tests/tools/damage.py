"""Damage to checkpoints: bits that flip on the disk, and processes that are killed in a save.

``python -m tests.tools.damage`` flips 10,000 bits and kills 100 processes in some minutes,
and prints what came of it; ``python -m tests.tools.damage 100 5`` does less.
"""

import argparse
import logging
import shutil
import tempfile
import time
from collections import Counter
from itertools import count
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from experiments.studies.tables import make_table
from fedmedian.rounds.checkpoint import Checkpoint, Saved

Outcomes = Counter[str]

FOUND, WITHOUT_EFFECT, DIFFERENT = "found and named", "without effect", "silently different"
WHOLE, WHOLE_WITH_DRAFT = "whole", "whole, beside half of the next"


def saved_after(server_round: int, size: int) -> Saved:
    """Return a run after a round, all of which follows from the round."""
    rng = np.random.default_rng(server_round)
    weight = rng.standard_normal(size, dtype=np.float32)
    arrays = {
        "model": {"weight": weight, "batches": np.array(server_round)},
        "optimizer": {"m": weight[::-1].copy(), "rounds": np.array([server_round])},
        "scales": {"scales": rng.random(2)},
        "average": {},
    }
    history = {
        "train": {n: {"train-loss": 1 / n, "noise-scale": [0.1, 1 / n]} for n in range(1, 9)}
    }
    return Saved(server_round, {"seed": "1", "noise": "Gaussian(scale=0.1)"}, arrays, history)


def is_same(first: Saved, second: Saved) -> bool:
    """Tell whether two runs are the same, bit for bit."""
    return _as_bits(first) == _as_bits(second)


def flip_bits(flips: int, folder: Path) -> Outcomes:
    """Flip random bits, one at a time, in a checkpoint's files, and count what reading it gives.

    Parameters
    ----------
    flips : int
        The number of flips.
    folder : Path
        Where the checkpoint is written.

    Returns
    -------
    Counter
        How often the damage was found, had no effect, or was something worse.
    """
    rng, outcomes = np.random.default_rng(0), Outcomes()
    checkpoint, saved = Checkpoint(folder), saved_after(7, 60)
    checkpoint.save(saved)
    files = sorted((folder / "round-000007").iterdir())
    for _ in range(flips):
        path = files[rng.integers(len(files))]
        whole = path.read_bytes()
        damaged = bytearray(whole)
        damaged[rng.integers(len(damaged))] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        outcomes[_outcome(checkpoint, saved, path)] += 1
        path.write_bytes(whole)
    return outcomes


def kill_in_saves(kills: int, folder: Path) -> Outcomes:
    """Kill processes, one after the other, that save as fast as they can to one folder.

    Each takes the folder's lock and goes on where the one before was killed.

    Parameters
    ----------
    kills : int
        The number of processes.
    folder : Path
        The folder.

    Returns
    -------
    Counter
        How often the folder held whole checkpoints of the last rounds, or something worse.
    """
    rng, outcomes = np.random.default_rng(0), Outcomes()
    # Children of a process that has imported everything begin at once.
    context = get_context("forkserver")
    context.set_forkserver_preload([_save_for_ever.__module__])
    for _ in range(kills):
        heard, said = context.Pipe(duplex=False)
        process = context.Process(target=_save_for_ever, args=(folder, said))
        process.start()
        said.close()
        heard.recv()
        start = time.monotonic()
        last = [heard.recv() for _ in range(3)][-1]
        time.sleep(rng.uniform(0, (time.monotonic() - start) / 3))  # anywhere in a save
        process.kill()
        process.join()
        while heard.poll():
            try:
                last = heard.recv()
            except (EOFError, OSError):  # killed while it spoke
                break
        outcomes[_what_is_left(folder, last)] += 1
    return outcomes


def main() -> None:
    """Print what comes of as many flips and kills as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tests.tools.damage")
    for what, usual in (("flips", 10_000), ("kills", 100)):
        parser.add_argument(
            what, type=int, nargs="?", default=usual, help=f"how many (default: {usual:,})"
        )
    asked = parser.parse_args()
    logging.getLogger("flwr").setLevel(logging.ERROR)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, outcomes in (
            ("a bit flips", flip_bits(asked.flips, Path(folder) / "flips")),
            ("a process is killed", kill_in_saves(asked.kills, Path(folder) / "kills")),
        ):
            rows += [[name, outcome, str(times)] for outcome, times in outcomes.most_common()]
    print(make_table(["damage", "outcome", "times"], rows))


def _save_for_ever(folder: Path, said: Connection) -> None:
    checkpoint = Checkpoint(folder)
    lock = checkpoint.claim()  # which the process before must not have any more
    try:
        before = checkpoint.load()
        for server_round in count(1 if before is None else before.server_round + 1):
            checkpoint.save(saved_after(server_round, 50_000), before=server_round - 1)
            said.send(server_round)
    finally:
        lock.release()


def _what_is_left(folder: Path, last: int) -> str:
    """Look at a folder whose process has said `last` of the rounds that it had saved."""
    rounds = sorted(int(path.name.removeprefix("round-")) for path in folder.glob("round-*"))
    if rounds[-1] not in (last, last + 1):  # it may have been killed before it said so
        return "lost"
    for server_round in rounds[-2:]:
        with tempfile.TemporaryDirectory() as alone:
            name = f"round-{server_round:06}"
            shutil.copytree(folder / name, Path(alone) / name)
            try:
                read = Checkpoint(alone).load()
            except ValueError:
                return "torn"
        if read is None or not is_same(read, saved_after(server_round, 50_000)):
            return DIFFERENT
    return WHOLE_WITH_DRAFT if (folder / ".draft").exists() else WHOLE


def _outcome(checkpoint: Checkpoint, saved: Saved, path: Path) -> str:
    try:
        read = checkpoint.load()
    except ValueError as error:
        return FOUND if str(path.parent) in str(error) else f"found, not named: {error}"
    except Exception as error:
        return f"escaped: {type(error).__name__}"
    return WITHOUT_EFFECT if read is not None and is_same(read, saved) else DIFFERENT


def _as_bits(saved: Saved) -> object:
    arrays = {
        group: {name: (array.dtype, array.shape, array.tobytes()) for name, array in own.items()}
        for group, own in saved.arrays.items()
    }
    return saved.server_round, saved.identity, arrays, saved.history


if __name__ == "__main__":
    main()
