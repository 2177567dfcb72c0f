"""An NVFlare deployment on this machine (its proof of concept: a process each), and a job.

python job.py WORKSPACE CLOCK_DIRECTORY CLIENTS ROUNDS
"""

import os
import sys
import time
from pathlib import Path

import numpy as np
from nvflare.app_common.np.recipes.fedavg import NumpyFedAvgRecipe
from nvflare.recipe.poc_env import PocEnv

PARAMETERS = 1_199_882  # of the published CNN


def main() -> None:
    """Bring it up, run the job to its end, end everything."""
    workspace, clock, clients, rounds = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    os.environ["NVFLARE_POC_WORKSPACE"] = str(workspace / "poc")
    model = workspace / "model.npy"
    np.save(model, np.random.default_rng(1).normal(size=PARAMETERS).astype(np.float32))
    recipe = NumpyFedAvgRecipe(
        name="published-cnn",
        initial_ckpt=str(model),
        min_clients=clients,
        num_rounds=rounds,
        train_script=str(Path(__file__).parent / "client.py"),
        train_args=f"--clock {clock}",
    )
    environment = PocEnv(num_clients=clients)
    try:
        run = recipe.execute(environment)
        while (status := str(run.get_status())) in ("None", "RUNNING", "SUBMITTED", "DISPATCHED", "APPROVED"):
            time.sleep(1)
        print("status", status, flush=True)
    finally:
        environment.stop(clean_up=False)


if __name__ == "__main__":
    main()
