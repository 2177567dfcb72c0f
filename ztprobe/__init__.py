"""ztprobe: where each millisecond of a federated-learning round goes, measured from the kernel."""

__version__ = "0.1.0"
