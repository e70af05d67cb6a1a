#!/usr/bin/env bash
# torch 2.13.0: vector_to_parameters does not copy: the model's parameters share the vector's memory.
#
# Its documentation says that it copies slices of the vector, so one expects the vector to keep its values
# while a model is trained, and each client to have its own model. But the parameters become views of the
# vector. Training a client changes the server's model, the next client starts from there, all clients
# end with the same model, and each update, model minus vector, is 0. There is no warning. Pass
# vector.clone().
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6

cat > "$folder/finding.py" <<'PYTHON'
import torch
from torch.nn.utils import parameters_to_vector, vector_to_parameters


def train(model: torch.nn.Module, target: float) -> None:
    """Move a model of one weight half of the way to its target."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.25)
    (model(torch.ones(1, 1)) - target).square().sum().backward()
    optimizer.step()


for clone in (True, False):
    server = torch.zeros(1)
    models, updates = [], []
    for target in (1.0, 3.0):
        model = torch.nn.Linear(1, 1, bias=False)
        vector_to_parameters(server.clone() if clone else server, model.parameters())
        train(model, target)
        with torch.no_grad():
            updates.append((parameters_to_vector(model.parameters()) - server).item())
        models.append(model)
    print(
        f"vector{'.clone()' if clone else ''}: updates {updates}, "
        f"models {[model.weight.item() for model in models]}, server's model {server.item()}"
    )
PYTHON

cat > "$folder/seen" <<'SEEN'
vector.clone(): updates [0.5, 1.5], models [0.5, 1.5], server's model 0.0
vector: updates [0.0, 0.0], models [1.75, 1.75], server's model 1.75
SEEN

(cd "$folder" && venv/bin/python finding.py) > "$folder/printed"
diff "$folder/seen" "$folder/printed"
