"""A transformer that learns to write text: one bit a parameter, beside FedAvg."""

from copy import deepcopy
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from pydoc_data.topics import topics
from typing import cast

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict, UserConfig
from flwr.clientapp import ClientApp
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from experiments.claims.claim import Claim, Findings
from experiments.studies.figures import COLORS, STYLES
from experiments.studies.harness import App, StudyGrid, Tell, run
from experiments.studies.jobs import Result, run_jobs
from experiments.studies.random_basis import STRATEGIES
from experiments.studies.tables import make_table
from fedmedian.clients import perturb

RESULTS = Path(__file__).resolve().parents[1] / "results" / "text"

NAMES = ("FedAvg", "FedMedian", "SignSGD()", "MedianSGD()")
NUM_CLIENTS, CONTEXT, BATCH = 10, 64, 16
LENGTH = CONTEXT + 1
PIECE, HELD_OUT = 1000, 10
"""Of each client's pieces of so many characters the tenth is for testing."""

ALPHABET = "".join(map(chr, range(ord(" "), ord("~") + 1))) + "\n"

Codes = NDArray[np.int64]


@dataclass(frozen=True)
class Task:
    """What clients train, and how.

    Parameters
    ----------
    adapters : bool
        Whether only low-rank adapters are trained and sent, in a model pretrained on the first
        half of the text. Otherwise the whole model is trained from scratch.
    rounds, steps : int
        The number of rounds, and of each client's steps in a round.
    width : int
        The width of the transformer's two layers.
    """

    adapters: bool
    rounds: int
    steps: int = 20
    width: int = 64

    def __str__(self) -> str:
        """Return a name that no other task has."""
        kind = "adapters" if self.adapters else "all"
        return f"{kind}, {self.rounds} rounds of {self.steps} steps, width {self.width}"


class Adapted(nn.Module):
    """A linear layer with a low-rank adapter (LoRA: Hu et al., ICLR 2022, arXiv 2106.09685).

    Parameters
    ----------
    layer : Linear
        The layer, which stays as it is.
    rank : int (default: 4)
        The rank of what is added.
    """

    def __init__(self, layer: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.layer = layer
        self.lora_down = nn.Parameter(torch.randn(rank, layer.in_features) / rank)
        self.lora_up = nn.Parameter(torch.zeros(layer.out_features, rank))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the layer's output with the adapter's added."""
        return cast(Tensor, self.layer(inputs) + inputs @ self.lora_down.T @ self.lora_up.T)


class Block(nn.Module):
    """A layer of a transformer that looks back: attention, then a perceptron."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return (batch, length, width) for the same."""
        three = self.query_key_value(self.norm_attention(hidden)).chunk(3, dim=-1)
        query, key, value = (one.unflatten(-1, (self.heads, -1)).transpose(1, 2) for one in three)
        seen = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        hidden = hidden + self.out(seen.transpose(1, 2).flatten(2))
        return cast(Tensor, hidden + self.narrow(functional.gelu(self.wide(self.norm_mlp(hidden)))))


class Writer(nn.Module):
    """A transformer that gives the next character, whose embedding is also its last layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(len(ALPHABET), width), nn.Embedding(CONTEXT, width)
        self.blocks = nn.Sequential(Block(width), Block(width))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, len(ALPHABET), bias=False)
        nn.init.normal_(self.embed.weight, std=0.02)
        self.head.weight = self.embed.weight

    def forward(self, characters: Tensor) -> Tensor:
        """Return (batch, length, alphabet) logits for (batch, length) characters."""
        hidden = self.embed(characters) + self.place.weight[: characters.shape[1]]
        return cast(Tensor, self.head(self.norm(self.blocks(hidden))))


def adapt(model: Writer) -> None:
    """Freeze a model, and give an adapter to each linear layer of its blocks."""
    model.requires_grad_(False)
    for block in model.blocks:
        for name in ("query_key_value", "out", "wide", "narrow"):
            setattr(block, name, Adapted(getattr(block, name)))


@cache
def load() -> tuple[list[Tensor], Tensor, Tensor]:
    """Return each client's text, the text for pretraining, and (n, length) test windows, as codes.

    The text is Python's help on its topics, in the order of their names. The first half is for
    pretraining, and each client has a tenth of the other half.
    """
    paragraphs = "\n\n".join(topics[name] for name in sorted(topics)).split("\n\n")
    text = "\n\n".join(dict.fromkeys(paragraphs))  # some stand under several topics
    known = {character: index for index, character in enumerate(ALPHABET)}
    codes = np.array([known.get(character, 0) for character in text])
    before, theirs = np.array_split(codes, 2)
    pieces = np.array_split(theirs, len(theirs) // PIECE)
    own: list[list[Codes]] = [[] for _ in range(NUM_CLIENTS)]
    windows = []
    for index, piece in enumerate(pieces):
        if index % HELD_OUT:
            own[index * NUM_CLIENTS // len(pieces)].append(piece)
        else:
            windows += np.split(piece[: len(piece) // LENGTH * LENGTH], len(piece) // LENGTH)
    return (
        [torch.from_numpy(np.concatenate(part)) for part in own],
        torch.from_numpy(before),
        torch.from_numpy(np.stack(windows)),
    )


def train(model: Writer, codes: Tensor, steps: int, rng: np.random.Generator, rate: float) -> None:
    """Train a model's trainable parameters on random windows of a text."""
    optimizer = torch.optim.AdamW(
        [one for one in model.parameters() if one.requires_grad], lr=rate, fused=True
    )
    for _ in range(steps):
        starts = torch.from_numpy(rng.integers(len(codes) - CONTEXT, size=(BATCH, 1)))
        window = codes[starts + torch.arange(LENGTH)]
        optimizer.zero_grad()
        logits = model(window[:, :-1])
        loss = functional.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


@cache
def make_model(task: Task, seed: int) -> Writer:
    """Return the model of the first round."""
    torch.manual_seed(seed)
    model = Writer(task.width)
    if task.adapters:
        train(model, load()[1], 50 * task.steps, np.random.default_rng(seed), rate=3e-3)
        adapt(model)
    return model


def what_travels(model: Writer) -> dict[str, Tensor]:
    """Return the part of a model's state that clients train: its adapters, or all of it."""
    state = model.state_dict()
    return {name: state[name] for name in state if "lora" in name} or state


def run_task(strategy: str, task: Task, seed: int) -> Result:
    """Train a task's clients with a strategy.

    Parameters
    ----------
    strategy : str
        One of `NAMES`.
    task : Task
        The task.
    seed : int
        The seed.

    Returns
    -------
    dict
        ``loss``, nats per character of the text held out, before the first round and after each,
        ``uplink``, the bytes of a training reply as sent, and ``parameters``, how many travel.
    """
    parts, _, tested = load()
    model = deepcopy(make_model(task, seed))

    def train_one(message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        server_round = cast(int, message.content.config_records["config"]["server-round"])
        arrays = message.content.array_records["arrays"]
        model.load_state_dict(arrays.to_torch_state_dict(), strict=False)
        rng = np.random.default_rng((seed, partition, server_round))
        train(model, parts[partition], task.steps, rng, rate=3e-3)
        content = RecordDict(
            {
                "arrays": ArrayRecord(what_travels(model)),
                "metrics": MetricRecord({"num-examples": len(parts[partition])}),
            }
        )
        return Message(content, reply_to=message)

    def serve(config: UserConfig, grid: StudyGrid, tell: Tell) -> None:
        def test(server_round: int, arrays: ArrayRecord) -> MetricRecord:
            model.load_state_dict(arrays.to_torch_state_dict(), strict=False)
            with torch.no_grad():
                logits = model(tested[:, :-1])
            tell(
                server_round,
                float(functional.cross_entropy(logits.flatten(0, 1), tested[:, 1:].flatten())),
            )
            return MetricRecord({})

        made = STRATEGIES[strategy](seed=seed, fraction_evaluate=0.0)
        start = ArrayRecord({name: one.clone() for name, one in what_travels(model).items()})
        made.start(grid, start, num_rounds=task.rounds, evaluate_fn=test)

    clients = ClientApp(mods=[perturb])
    clients.train()(train_one)
    (result,) = run("", App(clients, serve), {"num-clients": NUM_CLIENTS}, [seed])
    return {
        "loss": [loss for _, loss in result.history],
        "uplink": result.uplink_bytes,
        "parameters": sum(one.numel() for one in model.parameters() if one.requires_grad),
    }


KINDS = {"whole model": False, "adapters only": True}
ROUNDS, QUICK_ROUNDS = {False: 60, True: 30}, 3


def measure(quick: bool) -> Findings:
    """Train all strategies' models, whole and with adapters."""
    jobs = {}
    for kind, adapters in KINDS.items():
        task = Task(adapters, ROUNDS[adapters])
        if quick:
            task = Task(adapters, QUICK_ROUNDS, steps=3, width=16)
        for name in NAMES:
            jobs[kind, name] = (f"{name} | {task} | seed 0", partial(run_task, name, task, 0))
    results = run_jobs(jobs, RESULTS)
    return {kind: {name: results[kind, name] for name in NAMES} for kind in KINDS}


def check(found: Findings) -> list[str]:
    """Return what of the claim does not hold."""
    wrong = []
    for kind, runs in found.items():
        reference, reached = runs["FedAvg"]["loss"][-1], runs["FedAvg"]["loss"]
        allowed = 0.05 * (reached[0] - reached[-1])  # of what FedAvg has learned
        for name in ("SignSGD()", "MedianSGD()"):
            behind = runs[name]["loss"][-1] - reference
            if behind > allowed:
                wrong.append(
                    f"{name} is {behind:.3f} behind FedAvg ({kind}), at most {allowed:.3f}"
                )
        ratio = runs["FedAvg"]["uplink"] / runs["SignSGD()"]["uplink"]
        if len(reached) > QUICK_ROUNDS + 1 and ratio < 15:
            wrong.append(f"votes save a factor of {ratio:.1f} only ({kind})")
    return wrong


def draw(found: Findings) -> Figure:
    """Draw the loss over rounds."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, (kind, runs) in zip(figure.subplots(1, len(found)), found.items(), strict=True):
        for style, (name, one) in zip(STYLES, runs.items(), strict=True):
            axes.plot(one["loss"], style, color=COLORS[name], label=name)
        axes.set(title=kind, xlabel="round", ylabel="nats per character")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    return figure


def tabulate(found: Findings) -> str:
    """Return a table of losses and bytes."""
    rows = []
    for kind, runs in found.items():
        for name, one in runs.items():
            row = [f"{kind}: {name}", f"{one['parameters']:,}"]
            row += [f"{one['loss'][at]:.3f}" for at in (0, len(one["loss"]) // 3, -1)]
            ratio = runs["FedAvg"]["uplink"] / one["uplink"]
            rows.append([*row, f"{one['uplink']:,.0f}", f"{ratio:.1f}"])
    return make_table(
        [
            *("what is trained", "parameters", "loss at first", "after a third", "at the end"),
            *("uplink bytes per client and round", "FedAvg's / its"),
        ],
        rows,
    )


TEXT = Claim(
    name="text",
    title="A small language model: one bit per parameter",
    says="A language model, trained whole or by its LoRA adapters only, learns from one bit per "
    "parameter as with FedAvg.",
    setting={
        "data": "Python's help, ten clients with some topics each; every tenth thousand of "
        "characters is for testing",
        "model": "two layers of width 64, LayerNorm, tied embeddings",
        "rounds": "20 steps of AdamW",
        "whole model": f"from scratch, {ROUNDS[False]} rounds",
        "adapters": f"rank 4, {ROUNDS[True]} rounds, in a model trained on the other half of the "
        "help",
    },
    measure=measure,
    draw=draw,
    tabulate=tabulate,
    check=check,
)
