# Two stages: the first has pip and the sources, the second only what runs.
# Nothing is compiled from source and no Node is needed; every wheel is checked against its hash.
FROM python:3.11-slim-bookworm AS build

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src

# The dependencies alone first: this layer stays until a lock changes.
COPY requirements/base.lock requirements/build.lock requirements/
RUN python3 -m venv /opt/build \
    && /opt/build/bin/pip install --require-hashes --no-deps -r requirements/build.lock \
    && python3 -m venv /opt/gatepass \
    && /opt/gatepass/bin/pip install --require-hashes --no-deps -r requirements/base.lock

COPY pyproject.toml README.md LICENSE ./
COPY requirements/base.in requirements/
COPY gateway gateway
COPY web web
COPY migrations migrations
# Migrations lie beside the packages, where they lie in a checkout too.
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /wheels . \
    && /opt/gatepass/bin/pip install --no-deps --no-index /wheels/*.whl \
    && cp -r migrations "$(/opt/gatepass/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/migrations" \
    && /opt/gatepass/bin/pip uninstall --yes pip \
    && /opt/gatepass/bin/python -m compileall -q /opt/gatepass/lib

FROM python:3.11-slim-bookworm

LABEL org.opencontainers.image.title="gatepass" \
      org.opencontainers.image.description="Approval and audit gateway for MCP tool calls" \
      org.opencontainers.image.licenses="Apache-2.0"

# The data directory is the only place written to, so the root may be mounted read-only.
RUN install -d -o 10001 -g 10001 -m 0700 /data
COPY --from=build /opt/gatepass /opt/gatepass

ENV PATH=/opt/gatepass/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    GATEPASS_LISTEN=0.0.0.0:8080 \
    GATEPASS_DATA_DIR=/data
WORKDIR /data
USER 10001:10001
VOLUME /data
EXPOSE 8080

HEALTHCHECK --interval=15s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python3", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8080/healthz', timeout=4).close()"]
ENTRYPOINT ["gatepass"]
CMD ["serve"]
