# The agent of a node: Debian's BCC, and of ztprobe's libraries those that it imports.
# Built by `make images`, from the top of the tree. It runs as root: so do the processes whose namespaces it enters.
FROM debian:bookworm-slim AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/*
# What pip imports on the way is not left compiled.
ENV PYTHONDONTWRITEBYTECODE=1
# It sees the system's packages: bcc is one, and PyPI's package of that name is something else.
RUN python3 -m venv --system-site-packages /opt/ztprobe
WORKDIR /src
COPY constraints.txt images/agent-requirements.txt ./
RUN /opt/ztprobe/bin/pip install --no-cache-dir --no-compile -c constraints.txt -r agent-requirements.txt
COPY . .
RUN /opt/ztprobe/bin/pip install --no-cache-dir --no-compile --no-deps . \
    # What only installs, headers, tests, and the parts of Arrow that a queue and a table do not need.
    && cd /opt/ztprobe/lib/python3.11/site-packages \
    && rm -rf pyarrow/include pyarrow/tests pyarrow/src pyarrow/libarrow_flight* pyarrow/_flight* \
        pyarrow/_substrait* numpy/*/tests pip pip-* setuptools setuptools-* pkg_resources _distutils_hack \
        distutils-precedence.pth

FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-bpfcc iproute2 \
    && rm -rf /var/lib/apt/lists/* /usr/share/doc /usr/share/man /usr/share/bcc/examples
COPY --from=build /opt/ztprobe /opt/ztprobe
# The root is read-only in a pod: no compiled files on the way.
ENV PATH=/opt/ztprobe/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
ENTRYPOINT []
CMD ["ztprobe", "agent", "serve"]
