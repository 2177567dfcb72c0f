"""A Flower app: the published CNN and FedAvg."""
