# syntax=docker/dockerfile:1
# Two images of one server:  docker build --target cuda .   docker build --target cpu .
#
# PyTorch's ordinary package carries its own CUDA libraries, so `cuda` needs no CUDA base image, only the driver that the
# NVIDIA container toolkit mounts. The same package also runs on a CPU, some gigabytes too large. For a small `cpu` image
# name an index that has builds without CUDA: --build-arg CPU_EXTRA_INDEX_URL=... (none is named here; empty by default).
# Its "+cpu" versions satisfy the pins and sort above the plain ones, so pip prefers them.
# EXTRAS=[ray]: several servers on Ray Serve. PIP_INDEX_URL and PIP_EXTRA_INDEX_URL: package indexes of your own, for both images.
ARG PYTHON=python:3.11.11-slim-bookworm

FROM ${PYTHON} AS build
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG EXTRAS=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /app
RUN python -m venv /opt/venv
COPY pyproject.toml constraints.txt README.md LICENSE ./

# The dependencies are a layer of their own, so that a change of the source doesn't fetch them again.
# The default model is a layer of its own too, so that a container needs no network when it starts.
FROM build AS fetched
COPY mc_core/__init__.py mc_core/errors.py mc_core/
COPY server/__init__.py server/fetch.py server/
RUN python -c "from pathlib import Path; from server.fetch import SMOLLM2, fetch; fetch(SMOLLM2, Path('/fetched'))"

FROM build AS build-cuda
RUN /opt/venv/bin/pip install -c constraints.txt -e ".${EXTRAS}"
COPY mc_core mc_core
COPY server server
COPY clients clients
RUN /opt/venv/bin/pip install --no-deps -e . && /opt/venv/bin/pip check && /opt/venv/bin/pip uninstall -y pip

FROM build AS build-cpu
ARG CPU_EXTRA_INDEX_URL=""
RUN PIP_EXTRA_INDEX_URL="${PIP_EXTRA_INDEX_URL} ${CPU_EXTRA_INDEX_URL}" \
    /opt/venv/bin/pip install -c constraints.txt -e ".${EXTRAS}"
COPY mc_core mc_core
COPY server server
COPY clients clients
RUN /opt/venv/bin/pip install --no-deps -e . && /opt/venv/bin/pip check && /opt/venv/bin/pip uninstall -y pip

# What both images share but the packages: python, a user, the models, the settings.
FROM ${PYTHON} AS runtime
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /data megacontext \
    && install -d -o megacontext -g megacontext /data
COPY models /app/models
COPY --from=fetched /fetched /app/fetched
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    MEGACONTEXT_HOST=0.0.0.0 \
    MEGACONTEXT_PORT=8000 \
    MEGACONTEXT_MODEL_CACHE=/app/fetched \
    MEGACONTEXT_STORE=sqlite:////data/megacontext.sqlite
WORKDIR /data
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f\"http://127.0.0.1:{os.environ['MEGACONTEXT_PORT']}/health\", timeout=4)"]
CMD ["megacontext", "serve"]

FROM runtime AS cpu
COPY --from=build-cpu /opt/venv /opt/venv
COPY --from=build-cpu /app /app
ENV MEGACONTEXT_DEVICE=cpu
USER megacontext

# The last target is what a build without --target makes.
FROM runtime AS cuda
COPY --from=build-cuda /opt/venv /opt/venv
COPY --from=build-cuda /app /app
ENV MEGACONTEXT_DEVICE=cuda \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER megacontext
