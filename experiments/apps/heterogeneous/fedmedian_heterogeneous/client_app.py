"""The client: plain local training. One line, the mod, makes it fedmedian's."""

from typing import cast

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedmedian.clients import perturb

from .task import load_partition, make_network, train

app = ClientApp(mods=[perturb])


@app.train()
def train_model(message: Message, context: Context) -> Message:
    """Train the server's model on the client's own data."""
    config = context.run_config
    partition = int(context.node_config["partition-id"])
    images, labels = load_partition(partition, int(context.node_config["num-partitions"]), config)
    model = make_network()
    model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    server_round = cast(int, message.content.config_records["config"]["server-round"])
    loss = train(model, images, labels, config, (int(config["seed"]), partition, server_round))
    metrics = MetricRecord({"num-examples": len(labels), "train-loss": loss})
    content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
    return Message(content, reply_to=message)
