#!/usr/bin/env bash
# torchmetrics 1.9.0: the accuracy of the same logits depends on the size of the batches.
#
# Values outside [0, 1] are documented to be taken for logits, with a sigmoid for each. One expects the same
# result as with probabilities. But each update() decides for itself: a small batch whose logits all happen to
# be between 0 and 1 counts as probabilities. So 0.3 is a no instead of a yes, AUROC ranks both scales
# together, and a client with smaller batches reports other numbers for the same model. There is no warning.
# Pass logits.sigmoid().
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    torchmetrics==1.9.0 torch==2.13.0 numpy==2.4.6

cat > "$folder/finding.py" <<'PYTHON'
import torch
from torchmetrics.classification import BinaryAccuracy, BinaryAUROC

generator = torch.Generator().manual_seed(0)
target = torch.randint(2, (1000,), generator=generator)
logits = 0.5 * torch.randn(1000, generator=generator) + target - 0.5

for name, preds in (("probabilities", logits.sigmoid()), ("logits", logits)):
    for size in (1000, 4, 2, 1):
        accuracy, auroc = BinaryAccuracy(), BinaryAUROC()
        for batch in zip(preds.split(size), target.split(size), strict=True):
            accuracy.update(*batch)
            auroc.update(*batch)
        print(
            f"{name}, batches of {size}: "
            f"accuracy {accuracy.compute():.3f}, AUROC {auroc.compute():.3f}"
        )
PYTHON

cat > "$folder/seen" <<'SEEN'
probabilities, batches of 1000: accuracy 0.841, AUROC 0.922
probabilities, batches of 4: accuracy 0.841, AUROC 0.922
probabilities, batches of 2: accuracy 0.841, AUROC 0.922
probabilities, batches of 1: accuracy 0.841, AUROC 0.922
logits, batches of 1000: accuracy 0.841, AUROC 0.922
logits, batches of 4: accuracy 0.831, AUROC 0.903
logits, batches of 2: accuracy 0.794, AUROC 0.829
logits, batches of 1: accuracy 0.735, AUROC 0.741
SEEN

(cd "$folder" && venv/bin/python finding.py) > "$folder/printed"
diff "$folder/seen" "$folder/printed"
