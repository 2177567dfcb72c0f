# The federated-learning workload: no BCC, nothing of what watches it, and no root.
# Built by `make images`, from the top of the tree.
FROM debian:bookworm-slim AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/*
# What pip imports on the way is not left compiled.
ENV PYTHONDONTWRITEBYTECODE=1
RUN python3 -m venv /opt/fl
WORKDIR /src
COPY constraints.txt images/fl-requirements.txt ./
# A PyTorch without CUDA is a tenth of the size.
RUN /opt/fl/bin/pip install --no-cache-dir --no-compile --extra-index-url https://download.pytorch.org/whl/cpu \
        -c constraints.txt -r fl-requirements.txt \
    # What compiles against PyTorch, and tests.
    && cd /opt/fl/lib/python3.11/site-packages \
    && rm -rf torch/include torch/test numpy/*/tests sklearn/*/tests scipy/*/tests scipy/*/*/tests pip pip-*

FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/* /usr/share/doc /usr/share/man
WORKDIR /app
COPY --from=build /opt/fl /opt/fl
COPY fl fl
ENV PATH=/opt/fl/bin:$PATH PYTHONPATH=/app PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 65532:65532
CMD ["python", "-m", "fl.server"]
