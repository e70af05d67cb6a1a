"""quickstart_numpy: A Flower / NumPy app."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from quickstart_numpy.task import load_data
from quickstart_numpy.task import test as test_fn
from quickstart_numpy.task import train as train_fn

# Flower ClientApp
app = ClientApp()


@app.train()
def train(msg: Message, context: Context) -> Message:
    """Train the model on local data."""
    # The model is the arrays received
    model = msg.content["arrays"].to_numpy_ndarrays()

    # Load the data
    partition_id = context.node_config["partition-id"]
    num_partitions = context.node_config["num-partitions"]
    images, labels, _, _ = load_data(partition_id, num_partitions)

    # Train
    train_fn(
        model,
        images,
        labels,
        context.run_config["local-epochs"],
        context.run_config["learning-rate"],
        context.run_config["batch-size"],
    )
    train_loss, _ = test_fn(model, images, labels)

    # Construct and return the reply
    model_record = ArrayRecord(model)
    metrics = {"train_loss": train_loss, "num-examples": len(labels)}
    content = RecordDict({"arrays": model_record, "metrics": MetricRecord(metrics)})
    return Message(content=content, reply_to=msg)


@app.evaluate()
def evaluate(msg: Message, context: Context) -> Message:
    """Evaluate the model on local data."""
    # The model is the arrays received
    model = msg.content["arrays"].to_numpy_ndarrays()

    # Load the data
    partition_id = context.node_config["partition-id"]
    num_partitions = context.node_config["num-partitions"]
    _, _, images, labels = load_data(partition_id, num_partitions)

    # Evaluate
    loss, accuracy = test_fn(model, images, labels)

    # Construct and return the reply
    metrics = {"loss": loss, "accuracy": accuracy, "num-examples": len(labels)}
    content = RecordDict({"metrics": MetricRecord(metrics)})
    return Message(content=content, reply_to=msg)
