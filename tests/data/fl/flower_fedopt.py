"""Make flower_fedopt.json: what Flower's own strategies make of given updates.

Flower is no dependency of ours (it pulls in a second gRPC and a database). To make the file again:

    python3 -m venv ../flower && ../flower/bin/pip install flwr==1.42.0
    ../flower/bin/python tests/data/fl/flower_fedopt.py > tests/data/fl/flower_fedopt.json
"""

import json
from unittest import mock

import numpy as np
from flwr.common import Code, FitRes, Status, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server.strategy import FedAdagrad, FedAdam, FedYogi

ROUNDS, CLIENTS, SIZE = 4, 3, 7
EXAMPLES = (100, 50, 25)
STRATEGIES = {"fedadagrad": FedAdagrad, "fedadam": FedAdam, "fedyogi": FedYogi}
LEARNING_RATE, TAU, BETA_1, BETA_2 = 0.1, 1e-3, 0.9, 0.99


def main() -> None:
    rng = np.random.default_rng(16)
    initial = rng.normal(size=SIZE).astype(np.float32)
    updates = rng.normal(size=(ROUNDS, CLIENTS, SIZE)).astype(np.float32)
    found = {}
    for name, strategy in STRATEGIES.items():
        betas = {} if name == "fedadagrad" else {"beta_1": BETA_1, "beta_2": BETA_2}
        chosen = strategy(
            initial_parameters=ndarrays_to_parameters([initial]), eta=LEARNING_RATE, tau=TAU, **betas
        )
        models = []
        for number, vectors in enumerate(updates, 1):
            results = [
                (
                    mock.Mock(),
                    FitRes(Status(Code.OK, ""), ndarrays_to_parameters([vector]), examples, {}),
                )
                for vector, examples in zip(vectors, EXAMPLES, strict=True)
            ]
            parameters, _ = chosen.aggregate_fit(number, results, [])
            models.append(parameters_to_ndarrays(parameters)[0].tolist())
        found[name] = models
    print(
        json.dumps(
            {
                "flower": "1.42.0",
                "server_lr": LEARNING_RATE,
                "server_tau": TAU,
                "examples": EXAMPLES,
                "initial": initial.tolist(),
                "updates": updates.tolist(),
                "models": found,
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
