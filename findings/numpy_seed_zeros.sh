#!/usr/bin/env bash
# numpy 2.4.6: default_rng([seed, 0]) and default_rng([seed, 0, 0]) draw the same as default_rng(seed).
#
# NumPy's guide to parallel generators seeds them with lists. It recommends [worker, seed], and says that
# [seed, worker] works, too. So one expects a server with [seed], its rounds with [seed, round] and their
# clients with [seed, round, client] to draw different numbers. But zeros at the end do not count, up to four
# numbers of 32 bits. Round 0 and its client 0 draw the server's numbers, and client 0 of each later round
# draws the round's. There is no warning. Put the seed last.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6

cat > "$folder/finding.py" <<'PYTHON'
import numpy as np

SEED = 2027
STREAMS = {
    "server": (),
    "round 0": (0,),
    "round 0, client 0": (0, 0),
    "round 0, client 1": (0, 1),
    "round 1": (1,),
    "round 1, client 0": (1, 0),
    "round 1, client 1": (1, 1),
}


def seed_last(numbers: tuple[int, ...]) -> np.random.Generator:
    """Return a generator for a stream."""
    return np.random.default_rng([*numbers, SEED])


def seed_first(numbers: tuple[int, ...]) -> np.random.Generator:
    """Return a generator for a stream, seeded the other way round."""
    return np.random.default_rng([SEED, *numbers])


for way in (seed_last, seed_first):
    first = {}
    for name, numbers in STREAMS.items():
        drawn = tuple(way(numbers).integers(1000, size=4).tolist())
        same = f", as {first[drawn]}" if drawn in first else ""
        first.setdefault(drawn, name)
        print(f"{way.__name__}, {name}: {drawn}{same}")
PYTHON

cat > "$folder/seen" <<'SEEN'
seed_last, server: (632, 8, 148, 385)
seed_last, round 0: (753, 848, 118, 628)
seed_last, round 0, client 0: (858, 939, 843, 348)
seed_last, round 0, client 1: (845, 305, 649, 70)
seed_last, round 1: (979, 351, 114, 192)
seed_last, round 1, client 0: (662, 285, 678, 491)
seed_last, round 1, client 1: (130, 364, 976, 390)
seed_first, server: (632, 8, 148, 385)
seed_first, round 0: (632, 8, 148, 385), as server
seed_first, round 0, client 0: (632, 8, 148, 385), as server
seed_first, round 0, client 1: (129, 313, 260, 483)
seed_first, round 1: (732, 914, 606, 8)
seed_first, round 1, client 0: (732, 914, 606, 8), as round 1
seed_first, round 1, client 1: (808, 645, 949, 540)
SEEN

(cd "$folder" && venv/bin/python finding.py) > "$folder/printed"
diff "$folder/seen" "$folder/printed"
