#!/usr/bin/env bash
# peft 0.21.2: the "linear" mean of ten equal LoRA adapters is ten times as strong as each of them.
#
# One expects add_weighted_adapter to return the same adapter if all are equal and the weights add up to 1.
# With combination_type="cat" or "svd" it does. The docstring calls "linear" a very rough approximation,
# but the mean of equal adapters needs none. Each adapter is a product of two matrices. Both are scaled by
# the root of the weight and added up before they are multiplied, which adds the products of each client
# with all others. So ten clients of weight 0.1 send the model ten times too far, without a warning.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    peft==0.21.2 transformers==5.24.0 torch==2.13.0 numpy==2.4.6

cat > "$folder/finding.py" <<'PYTHON'
import torch
from peft import LoraConfig, get_peft_model

CONFIG = LoraConfig(r=2, target_modules=["layer"], init_lora_weights=False)


def strength(weights: list[float], combination_type: str) -> float:
    """Return how strong the combination of equal adapters is, compared with one of them."""
    torch.manual_seed(0)
    base = torch.nn.ModuleDict({"layer": torch.nn.Linear(8, 8, bias=False)})
    clients = [f"client {number}" for number in range(len(weights))]
    model = get_peft_model(base, CONFIG, adapter_name=clients[0])
    layer = model.base_model.model["layer"]
    for client in clients[1:]:
        model.add_adapter(client, CONFIG)
        layer.lora_A[client].load_state_dict(layer.lora_A[clients[0]].state_dict())
        layer.lora_B[client].load_state_dict(layer.lora_B[clients[0]].state_dict())
    model.add_weighted_adapter(clients, weights, "mean", combination_type=combination_type)
    update, mean = layer.get_delta_weight(clients[0]), layer.get_delta_weight("mean")
    return (mean.norm() / update.norm()).item()


for weights in ([1.0], [0.7, 0.3], [0.5, 0.5], [0.1] * 10):
    ratios = {kind: f"{strength(weights, kind):.2f}" for kind in ("cat", "svd", "linear")}
    print(f"weights {weights}: {ratios}")
PYTHON

cat > "$folder/seen" <<'SEEN'
weights [1.0]: {'cat': '1.00', 'svd': '1.00', 'linear': '1.00'}
weights [0.7, 0.3]: {'cat': '1.00', 'svd': '1.00', 'linear': '1.92'}
weights [0.5, 0.5]: {'cat': '1.00', 'svd': '1.00', 'linear': '2.00'}
weights [0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]: {'cat': '1.00', 'svd': '1.00', 'linear': '10.00'}
SEEN

(cd "$folder" && venv/bin/python finding.py) > "$folder/printed"
diff "$folder/seen" "$folder/printed"
