"""What an NVFlare client does: train a model of the published CNN's size, and note its own clock."""

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np
import nvflare.client as flare

KEY = "numpy_key"


def note(directory: str, event: str, number: int, client: str) -> None:
    """Append one event, with both clocks, for the tests."""
    line = {"event": event, "round": number, "client": client}
    line |= {"time_unix_ns": time.time_ns(), "time_monotonic_ns": time.monotonic_ns(), "pid": os.getpid()}
    with (Path(directory) / f"clock-{os.getpid()}.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def main() -> None:
    """As many rounds as the server wants."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--clock", required=True)
    parser.add_argument("--steps", type=int, default=40)
    args = parser.parse_args()
    flare.init()
    client = flare.get_site_name()
    while flare.is_running():
        model = flare.receive()
        if model is None:
            break
        note(args.clock, "train_start", model.current_round, client)
        weights = np.asarray(model.params[KEY], dtype=np.float32)
        for _ in range(args.steps):  # work that is really done
            weights = weights - 0.01 * np.tanh(weights)
        note(args.clock, "train_end", model.current_round, client)
        flare.send(flare.FLModel(params={KEY: weights}, metrics={"accuracy": float(weights.std())}))


if __name__ == "__main__":
    main()
