#!/usr/bin/env bash
# accelerate 1.15.0: all clients in a process accumulate gradients over as many batches as the last.
#
# gradient_accumulation_steps is an argument of each Accelerator, and one expects it to hold for that one. But
# it is kept in a state that all of them share, and each new Accelerator overwrites it, also one made without
# the argument. Of three clients in a simulation with 4, 1 and 8, all take a step after 8 batches, with losses
# divided by 8. There is no warning. Make a client's Accelerator right before it trains.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check accelerate==1.15.0 torch==2.13.0 numpy==2.4.6

cat > "$folder/finding.py" <<'PYTHON'
import torch
from accelerate import Accelerator

X = torch.ones(1, 1)


class Client:
    """A client that accumulates gradients over some batches."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.accelerator = Accelerator(cpu=True, gradient_accumulation_steps=steps)
        model = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.zeros_(model.weight)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)

    def train(self) -> None:
        """Train on 16 batches, and print how often the weight changed."""
        weights = {self.model.weight.item()}
        for _ in range(16):
            with self.accelerator.accumulate(self.model):
                self.accelerator.backward((self.model(X) - 1).square().mean())
                self.optimizer.step()
                self.optimizer.zero_grad()
            weights.add(self.model.weight.item())
        print(f"  client of {self.steps} takes {len(weights) - 1} steps on 16 batches")


print("each client trains before the next is made")
for steps in (4, 1, 8):
    Client(steps).train()
print("all clients are made before they train")
for client in [Client(steps) for steps in (4, 1, 8)]:
    client.train()
PYTHON

cat > "$folder/seen" <<'SEEN'
each client trains before the next is made
  client of 4 takes 4 steps on 16 batches
  client of 1 takes 16 steps on 16 batches
  client of 8 takes 2 steps on 16 batches
all clients are made before they train
  client of 4 takes 2 steps on 16 batches
  client of 1 takes 2 steps on 16 batches
  client of 8 takes 2 steps on 16 batches
SEEN

(cd "$folder" && venv/bin/python finding.py) > "$folder/printed"
diff "$folder/seen" "$folder/printed"
