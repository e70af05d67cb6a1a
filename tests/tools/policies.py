"""Random servers against random policies: nothing but noise may depend on what is noised.

``python -m tests.tools.fuzz policy`` asks 100,000 random instructions that a random policy
admits, with updates that overflow, of two clients whose updates differ, and prints what came of it;
``python -m tests.tools.fuzz policy 5000 7`` asks fewer, of another seed.
"""

import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar
from unittest.mock import patch

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from experiments.studies.jobs import process_pool
from experiments.studies.progress import tracked
from experiments.studies.tables import make_table
from fedmedian import Gaussian
from fedmedian.clients import InProcessGrid, Policy, perturb_with
from fedmedian.model.layout import Arrays, Layout
from fedmedian.records import to_record
from fedmedian.steps.base import CLIENT_STEPS, ClientStep, Draft, register_client_step
from fedmedian.steps.encodings import Signs, Vector
from fedmedian.steps.instruction import Instruction
from fedmedian.steps.noise import AddNoise
from fedmedian.steps.rotation import Rotation
from fedmedian.steps.updates import ClientMomentum, Clip, DivideByLearningRate

ROUNDS = 5
"""The rounds of a run, which begins with a policy, a model and clients of its own."""

NOISED, ALONE, REFUSED = "noised", "noise alone", "refused"
"""What may come of an instruction; whatever else is counted is a defect."""

Outcomes = Counter[str]

_FAILURES: list[type[BaseException]] = [
    ValueError,
    FloatingPointError,
    SystemExit,
    GeneratorExit,
    StopIteration,
    MemoryError,
]


@dataclass(frozen=True)
class Misbehave(ClientStep):
    """A custom step that fails, or leaves something odd, where the first entry is positive.

    Parameters
    ----------
    way : int
        What it does then.
    """

    way: int

    name: ClassVar[str] = "misbehave"

    def apply(self, draft: Draft) -> None:
        """Do it."""
        vector = draft.vector
        memory = draft.memory_of(self)
        memory["seen"] = vector[:3].copy()
        if not (vector[:1] > 0).any():
            return
        match self.way:
            case 0:
                vector[-1] = np.nan
            case 1:
                vector *= np.float32(1e30)
            case 2:
                draft.replace(vector[:-1])
            case 3:
                draft.report(self, np.abs(vector))
            case 4:
                Signs().apply(draft)
            case 5:
                memory["seen"] = object()  # type: ignore[assignment]
            case 6:
                warnings.warn("positive", stacklevel=1)
            case way:
                raise _FAILURES[way % len(_FAILURES)](str(vector))


class Spy:
    """Looks at what noise is added to."""

    def __init__(self) -> None:
        self.norms: list[float] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look at what noise is added to in this context."""
        add = AddNoise.apply

        def apply(step: AddNoise, draft: Draft) -> None:
            with np.errstate(all="ignore"):
                wide = draft.vector.astype(np.float64)
                self.norms.append(float(np.sqrt(np.sum(np.square(wide)))))
            add(step, draft)

        with patch.object(AddNoise, "apply", apply):
            yield


def play(rounds: int, seed: int) -> tuple[Outcomes, float]:
    """Ask instructions of pairs of clients whose updates differ.

    Parameters
    ----------
    rounds : int
        The number of instructions; after each `ROUNDS` another run begins.
    seed : int
        All follows from it but the noise.

    Returns
    -------
    outcomes : Counter
        What came of the instructions, and each defect by its description.
    longest : float
        The largest norm of what was noised, over the policy's `clip`.
    """
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    rng, outcomes, longest = np.random.default_rng(seed), Outcomes(), 0.0
    InProcessGrid(ClientApp(), 1)  # lets messages be made in this process
    with patch.dict(CLIENT_STEPS._classes):
        register_client_step(Misbehave)
        while rounds > 0:
            found, over = _play_run(rng, min(rounds, ROUNDS))
            outcomes += found
            longest = max(longest, over)
            rounds -= ROUNDS
    return outcomes, longest


def _play_run(rng: np.random.Generator, rounds: int) -> tuple[Outcomes, float]:
    policy, model = random_policy(rng), random_model(rng)
    clients = [Client(policy, model, partition) for partition in range(2)]
    outcomes, longest = Outcomes(), 0.0
    for server_round in range(1, rounds + 1):
        instruction = random_instruction(rng, policy, model, server_round)
        spy = Spy()
        with spy.watching():
            answers = [one.answer(instruction, random_update(rng, model)) for one in clients]
        outcomes[_outcome(answers, spy, policy)] += 1
        longest = max(longest, *(norm / policy.clip for norm in spy.norms), 0.0)
    return outcomes, longest


class Client:
    """A client that keeps a policy.

    Parameters
    ----------
    policy : Policy
        The policy.
    model : mapping of str to array
        The model that it is sent.
    partition : int
        Its partition.
    """

    def __init__(self, policy: Policy, model: Arrays, partition: int) -> None:
        self._mod = perturb_with(policy)
        self._model, self._record = model, to_record(model)
        self._context = Context(1, partition + 2, {}, RecordDict(), {})

    def answer(self, instruction: Instruction, update: Arrays) -> RecordDict | str:
        """Return the content of the answer with an update; of an error its text."""

        def train(message: Message, context: Context) -> Message:
            with np.errstate(all="ignore"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                after = {
                    name: np.asarray(array - update[name]).astype(array.dtype)
                    for name, array in self._model.items()
                }
            metrics = MetricRecord({"num-examples": 10, "loss": float(after["weight"][0])})
            content = RecordDict({"arrays": to_record(after), "metrics": metrics})
            return Message(content, reply_to=message)

        config = ConfigRecord({**instruction.encode()})
        content = RecordDict({"arrays": self._record, "config": config})
        asked = Message(content, dst_node_id=self._context.node_id, message_type="train")
        with np.errstate(all="raise"), warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                reply = self._mod(asked, self._context, train)
            except BaseException as error:
                return f"raised {type(error).__name__}: {error}"
        return str(reply.error.reason) if reply.has_error() else reply.content


def random_policy(rng: np.random.Generator) -> Policy:
    """Return a random policy, mostly of one that answers each round."""
    clip = float(10 ** rng.uniform(-30, 30))
    multiplier = float(10 ** rng.uniform(-3, 6))
    most = float(np.finfo(np.float32).max) / 2
    own: dict[str, Any] = {
        "clip": clip,
        "noise_scale": min(max(clip * multiplier, 1e-37), most),
        "rounds": int(rng.choice([3, 100, 100])),
        "vectors": bool(rng.random() < 0.5),
        "exact": [["steps"], ["steps", "norm*"]][rng.integers(2)],
    }
    if multiplier > 1 and rng.random() < 0.3:
        own |= {"epsilon": 30.0, "delta": 1e-6}
    return Policy(**own)


def random_model(rng: np.random.Generator) -> dict[str, np.ndarray[Any, Any]]:
    """Return a model of arrays of all kinds."""
    size = int(rng.integers(1, 600))
    return {
        "weight": rng.standard_normal(size).astype(np.float32),
        "bias": rng.standard_normal(int(rng.integers(0, 40))).astype(f"f{rng.choice([2, 8])}"),
        "norm": np.ones(2, np.float32),
        "steps": np.array([3]),
    }


def random_update(rng: np.random.Generator, model: Arrays) -> dict[str, np.ndarray[Any, Any]]:
    """Return an update, mostly one with entries of an extreme size, or that are not finite."""
    update = {name: 0.01 * rng.standard_normal(array.shape) for name, array in model.items()}
    extremes = [0.0, 1e-45, 1e-30, 1e20, 3e38, -3e38, np.inf, -np.inf, np.nan]
    for name, array in update.items():
        if rng.random() < 0.4:
            share = rng.choice([0.01, 0.5, 1.0])
            array[rng.random(array.shape) < share] = rng.choice(extremes)
        update[name] = array * 10.0 ** rng.uniform(-40, 40) if rng.random() < 0.2 else array
    return update


def random_instruction(
    rng: np.random.Generator, policy: Policy, model: Arrays, server_round: int
) -> Instruction:
    """Return an instruction that a policy does not refuse for what it asks."""
    exact = ("norm", "steps") if "norm*" in policy.exact else ("steps",)
    layout = Layout.of_model(model, exact)
    steps: list[ClientStep] = [
        DivideByLearningRate(float(10 ** rng.uniform(-45, 3))),
        ClientMomentum(float(rng.choice([0.0, 0.9, 0.999]))),
        Clip(float(10 ** rng.uniform(-320, 300))),
        Rotation(int(rng.choice([1, 64, 10**6])), int(rng.integers(1 << 62))),
        Misbehave(int(rng.integers(13))),
    ]
    chosen = [steps[index] for index in rng.permutation(5)[: rng.integers(5)]]
    blocks = layout.blocks
    for step in chosen:
        blocks = step.blocks(blocks)
    low = np.float32(policy.noise_scale)
    with np.errstate(all="ignore"):
        scales = (low * (1 + rng.random(len(blocks), dtype=np.float32))).astype(np.float32)
    noise = AddNoise(Gaussian(), np.minimum(scales, np.finfo(np.float32).max))
    last = Vector() if policy.vectors and rng.random() < 0.5 else Signs()
    # Now and then a round that is refused, as must be all the same for both clients.
    number = server_round - int(rng.random() < 0.05)
    return Instruction((*chosen, noise, last), number, None, layout.exact_positions)


def _outcome(answers: list[RecordDict | str], spy: Spy, policy: Policy) -> str:
    """Return what came of an instruction, or what is wrong with that."""
    if any(not norm <= policy.clip for norm in spy.norms):
        return "what was noised exceeds the clip"
    first, second = (
        answer if isinstance(answer, str) else _all_but_the_noised(answer) for answer in answers
    )
    if first != second:
        return f"answers differ: {str(first)[:60]} and {str(second)[:60]}"
    if isinstance(first, str):
        return REFUSED if first.startswith("perturb: policy rule") else first[:60]
    return NOISED if any(spy.norms) else ALONE


def _all_but_the_noised(content: RecordDict) -> list[Any]:
    """Return what must not depend on the update: all but the values of arrays."""
    return [
        [(name, array.dtype, array.shape) for name, array in record.items()]
        if isinstance(record, ArrayRecord)
        else record
        for record in content.values()
    ]


def play_in_processes(rounds: int, seed: int) -> str:
    """Ask instructions in all processes at once, and return a table of what came of them.

    Parameters
    ----------
    rounds, seed : int
        As for `play`.

    Returns
    -------
    str
        The table.
    """
    pieces = 40
    outcomes, longest = Outcomes(), 0.0
    with process_pool() as pool:
        runs = [pool.submit(play, -(-rounds // pieces), seed + piece) for piece in range(pieces)]
        for run in tracked(runs, "piece"):
            found, over = run.result()
            outcomes, longest = outcomes + found, max(longest, over)
    return report(outcomes, longest)


def report(outcomes: Outcomes, longest: float) -> str:
    """Return a table of what came of the instructions."""
    usual = (NOISED, ALONE, REFUSED)
    defects = [f"{what} ({times})" for what, times in outcomes.items() if what not in usual]
    numbers = [f"{outcomes[what]:,}" for what in usual]
    row = [f"{outcomes.total():,}", *numbers, f"{longest:.8f}", "; ".join(defects) or "none"]
    return make_table(["instructions", *usual, "longest over clip", "defects"], [row])
