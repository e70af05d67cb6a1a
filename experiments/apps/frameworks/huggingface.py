"""A small BERT that reads an image as a text of 64 words, one for each shade of gray."""

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset
from transformers import BertConfig, BertForSequenceClassification

from experiments.apps.frameworks.torch import load, to_record

__all__ = ["create", "fit", "load", "predict", "to_record"]

CONFIG = BertConfig(
    vocab_size=17,
    hidden_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=64,
    max_position_embeddings=64,
    num_labels=10,
    initializer_range=0.1,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)


def create() -> BertForSequenceClassification:
    """Return the initial model; from_pretrained() would bring one from the Hub."""
    torch.manual_seed(0)
    return BertForSequenceClassification(CONFIG)


def fit(model: torch.nn.Module, images: np.ndarray, labels: np.ndarray) -> torch.nn.Module:
    """Return the model after an epoch."""
    examples = TensorDataset(torch.from_numpy(images).long(), torch.from_numpy(labels))
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=3e-3)
    model.train()
    for words, y in DataLoader(examples, batch_size=16, shuffle=True):
        optimizer.zero_grad()
        model(input_ids=words, labels=y).loss.backward()
        optimizer.step()
    return model


def predict(model: torch.nn.Module, images: np.ndarray) -> np.ndarray:
    """Return the labels of images."""
    model.eval()
    with torch.no_grad():
        return model(input_ids=torch.from_numpy(images).long()).logits.argmax(dim=1).numpy()
