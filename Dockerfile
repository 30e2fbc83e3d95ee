# syntax=docker/dockerfile:1
#
# docker build -t quota-sidecar .
# docker run --read-only --cap-drop ALL -v sidecar-state:/var/lib/sidecar --network host \
#     -e SIDECAR_REDIS_URL=redis://127.0.0.1:6379/0 quota-sidecar serve --role authz
#
# For builds that can be repeated to the byte, name the base by its digest: --build-arg BASE=python@sha256:...
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src

# Dependencies before the program, so that a change of the program alone does not fetch them again. Every file is checked
# against its hash, and only wheels are taken: nothing from outside is compiled or executed here.
COPY requirements/ requirements/
RUN python -m venv /opt/sidecar \
    && /opt/sidecar/bin/python -m pip install --require-hashes --only-binary :all: -r requirements/runtime.txt

# The build tool is pinned with the embedded servers of `sidecar dev`; none of them gets further than this stage. Nor does
# what writes the bill of materials.
RUN python -m venv /opt/build \
    && /opt/build/bin/python -m pip install --require-hashes --only-binary :all: -r requirements/embedded.txt \
    && python -m venv /opt/audit \
    && /opt/audit/bin/python -m pip install --require-hashes --only-binary :all: -r requirements/audit.txt

COPY pyproject.toml LICENSE README.md ./
COPY sidecar/ sidecar/
RUN /opt/build/bin/python -m pip wheel --no-index --no-deps --no-build-isolation --wheel-dir /tmp/wheel . \
    && /opt/sidecar/bin/python -m pip install --no-index --no-deps /tmp/wheel/*.whl \
    && /opt/sidecar/bin/python -m pip uninstall --yes pip setuptools

# What the image really has, with licences and who needs what: `docker run --entrypoint cat quota-sidecar /opt/sidecar/sbom.json`.
RUN /opt/audit/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --output-format JSON \
    --output-file /opt/sidecar/sbom.json /opt/sidecar/bin/python

FROM ${BASE} AS final
# Byte code was written at installation; the root file system is read-only at run time. Logs go out line by line.
ENV PATH=/opt/sidecar/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
# A number, so that Kubernetes can see that it is not root. The program belongs to root: it cannot change itself.
RUN install --directory --owner 10001 --group 10001 --mode 0700 /var/lib/sidecar
COPY --from=build /opt/sidecar /opt/sidecar
USER 10001:10001
WORKDIR /var/lib/sidecar

# The journal: counts that are not yet in the ledger. The only place that is written to.
VOLUME /var/lib/sidecar

# authz and local listen on loopback unless told otherwise.
EXPOSE 9000 9001 9002 9003

# Reports its counts, returns its leases and waits for the ledger, for at most SIDECAR_DRAIN_S (15 s): stop it with
# `docker stop --time 20` or more.
STOPSIGNAL SIGTERM

# For Docker alone; Kubernetes asks itself. Whoever moves SIDECAR_OPS_LISTEN replaces this too.
HEALTHCHECK --interval=5s --timeout=3s --start-period=30s --retries=3 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:9002/healthz', timeout=2)"]

ENTRYPOINT ["sidecar"]
CMD ["serve"]
