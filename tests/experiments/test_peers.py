"""Others' ways to send fewer bits: what goes over the wire, and what the server takes it for."""

from functools import partial
from math import ceil, pi

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp

from experiments.studies.federation import Clients, Setting, make_network, simulate
from experiments.studies.peers import (
    Decoding,
    Eden,
    Half,
    Int8,
    NoisySigns,
    ScaledSigns,
    TopK,
    compress,
)
from experiments.studies.random_basis import unseeded
from fedmedian.clients import InProcessGrid
from fedmedian.kernels.rotation import padded_size
from fedmedian.model.blocks import Blocks
from fedmedian.records import serialized_sizes, to_arrays, to_record
from fedmedian.wire.scalars import is_refusal

BLOCKS = Blocks((3000, 40, 0, 960))
DIM = BLOCKS.dim
UPDATE = np.random.default_rng(0).lognormal(size=DIM).astype(np.float32)
UPDATE *= np.random.default_rng(1).choice([-1, 1], DIM).astype(np.float32)

BYTES = {
    Half(): 2 * DIM,
    Int8(): 4 * 4 + DIM,
    TopK(0.01): 8 * ceil(0.01 * DIM),
    ScaledSigns(): 4 * 4 + DIM // 8,
    NoisySigns(0.1, 0.01): DIM // 8,
    Eden(): 8 + 4 + ceil(padded_size(DIM) / 8),
}
"""The bytes that each codec sends of a model of four arrays."""

every_codec = pytest.mark.parametrize("codec", list(BYTES), ids=lambda codec: type(codec).__name__)


def through(codec, update=UPDATE, seed=0):
    body = codec.encode(update, BLOCKS, np.random.default_rng(seed))
    return codec.decode(body, BLOCKS)


class TestCodecs:
    @every_codec
    def test_a_codec_sends_as_many_bytes_as_it_should(self, codec):
        body = codec.encode(UPDATE, BLOCKS, np.random.default_rng(0))
        assert body.dtype == np.uint8
        assert body.shape == (BYTES[codec],)

    @every_codec
    def test_a_decoded_update_has_the_form_of_the_update_and_leaves_it_alone(self, codec):
        before = UPDATE.copy()
        decoded = through(codec)
        assert decoded.dtype == np.float32
        assert decoded.shape == (DIM,)
        np.testing.assert_array_equal(UPDATE, before)

    @pytest.mark.parametrize("codec", [Half(), Int8(), TopK(0.01), ScaledSigns(), Eden()])
    def test_of_no_update_nothing_is_left(self, codec):
        np.testing.assert_array_equal(through(codec, np.zeros_like(UPDATE)), 0)

    def test_half_precision_is_numpys(self):
        np.testing.assert_array_equal(through(Half()), UPDATE.astype(np.float16))

    def test_int8_lands_on_a_level_beside_each_entry(self):
        off = np.abs(through(Int8()) - UPDATE)
        for part, own in zip(BLOCKS.split(off), BLOCKS.split(UPDATE), strict=True):
            assert np.all(part <= np.abs(own).max(initial=0) / 127 * 1.001)

    def test_int8_is_unbiased(self):
        """The mean of 400, seeded, within five standard errors of a level's width / 2 each."""
        mean = np.mean([through(Int8(), seed=seed) for seed in range(400)], axis=0)
        widths = [np.abs(part).max(initial=0) / 127 for part in BLOCKS.split(UPDATE)]
        off = np.abs(mean - UPDATE) / np.repeat(widths, BLOCKS.sizes)
        assert off.max() < 5 * 0.5 / 400**0.5

    def test_top_k_are_the_largest_entries_exactly(self):
        decoded, kept = through(TopK(0.01)), ceil(0.01 * DIM)
        largest = np.argsort(-np.abs(UPDATE))[:kept]
        expected = np.zeros_like(UPDATE)
        expected[largest] = UPDATE[largest]
        np.testing.assert_array_equal(decoded, expected)

    def test_scaled_signs_are_signs_times_each_arrays_mean_magnitude(self):
        parts = BLOCKS.split(UPDATE)
        expected = [np.sign(part) * np.abs(part).mean() for part in parts if part.size]
        np.testing.assert_allclose(through(ScaledSigns()), np.concatenate(expected), rtol=1e-5)

    def test_noisy_signs_are_steps_of_the_servers_own_in_proportion_to_a_small_update(self):
        """E[sign(u + σξ)] ≈ √(2/π)·u/σ; seeded, over 4,000 coordinates and 100 clients."""
        codec, update = NoisySigns(1.0, 0.01), np.full(DIM, 0.1, dtype=np.float32)
        decoded = np.array([through(codec, update, seed) for seed in range(100)])
        assert np.all(np.abs(decoded) == np.float32(0.01))
        assert decoded.mean() == pytest.approx(0.01 * (2 / pi) ** 0.5 * 0.1, rel=0.05)

    def test_eden_decodes_updates_without_bias_at_its_published_error(self):
        """π/2 − 1 of the energy for one client; what is averaged is 200 rotations, seeded."""
        codec, blocks = Eden(), Blocks((4096,))
        update = np.random.default_rng(0).lognormal(size=4096).astype(np.float32)
        decoded = np.stack(
            [codec.decode(codec.encode_from(seed, update), blocks) for seed in range(200)]
        )
        energy = np.mean(np.square(update))
        assert np.mean(np.square(decoded - update)) / energy == pytest.approx(pi / 2 - 1, rel=0.02)
        assert np.mean(np.square(decoded.mean(axis=0) - update)) / energy < 2 * 0.571 / 200


MODEL = {"weight": np.zeros((100, 40), dtype=np.float32)}


def answer(mod, update, context):
    """What a client sends whose training moves a model of zeros by minus an update."""
    content = RecordDict({"arrays": to_record(MODEL)})
    message = Message(content, 1, MessageType.TRAIN)

    def train(message, context):
        trained = {"weight": -update.reshape(100, 40)}
        return Message(RecordDict({"arrays": to_record(trained)}), reply_to=message)

    return mod(message, context, train)


@pytest.fixture
def context():
    InProcessGrid(ClientApp(), 1)  # so that messages can be created in this process
    return Context(1, 1, {"partition-id": 0}, RecordDict(), {})


def sent_by(reply):
    (body,) = to_arrays(reply.content["arrays"]).values()
    return body


class TestTheMod:
    @every_codec
    def test_a_reply_is_its_bytes_and_flowers_headers_of_less_than_a_kilobyte(self, codec, context):
        reply = answer(compress(codec), UPDATE, context)
        (size,) = serialized_sizes([reply])
        assert BYTES[codec] < size < BYTES[codec] + 1000

    @pytest.mark.parametrize("codec", [TopK(0.01), ScaledSigns()])
    def test_with_feedback_what_was_not_sent_is_sent_later(self, codec, context):
        """After each round, all that was sent and what is kept back make up all updates."""
        mod, blocks = compress(codec, feedback=True), Blocks((DIM,))
        sent, kept = np.zeros(DIM), np.zeros(DIM)
        for number in range(1, 6):
            decoded = codec.decode(sent_by(answer(mod, UPDATE, context)), blocks)
            np.testing.assert_allclose(
                decoded, through_whole(codec, (UPDATE + kept).astype(np.float32)), atol=1e-4
            )
            sent, kept = sent + decoded, number * UPDATE - sent - decoded
            (record,) = context.state.array_records.values()
            np.testing.assert_allclose(to_arrays(record)["lost"], kept, atol=1e-3)

    @every_codec
    def test_an_update_that_is_not_finite_is_refused_in_the_words_of_perturb(self, codec, context):
        for value in (np.nan, np.inf):
            update = UPDATE.copy()
            update[3] = value
            error = answer(compress(codec), update, context).error
            assert is_refusal(error.reason)
            assert error.reason.endswith("holds NaN or infinity")

    def test_without_feedback_nothing_is_remembered(self, context):
        first, second = (sent_by(answer(compress(TopK(0.01)), UPDATE, context)) for _ in range(2))
        np.testing.assert_array_equal(first, second)
        assert not context.state


def through_whole(codec, update):
    blocks = Blocks((DIM,))
    return codec.decode(codec.encode(update, blocks, np.random.default_rng(0)), blocks)


class TestTheStrategy:
    SETTING = Setting("digits", learning_rate=0.1, partition="iid", num_clients=3, rounds=3)

    @pytest.mark.parametrize(
        ("codec", "feedback"),
        [
            (Half(), False),
            (Int8(), False),
            (TopK(0.01), True),
            (ScaledSigns(), True),
            (NoisySigns(0.01, 0.01), False),
            (Eden(), False),
        ],
        ids=lambda value: type(value).__name__ if value else "",
    )
    def test_a_federation_learns_of_what_is_decoded(self, codec, feedback):
        strategy = partial(unseeded, partial(Decoding, codec))
        mods = [compress(codec, feedback=feedback)]
        result = simulate(strategy, self.SETTING, 0, mods)
        assert result["accuracy"][-1] > 0.4
        assert result["uplink"] < 0.51 * result["downlink"]

    def test_the_new_model_is_the_mean_of_the_models_that_are_decoded(self):
        """In half precision: the server's model less the mean of the rounded updates."""
        setting, codec = self.SETTING, Half()
        model = ArrayRecord(make_network("mlp", "digits", 0).state_dict())
        content = RecordDict({"arrays": model, "config": ConfigRecord({"server-round": 1})})
        answers = []
        for mods in ([], [compress(codec)]):
            app = ClientApp(mods=mods)
            app.train()(Clients(setting, 0).train)
            grid = InProcessGrid(app, setting.num_clients)
            messages = [Message(content, node, MessageType.TRAIN) for node in grid.get_node_ids()]
            answers.append(grid.send_and_receive(messages))
        strategy = Decoding(codec, min_available_nodes=3)
        strategy.configure_train(1, model, ConfigRecord(), grid)
        moved, _ = strategy.aggregate_train(1, answers[1])
        before = to_arrays(model)
        for name, array in to_arrays(moved).items():
            updates = [before[name] - to_arrays(one.content["arrays"])[name] for one in answers[0]]
            rounded = np.mean(
                [update.astype(np.float16) for update in updates], axis=0, dtype=float
            )
            np.testing.assert_allclose(array, before[name] - rounded, atol=1e-6)
