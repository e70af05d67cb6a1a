#!/usr/bin/env bash
# torch 2.13.0: of a 64-bit seed, a generator on the CPU uses the lower 32 bits.
#
# manual_seed accepts 64 bits, raises for more, and initial_seed() returns all of them. So one expects
# different seeds to give different numbers, and client << 32 | round to be a seed of its own for each client
# and round. But all clients draw the same numbers in a round. Their perturbations, meant to average out
# over 100 clients, add up instead: the mean is ten times too large. With round << 32 | client each client
# repeats itself in every round. There is no warning. Hash what identifies the stream to 32 bits.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6

cat > "$folder/finding.py" <<'PYTHON'
from collections.abc import Callable

import numpy as np
import torch

CLIENTS, ROUNDS = range(100), range(10)


def hashed(client: int, number: int) -> int:
    """Return 32 bits that depend on both numbers."""
    return int(np.random.SeedSequence((client, number)).generate_state(1)[0])


def report(name: str, seed: Callable[[int, int], int]) -> None:
    """Print how many seeds and streams differ, and how large the mean of the clients' noise is."""
    generators = [
        [torch.Generator().manual_seed(seed(client, number)) for client in CLIENTS]
        for number in ROUNDS
    ]
    seeds = {generator.initial_seed() for row in generators for generator in row}
    noise = torch.stack(
        [torch.stack([torch.randn(1000, generator=g) for g in row]) for row in generators]
    )
    streams = {tuple(client.tolist()) for row in noise for client in row}
    print(
        f"{name}: {len(seeds)} seeds, {len(streams)} streams, "
        f"standard deviation of the mean of 100 clients {noise.mean(dim=1).std().item():.1f}"
    )


report("hashed to 32 bits", hashed)
report("client << 32 | round", lambda client, number: client << 32 | number)
report("round << 32 | client", lambda client, number: number << 32 | client)
PYTHON

cat > "$folder/seen" <<'SEEN'
hashed to 32 bits: 1000 seeds, 1000 streams, standard deviation of the mean of 100 clients 0.1
client << 32 | round: 1000 seeds, 10 streams, standard deviation of the mean of 100 clients 1.0
round << 32 | client: 1000 seeds, 100 streams, standard deviation of the mean of 100 clients 0.1
SEEN

(cd "$folder" && venv/bin/python finding.py) > "$folder/printed"
diff "$folder/seen" "$folder/printed"
