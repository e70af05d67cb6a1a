#!/usr/bin/env bash
# opacus 1.6.0: after load_checkpoint, exponential schedules of noise and clipping start anew.
#
# save_checkpoint and load_checkpoint take a noise_scheduler and a grad_clip_scheduler, and one expects a
# resumed run to have the values that it would have had. The schedulers get their last epoch back. But each
# epoch they multiply the optimizer's value, which is not saved: it is what make_private was given. Here the
# noise multiplier is eight times too large from the fourth epoch on. The accountant counts what was used.
# There is no warning. Set optimizer.noise_multiplier and max_grad_norm after loading.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check opacus==1.6.0 torch==2.13.0 numpy==2.4.6

cat > "$folder/finding.py" <<'PYTHON'
import warnings

import torch
from opacus import PrivacyEngine
from opacus.schedulers import ExponentialGradClip, ExponentialNoise
from torch.utils.data import DataLoader, TensorDataset

warnings.simplefilter("ignore")  # of secure_mode, and of hooks on inputs without gradients


class Run:
    """A private training of a small model, as it is constructed before the first epoch."""

    def __init__(self) -> None:
        net = torch.nn.Linear(2, 1)
        self.engine = PrivacyEngine()
        self.model, self.optimizer, self.loader = self.engine.make_private(
            module=net,
            optimizer=torch.optim.SGD(net.parameters(), lr=0.1),
            data_loader=DataLoader(TensorDataset(torch.ones(64, 2)), batch_size=16),
            noise_multiplier=4.0,
            max_grad_norm=1.0,
        )
        self.state = {
            "path": "checkpoint.pt",
            "module": self.model,
            "optimizer": self.optimizer,
            "noise_scheduler": ExponentialNoise(self.optimizer, gamma=0.5),
            "grad_clip_scheduler": ExponentialGradClip(self.optimizer, gamma=0.5),
        }

    def train(self, epochs: int) -> list[tuple[float, float]]:
        """Return the noise multiplier and the clipping norm of each epoch."""
        used = []
        for _ in range(epochs):
            used.append((self.optimizer.noise_multiplier, self.optimizer.max_grad_norm))
            for (x,) in self.loader:
                self.optimizer.zero_grad()
                self.model(x).square().mean().backward()
                self.optimizer.step()
            self.state["noise_scheduler"].step()
            self.state["grad_clip_scheduler"].step()
        return used


print(f"at once: {Run().train(5)}")
first, second = Run(), Run()
before = first.train(3)
first.engine.save_checkpoint(**first.state)
second.engine.load_checkpoint(**second.state)
resumed_at = second.state["noise_scheduler"].last_epoch
print(f"resumed after epoch {resumed_at}: {before + second.train(2)}")
PYTHON

cat > "$folder/seen" <<'SEEN'
at once: [(4.0, 1.0), (2.0, 0.5), (1.0, 0.25), (0.5, 0.125), (0.25, 0.0625)]
resumed after epoch 3: [(4.0, 1.0), (2.0, 0.5), (1.0, 0.25), (4.0, 1.0), (2.0, 0.5)]
SEEN

(cd "$folder" && venv/bin/python finding.py) > "$folder/printed"
diff "$folder/seen" "$folder/printed"
