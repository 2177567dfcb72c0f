"""FedAvg over all clients."""

from collections.abc import Iterable

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from published_cnn.clock import note
from published_cnn.model import published_cnn

app = ServerApp()


class ClockedFedAvg(FedAvg):
    """FedAvg that writes down when its rounds began and ended."""

    def __init__(self, directory: str, **options: object) -> None:
        super().__init__(**options)
        self._directory = directory

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Flower calls this directly behind its line of the round."""
        note(self._directory, "round_start", round=server_round)
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round: int, replies: Iterable[Message]):
        """Between training and evaluation."""
        note(self._directory, "wait_end", round=server_round)
        result = super().aggregate_train(server_round, replies)
        note(self._directory, "aggregate_end", round=server_round)
        return result

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """The last thing that a round does."""
        result = super().aggregate_evaluate(server_round, replies)
        note(self._directory, "round_end", round=server_round)
        return result


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Every client that is there takes part in every round."""
    directory = str(context.run_config["clock-directory"])
    clients = int(context.run_config["min-clients"])
    strategy = ClockedFedAvg(
        directory,
        fraction_train=1.0,
        fraction_evaluate=float(context.run_config["fraction-evaluate"]),
        min_train_nodes=clients,
        min_evaluate_nodes=clients,
        min_available_nodes=clients,
    )
    note(directory, "job_start")
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(published_cnn().state_dict()),
        num_rounds=int(context.run_config["num-server-rounds"]),
    )
    note(directory, "job_end")
