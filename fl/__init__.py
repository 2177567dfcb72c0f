"""The federated-learning workload that is measured: a gRPC server, clients and the published CNN.

It is an ordinary application: it imports nothing of ztprobe and knows nothing of
being watched. Containers run it as `python -m fl.server`, `python -m fl.client` and, in between
where asked for, `python -m fl.edge`; the local runtime forks it from a warmed parent (see `fl.preload`).
"""

import os

# gRPC reads this while it is imported. Unset, it writes notes about ordinary GOAWAY frames to stderr,
# where one line should say what went wrong.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
