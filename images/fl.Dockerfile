# The federated-learning workload: no BCC, nothing of what watches it, and no root.
# Built by `make images`, from the top of the tree.
FROM python:3.11-slim-bookworm
WORKDIR /app
COPY constraints.txt images/fl-requirements.txt ./
# A PyTorch without CUDA is a tenth of the size.
RUN pip install --no-cache-dir --no-compile --extra-index-url https://download.pytorch.org/whl/cpu \
        -c constraints.txt -r fl-requirements.txt \
    && rm -rf /root/.cache
COPY fl fl
ENV PYTHONPATH=/app PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 65532:65532
CMD ["python", "-m", "fl.server"]
