"""A coded downlink's server and clients, to which anything may happen: a state machine.

``python -m tests.tools.downlink`` plays 10⁵ steps of it; ``python -m tests.tools.downlink 2000 7``
plays fewer, of another seed.
"""

import logging
import sys
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from fedmedian.aggregators.medians import Median
from fedmedian.clients.policy import PolicyError
from fedmedian.model.layout import Layout
from fedmedian.rounds.downlink import CodedSteps
from fedmedian.rounds.options import RunOptions
from fedmedian.rounds.protocol import RoundProtocol
from fedmedian.rounds.recipe import Recipe
from fedmedian.rounds.screening import Reply, Said
from fedmedian.rounds.state import KnownModels, RunState
from fedmedian.steps.downlink import (
    CatchUp,
    NotHeldError,
    fingerprint,
    version_of_whole,
)
from fedmedian.steps.instruction import perturb_update
from fedmedian.steps.payload import as_version
from fedmedian.steps.tied import average
from fedmedian.wire.scalars import POLICY_RULE

STEPS = 50
"""The steps of a run."""

RECIPE = Recipe(Median(), None, 1.0, rotation=None, downlink=CodedSteps(), seed=1)
MODEL = {
    "large": np.linspace(-1, 1, 600, dtype=np.float32).reshape(20, 30),
    "half": np.linspace(-2, 2, 9).astype(np.float16),
    "double": np.linspace(-3, 3, 30),
    "tied": np.linspace(-3, 3, 30),
    "mask": np.array([0.0, -np.inf, 0.0], dtype=np.float32),
    "count": np.array(7),
    "empty": np.zeros((0, 2), dtype=np.float32),
}
FAR = 3.0
"""A bound of ‖x − x̂‖, in steps of the largest norm."""

LARGEST_STEP = 1.0

MOST_LOSSES = 2
"""A client that has lost its model so often in a row is sent the whole one from then on."""

# What may happen to a message, and what may come of it.
ANSWERS, ANSWERS_TWICE, ANSWERS_LATE, HAS_NO_MOD = "answers", "twice", "late", "no mod"
IS_SILENT, GETS_NOTHING, FAILS, REFUSES = "silent", "gets nothing", "fails", "refuses"
LIES_ABOUT_AN_OLD_ONE, LIES_ABOUT_THE_LAST_ONE, LIES = "lies old", "lies last", "lies"
FATES = [
    *[ANSWERS] * 4,
    *(ANSWERS_TWICE, ANSWERS_LATE, HAS_NO_MOD, IS_SILENT, GETS_NOTHING, FAILS, REFUSES),
    *(LIES_ABOUT_AN_OLD_ONE, LIES_ABOUT_THE_LAST_ONE, LIES),
]
SERVER_EVENTS = ["resumes", "resumes alone", "moves", "grows", "shrinks", "renames", "turns"]
fates = st.lists(st.sampled_from(FATES), min_size=1, max_size=5)
places = st.integers(0, 6)
happened = Counter[str]()
"""What has happened, for the command's report."""


@dataclass
class Client:
    """A client: the model that it holds, and what the server owes it.

    Parameters
    ----------
    held : mapping of str to array, or None
        The model in its ``Context.state``.
    said : str or None
        The version that its last reply named, if the server heard and may believe it.
    is_lost : bool
        Whether the server has heard that the client could not follow.
    losses : int
        How often in a row it has sent no valid reply after one that named a version.
    late : list of (int, object)
        A reply that has not arrived yet.
    """

    held: dict | None = None
    said: str | None = None
    is_lost: bool = False
    losses: int = 0
    late: list = field(default_factory=list)


def copied(arrays):
    """Return arrays as they come from the network: equal, and no longer the server's."""
    return {name: array.copy() for name, array in arrays.items()}


def length(content):
    """Return the bytes of a message's arrays, byte strings and texts."""
    words = [len(value) for value in content.scalars.values() if isinstance(value, str | bytes)]
    return sum(array.nbytes for array in content.arrays.values()) + sum(words)


def is_equal(model, other):
    return [(n, a.dtype, a.shape, a.tobytes()) for n, a in model.items()] == [
        (n, a.dtype, a.shape, a.tobytes()) for n, a in other.items()
    ]


class Downlink(RuleBasedStateMachine):
    """A server, its clients, and the network between them."""

    @initialize(draws=st.integers(0, 99))
    def begin(self, draws):
        self.draws = np.random.default_rng(draws)
        self.model = MODEL
        self.round = 0
        self.clients = {node: Client() for node in range(3)}
        self.names = []
        self.start(RunState())

    def start(self, state):
        """Start the server, which knows the model and this state."""
        self.protocol = RoundProtocol(RECIPE, RunOptions(max_failed_rounds=None))
        self.protocol.open(self.model)
        self.protocol._models = KnownModels(self.model, state)
        self.state = state
        for client in self.clients.values():
            client.said, client.is_lost, client.losses, client.late = None, False, 0, []

    @rule(place=places, event=st.sampled_from(["joins", "loses its state", "has an old one"]))
    def something_happens_to_a_client(self, place, event):
        client = self.clients[place % len(self.clients)]
        if event == "loses its state":
            client.held = None
        elif event == "has an old one":
            client.held = copied(MODEL)
        elif len(self.clients) < 7:
            self.clients[len(self.clients)] = Client()

    @rule(event=st.sampled_from(SERVER_EVENTS))
    def something_happens_to_the_server(self, event):
        if event == "moves":  # by a subclass
            self.model = self.moved(self.model)
        elif event == "grows":
            size = 5 if "more" in self.model else 2
            own = {name: self.model[name] for name in MODEL}
            self.model = {**own, "more": np.zeros(size, dtype=np.float32)}
        elif event == "shrinks":
            self.model = {name: self.model[name] for name in MODEL}
        elif event == "turns":
            self.model = dict(reversed(self.model.items()))
        elif event == "renames":
            last = self.model.get("more", np.zeros(2, dtype=np.float32))
            self.model = {**{name: self.model[name] for name in MODEL}, "other": last}
        else:
            groups = {group: copied(arrays) for group, arrays in self.state.to_groups().items()}
            if event == "resumes alone":  # without its clients' states
                for client in self.clients.values():
                    client.held = None
            self.start(RunState.from_groups(groups))

    @rule(fates=fates, first=places)
    def a_round_trains_and_evaluates(self, fates, first):
        self.a_round_trains(fates, first)
        self.a_round_evaluates(fates[::-1], first)

    @rule(fates=fates, first=places)
    def a_round_trains(self, fates, first):
        self.round += 1
        question = self.protocol.ask(self.round, self.model)
        asked = self.sampled(fates, first)
        assert self.protocol.may_ask(question, [*asked], len(self.clients))
        self.state = question.state
        sent = question.state.held.model
        assert is_equal(question.sent, sent)
        replies = []
        for node, fate in asked.items():
            content = question.content_for(node)
            replies += self.deliver(
                node,
                fate,
                content,
                sent,
                lambda model, held: self.trained(question, model, held),
            )
        heard = self.protocol.hear(question, [*asked], replies, partial(self.read, question))
        self.note(
            replies,
            lambda one: isinstance(one, tuple) and one[1]["fedmedian.round"] == self.round,
        )
        self.protocol.end(heard, {}, {})
        self.state = heard.state
        if heard.model is not None:
            self.model = heard.model
        happened["rounds of training"] += 1
        happened["rounds without a step"] += heard.model is None

    @rule(fates=fates, first=places)
    def a_round_evaluates(self, fates, first):
        held = self.protocol.held_to_evaluate(self.model)
        self.state = self.protocol._models.of(self.model).state
        asked = self.sampled(fates, first)
        replies = []
        for node, fate in asked.items():
            replies += self.deliver(
                node,
                fate,
                self.protocol.content_for(held, node),
                self.state.held.model,
                lambda model, held: held,
            )
        self.protocol.hear_evaluation(self.round, [*asked], replies, self.read_evaluation, {})
        self.note(replies, lambda reply: not isinstance(reply, tuple))
        happened["rounds of evaluation"] += 1

    @invariant()
    def what_clients_hold_follows_the_server(self):
        held = self.state.held
        if held is None or held.target != fingerprint(self.model):
            return
        layout = Layout.of_model(self.model)
        assert np.linalg.norm(layout.difference(self.model, held.model)) < FAR * LARGEST_STEP
        for name in ("count", "mask", "empty"):
            assert np.array_equal(held.model[name], self.model[name])
        assert np.array_equal(held.model["tied"], held.model["double"])

    def sampled(self, fates, first):
        nodes = [(first + place) % len(self.clients) for place in range(len(fates))]
        return dict(zip(nodes, fates, strict=True))

    def deliver(self, node, fate, content, sent, answer):
        """Return what the server gets from a node that is sent a content: (node, reply)."""
        client, late = self.clients[node], self.clients[node].late
        self.require_fair(client, content, sent)
        client.late = []
        if fate == GETS_NOTHING:
            return late
        if fate == HAS_NO_MOD:
            # It can follow only a whole model, and says nothing about it.
            if version_of_whole(content.scalars) is None:
                return [*late, (node, ValueError("'fedmedian.0' is no array of its model"))]
            return [*late, (node, answer(copied(content.arrays), None))]
        try:
            version = self.receive(client, content)
        except NotHeldError as error:
            happened["refusals"] += 1
            assert not self.could_follow(client, content)
            return late if fate == IS_SILENT else [*late, (node, error)]
        # Nobody ever trains from another model than the one that clients are to hold.
        assert is_equal(client.held, sent)
        assert version == fingerprint(sent)
        match fate:
            case "silent":
                return late
            case "fails":
                return [*late, (node, RuntimeError("out of memory"))]
            case "refuses":
                return [*late, (node, PolicyError(f"{POLICY_RULE} 'metrics'"))]
            case "lies old":
                version = self.names[int(self.draws.integers(len(self.names)))]
            case "lies last":
                version = self.names[-1]
                client.held = None
            case "lies":
                version = ["", "\n\x1b[2J", "0" * 32, "x" * 3000][self.draws.integers(4)]
        reply = (node, answer(client.held or copied(sent), version))
        if fate == ANSWERS_LATE:
            client.late = [reply]
            return late
        return [*late, reply, *([reply] if fate == ANSWERS_TWICE else [])]

    def require_fair(self, client, content, sent):
        """Check that a client is sent what it needs, and no more."""
        is_whole = version_of_whole(content.scalars) is not None
        whole = sum(array.nbytes for array in sent.values())
        assert length(content) <= whole + len(fingerprint(sent))
        happened["whole models" if is_whole else "coded steps"] += 1
        if is_whole:
            assert is_equal(content.arrays, sent)
        # A client that cannot follow gets the whole model in the next message it is sent.
        assert is_whole or not client.is_lost
        # Nothing is sent twice to a client whose reply was heard.
        last = self.state.held.versions[-2:]
        if client.said in last:
            assert not is_whole
            assert (content.arrays["fedmedian.0"].size == 0) == (client.said == last[-1])
        assert is_whole or content.scalars["fedmedian.model.base"] == client.said
        if last[-1] not in self.names:
            self.names = [*self.names, last[-1]][-100:]

    def receive(self, client, content):
        """Hold the model that a content stands for, and return its version."""
        arrays, scalars = copied(content.arrays), dict(content.scalars)
        if version_of_whole(scalars) is not None:
            client.held = arrays
        else:
            update = CatchUp.decode([*arrays.values()], scalars)
            version = None if client.held is None else fingerprint(client.held)
            update.require_start(version)
            happened["steps from a later version than known"] += version != update.base
            client.held = copied(update.applied(client.held, version))
        return fingerprint(client.held)

    def could_follow(self, client, content):
        """Return whether a client holds a version on the way of an update."""
        update = CatchUp.decode([*content.arrays.values()], content.scalars)
        return client.held and fingerprint(client.held) in (update.base, *update.versions)

    def trained(self, question, model, held):
        after = self.moved(model)
        update = question.layout.difference(model, after)
        rng = np.random.default_rng(0)
        payload = perturb_update(question.instruction, question.layout, update, after, rng)
        arrays, scalars = replace(payload, held=held).encode()
        return dict(enumerate(arrays)), scalars

    def moved(self, model):
        """Return a model one step of at most the largest norm away, its tied arrays still tied."""
        layout = Layout.of_model(model)
        step = self.draws.standard_normal(layout.dim).astype(np.float32)
        step *= np.float32(0.5 * LARGEST_STEP * self.draws.random() / np.linalg.norm(step))
        average(layout.blocks.split(step), layout.tied(MODEL | model))
        return layout.move(model, step, 1.0, {"count": model["count"] + 1})

    @staticmethod
    def read(question, node, reply):
        if isinstance(reply, Exception):
            raise reply
        if not isinstance(reply, tuple):
            raise TypeError("is a reply to evaluation")
        arrays, scalars = reply
        named = {str(key): one for key, one in arrays.items()}
        return question.answer(node, Said(named, scalars, 1.0, {}, None))

    @staticmethod
    def read_evaluation(node, reply):
        if isinstance(reply, Exception):
            raise reply
        if isinstance(reply, tuple):
            raise TypeError("is a reply to training")
        return Reply(node, 1.0, {}, None, held=as_version(reply))

    def note(self, replies, is_valid):
        """Note what the server has heard from each node: its last valid reply, if any."""
        for node in {node for node, _ in replies}:
            client = self.clients[node]
            own = [reply for speaker, reply in replies if speaker == node]
            valid = [one for one in own if not isinstance(one, Exception) and is_valid(one)]
            if not valid and any(isinstance(one, PolicyError) for one in own):
                continue
            said = valid[-1] if valid else None
            said = as_version(said[1].get("fedmedian.held") if isinstance(said, tuple) else said)
            if client.said is not None:
                has_lost = any(isinstance(one, NotHeldError) for one in own)
                client.losses = 0 if valid else client.losses + has_lost
            client.said = said if client.losses < MOST_LOSSES else None
            client.is_lost = said is None and any(isinstance(one, NotHeldError) for one in own)


def play(steps, number=0, *, derandomize=False):
    """Play as many steps, in runs of `STEPS`."""
    options = settings(
        max_examples=max(steps // STEPS, 1),
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        derandomize=derandomize,
        suppress_health_check=[*HealthCheck],
        phases=[Phase.generate],  # a run is short, and to shorten it takes minutes
    )
    machine = Downlink if derandomize else seed(number)(Downlink)
    run_state_machine_as_test(machine, settings=options)


def main():
    """Play as many steps as the command line says, and print what has happened."""
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    steps, number = [*map(int, sys.argv[1:]), *(100_000, 0)[len(sys.argv) - 1 :]]
    play(steps, number)
    for what, times in happened.most_common():
        print(f"{times:>9,} {what}")


if __name__ == "__main__":
    main()
