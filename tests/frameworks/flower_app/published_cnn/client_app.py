"""What a client does: train, and evaluate."""

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from published_cnn import model as cnn
from published_cnn.clock import note

app = ClientApp()
torch.set_num_threads(1)


def _facts(message: Message, context: Context) -> dict[str, int]:
    return {
        "round": int(message.content["config"]["server-round"]),
        "client": int(context.node_config["partition-id"]),
    }


def _model_and_images(message: Message, context: Context, seed: int):
    model = cnn.published_cnn()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    return model, *cnn.images(seed, int(context.run_config["examples"]))


@app.train()
def train(message: Message, context: Context) -> Message:
    """One local training."""
    directory = str(context.run_config["clock-directory"])
    note(directory, "train_start", **_facts(message, context))
    model, pixels, labels = _model_and_images(message, context, int(context.node_config["partition-id"]))
    loss = cnn.train(model, pixels, labels, int(context.run_config["local-epochs"]))
    content = RecordDict(
        {
            "arrays": ArrayRecord(model.state_dict()),
            "metrics": MetricRecord({"loss": loss, "num-examples": len(labels)}),
        }
    )
    note(directory, "train_end", **_facts(message, context))
    return Message(content=content, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """The model's accuracy on images of this client."""
    directory = str(context.run_config["clock-directory"])
    note(directory, "evaluate_start", **_facts(message, context))
    model, pixels, labels = _model_and_images(
        message, context, 1000 + int(context.node_config["partition-id"])
    )
    metrics = MetricRecord({"accuracy": cnn.accuracy(model, pixels, labels), "num-examples": len(labels)})
    note(directory, "evaluate_end", **_facts(message, context))
    return Message(content=RecordDict({"metrics": metrics}), reply_to=message)
