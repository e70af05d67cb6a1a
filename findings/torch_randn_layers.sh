#!/usr/bin/env bash
# torch 2.13.0: normal numbers drawn layer by layer differ from those drawn at once, uniform ones do not.
#
# Clients that send seeds instead of noise rely on the server to draw the same numbers. One expects a
# generator to give the same stream, whether a model is drawn whole or in pieces, and torch.rand does. But
# torch.randn takes another method from 16 numbers on, and draws the last 16 anew if the size is no multiple
# of 16. So noise drawn for each layer differs from that of the whole vector, all of it or a part, and the
# server removes other noise than was added. There is no warning. Draw the same shapes on both sides.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6

cat > "$folder/finding.py" <<'PYTHON'
import torch

DRAWS = {"rand": torch.rand, "randn": torch.randn}


def same(draw: str, sizes: list[int]) -> int:
    """Return how many numbers do not depend on whether they are drawn in pieces."""
    generator = torch.Generator().manual_seed(0)
    pieces = torch.cat([DRAWS[draw](size, generator=generator) for size in sizes])
    whole = DRAWS[draw](sum(sizes), generator=torch.Generator().manual_seed(0))
    return int((pieces == whole).sum())


for sizes in ([7, 8], [8, 8], [16, 16], [17, 16], [64, 64, 64], [64, 10, 64], [100, 100, 100]):
    counts = ", ".join(f"{draw} {same(draw, sizes)}" for draw in DRAWS)
    print(f"layers of {sizes}: of {sum(sizes)} numbers, same as at once: {counts}")
PYTHON

cat > "$folder/seen" <<'SEEN'
layers of [7, 8]: of 15 numbers, same as at once: rand 15, randn 15
layers of [8, 8]: of 16 numbers, same as at once: rand 16, randn 0
layers of [16, 16]: of 32 numbers, same as at once: rand 32, randn 32
layers of [17, 16]: of 33 numbers, same as at once: rand 33, randn 17
layers of [64, 64, 64]: of 192 numbers, same as at once: rand 192, randn 192
layers of [64, 10, 64]: of 138 numbers, same as at once: rand 138, randn 64
layers of [100, 100, 100]: of 300 numbers, same as at once: rand 300, randn 84
SEEN

(cd "$folder" && venv/bin/python finding.py) > "$folder/printed"
diff "$folder/seen" "$folder/printed"
