# syntax=docker/dockerfile:1
# The CPU image: docker build --target cpu .   (any index that pip should use: --build-arg PIP_EXTRA_INDEX_URL=...)

FROM python:3.11-slim AS build
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /app
RUN python -m venv /opt/venv
COPY pyproject.toml constraints.txt README.md LICENSE ./
# The dependencies are a layer of their own, so that a change of the source doesn't fetch them again.
RUN /opt/venv/bin/pip install -c constraints.txt -e .
COPY mc_core mc_core
COPY server server
COPY clients clients
RUN /opt/venv/bin/pip install --no-deps -e . && /opt/venv/bin/pip check && /opt/venv/bin/pip uninstall -y pip

FROM python:3.11-slim AS cpu
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /data megacontext \
    && install -d -o megacontext -g megacontext /data
COPY --from=build /opt/venv /opt/venv
COPY --from=build /app /app
COPY models /app/models
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    MEGACONTEXT_DEVICE=cpu \
    MEGACONTEXT_HOST=0.0.0.0 \
    MEGACONTEXT_PORT=8000 \
    MEGACONTEXT_STORE=sqlite:////data/megacontext.sqlite
USER megacontext
WORKDIR /data
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f\"http://127.0.0.1:{os.environ['MEGACONTEXT_PORT']}/health\", timeout=4)"]
CMD ["megacontext", "serve"]
