#!/usr/bin/env bash
# peft 0.21.2: with "pissa" or "olora", an adapter for another client changes what all others predict.
#
# add_adapter is how one model holds an adapter for each client, and one expects client 1's predictions to stay
# the same. With most ways to initialize an adapter they do. But "pissa" and "olora" subtract the new adapter
# from the frozen weights, which all clients share, so each client loses what the adapters of the others hold.
# There is no warning. Use a copy of the base model for each client.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    peft==0.21.2 transformers==5.24.0 torch==2.13.0 numpy==2.4.6

cat > "$folder/finding.py" <<'PYTHON'
import torch
from peft import LoraConfig, get_peft_model

X = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))


def off(init: bool | str) -> list[str]:
    """Return how far client 1, untrained, is from the base model, with one to four adapters."""
    torch.manual_seed(0)
    base = torch.nn.Sequential(torch.nn.Linear(8, 8))
    right = base(X)
    config = LoraConfig(r=2, target_modules=["0"], init_lora_weights=init)
    model = get_peft_model(base, config, adapter_name="client 1")
    distances = []
    for number in (1, 2, 3, 4):
        if number > 1:
            model.add_adapter(f"client {number}", config)
        model.set_adapter("client 1")
        distances.append(f"{(model(X) - right).norm() / right.norm():.0%}")
    return distances


for init in (True, "gaussian", "orthogonal", "pissa", "olora"):
    print(f"init_lora_weights={init}: client 1 with 1 to 4 adapters off by {', '.join(off(init))}")
PYTHON

cat > "$folder/seen" <<'SEEN'
init_lora_weights=True: client 1 with 1 to 4 adapters off by 0%, 0%, 0%, 0%
init_lora_weights=gaussian: client 1 with 1 to 4 adapters off by 0%, 0%, 0%, 0%
init_lora_weights=orthogonal: client 1 with 1 to 4 adapters off by 0%, 0%, 0%, 0%
init_lora_weights=pissa: client 1 with 1 to 4 adapters off by 0%, 44%, 52%, 53%
init_lora_weights=olora: client 1 with 1 to 4 adapters off by 0%, 517%, 1034%, 3620%
SEEN

(cd "$folder" && venv/bin/python finding.py) > "$folder/printed"
diff "$folder/seen" "$folder/printed"
