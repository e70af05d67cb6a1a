"""The small BERT, trained on digits that lie on their sides; low-rank adapters learn upright ones.

Adapters and classifier are trained and sent, nothing else.
"""

import numpy as np
import peft
from flwr.app import ArrayRecord

from experiments.apps.frameworks import load_data
from experiments.apps.frameworks.huggingface import create as create_base
from experiments.apps.frameworks.huggingface import fit, predict

__all__ = ["create", "fit", "load", "predict", "to_record"]

CONFIG = peft.LoraConfig(
    task_type=peft.TaskType.SEQ_CLS, r=4, lora_alpha=16, target_modules=["query", "value"]
)


def create() -> peft.PeftModel:
    """Return the initial model; from_pretrained() would bring the base from the Hub."""
    base, (images, labels, _, _) = create_base(), load_data(0, 1)
    on_their_sides = np.rot90(images.reshape(-1, 8, 8), axes=(1, 2)).reshape(-1, 64).copy()
    for _ in range(6):
        fit(base, on_their_sides, labels)
    return peft.get_peft_model(base, CONFIG)


def to_record(model: peft.PeftModel) -> ArrayRecord:
    """Return what is sent."""
    return ArrayRecord(peft.get_peft_model_state_dict(model))


def load(model: peft.PeftModel, record: ArrayRecord) -> peft.PeftModel:
    """Return the model with what was received."""
    peft.set_peft_model_state_dict(model, record.to_torch_state_dict())
    return model
