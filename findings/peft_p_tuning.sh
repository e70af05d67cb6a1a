#!/usr/bin/env bash
# peft 0.21.2: a P-tuning adapter that is sent with get_peft_model_state_dict loses its training on arrival.
#
# A client of federated fine-tuning gets the adapter by get_peft_model_state_dict, and loads it by
# set_peft_model_state_dict, to train it further. One expects the model to compute the same as before. With
# LoRA and prompt tuning it does. P-tuning computes the prompt by a small network from an embedding. The first
# function returns the network's output, and the second stores it as the network's input. So the output
# goes through the network again, and the trained network itself is never sent. The shapes agree, and there
# is no warning. Send the parameters with requires_grad, by name.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    peft==0.21.2 transformers==5.24.0 torch==2.13.0 numpy==2.4.6

cat > "$folder/finding.py" <<'PYTHON'
import logging
import warnings

import torch
from peft import (
    LoraConfig,
    PeftModel,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from transformers import GPT2Config, GPT2LMHeadModel

logging.getLogger("transformers").setLevel(logging.ERROR)
warnings.simplefilter("ignore")  # of names that transformers will change

TEXT = torch.tensor([[7, 1, 4, 1, 7, 2, 7, 1]])
CONFIGS = {
    "LoRA": LoraConfig(task_type="CAUSAL_LM", target_modules=["c_attn"], fan_in_fan_out=True),
    "prompt tuning": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    "P-tuning": PromptEncoderConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=4, encoder_hidden_size=16
    ),
}


def node(name: str, seed: int) -> PeftModel:
    """Return a server's or a client's model: the base is the same, the adapter is new."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 8, "n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2}
    config = GPT2Config(**sizes, initializer_range=0.5, bos_token_id=0, eos_token_id=0)
    base = GPT2LMHeadModel(config)
    torch.manual_seed(seed)
    return get_peft_model(base, CONFIGS[name]).eval()


def loss(model: PeftModel) -> torch.Tensor:
    """Return the loss of a model."""
    return model(TEXT, labels=TEXT).loss


for name in CONFIGS:
    server, client, other = (node(name, seed) for seed in (1, 2, 3))
    losses = {"untrained": loss(server)}
    optimizer = torch.optim.Adam([p for p in server.parameters() if p.requires_grad], lr=0.01)
    for _ in range(100):
        optimizer.zero_grad()
        loss(server).backward()
        optimizer.step()
    losses["trained"] = loss(server)
    set_peft_model_state_dict(client, get_peft_model_state_dict(server))
    losses["received"] = loss(client)
    trained = {n: p for n, p in server.named_parameters() if p.requires_grad}
    other.load_state_dict(trained, strict=False)
    losses["received by name"] = loss(other)
    print(f"{name}: {', '.join(f'{when} {value.item():.2f}' for when, value in losses.items())}")
PYTHON

cat > "$folder/seen" <<'SEEN'
LoRA: untrained 2.62, trained 0.05, received 0.05, received by name 0.05
prompt tuning: untrained 4.15, trained 1.30, received 1.30, received by name 1.30
P-tuning: untrained 3.50, trained 0.70, received 2.68, received by name 0.70
SEEN

(cd "$folder" && venv/bin/python finding.py) > "$folder/printed"
diff "$folder/seen" "$folder/printed"
