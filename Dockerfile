# Two images from one file: the fleet (default target), and the fleet with llama.cpp for the local lane (--target local).
#
#   docker build -t waybill:dev .
#   docker build -t waybill-local:dev --target local .
#
# Packages come by hash from the lock files. No shell is needed to run them; the user is a number, so that Kubernetes can see
# that it is not root; nothing is written but to /tmp and to what is mounted.

# --- packages: what the locks name, in an environment that is copied as a whole ------------------------------------------
FROM python:3.13.9-slim-bookworm AS packages
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 \
    UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1 UV_PYTHON_DOWNLOADS=never UV_NO_CACHE=1
WORKDIR /build
# uv and the build backend, pinned in this file.
COPY requirements-tools.lock ./
RUN python -m pip install --require-hashes -r requirements-tools.lock \
    && python -m venv --without-pip /opt/waybill/venv
# requirements.lock without what only a checkout needs: the embedded servers and the development tools.
COPY deploy/image.lock ./
RUN uv pip install --python /opt/waybill/venv/bin/python --require-hashes --no-deps -r image.lock
COPY pyproject.toml README.md LICENSE ./
COPY waybill ./waybill
RUN uv build --wheel --no-build-isolation --python /usr/local/bin/python --out-dir dist . \
    && uv pip install --python /opt/waybill/venv/bin/python --no-deps dist/*.whl \
    && rm -f /opt/waybill/venv/.lock
# (uv's lock file, which it leaves writable for everyone.)

# --- llama: the binding, compiled with AVX2, FMA and F16C but nothing newer (scripts/local_lane.py), and the model ---------
FROM packages AS llama
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++=4:12.2.0-3 \
    && rm -rf /var/lib/apt/lists/*
COPY requirements-local.lock ./
COPY scripts/local_lane.py scripts/llama_without_common.cmake ./scripts/
RUN XDG_CACHE_HOME=/build/cache python scripts/local_lane.py \
    && awk '/^[a-z]/ {keep = /^(diskcache|jinja2|markupsafe)==/} keep' requirements-local.lock >run-time.lock \
    && uv pip install --python /opt/waybill/venv/bin/python --require-hashes --no-deps -r run-time.lock \
    && uv pip install --python /opt/waybill/venv/bin/python --no-deps /build/cache/waybill/wheels/*/*.whl \
    && mv /build/cache/waybill/models /opt/waybill/models

# --- fleet: the same Python, so that the environment's interpreter is where it was ---------------------------------------
FROM python:3.13.9-slim-bookworm AS fleet
ENV PATH=/opt/waybill/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# The heap in huge pages, where the node has them (waybill/hugepages.py).
ENV PYTHONMALLOC=malloc GLIBC_TUNABLES=glibc.malloc.hugetlb=1 MALLOC_ARENA_MAX=1
WORKDIR /opt/waybill
COPY --from=packages /opt/waybill/venv ./venv
# The parts of the fleet that are no library stand beside it, as in a checkout: the library looks for them there.
COPY policies ./venv/lib/python3.13/site-packages/policies
COPY producers ./venv/lib/python3.13/site-packages/producers
COPY sandbox ./venv/lib/python3.13/site-packages/sandbox
COPY workers ./venv/lib/python3.13/site-packages/workers
COPY migrations ./venv/lib/python3.13/site-packages/migrations
RUN python -m compileall -q ./venv/lib/python3.13/site-packages/policies ./venv/lib/python3.13/site-packages/producers \
    ./venv/lib/python3.13/site-packages/sandbox ./venv/lib/python3.13/site-packages/workers
USER 10001:10001
ENTRYPOINT ["waybill"]

# --- local: the same with the local lane ---------------------------------------------------------------------------------
FROM fleet AS local
USER 0:0
# llama.cpp computes with OpenMP's threads.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1=12.2.0-14+deb12u1 \
    && rm -rf /var/lib/apt/lists/*
USER 10001:10001
COPY --from=llama /opt/waybill/venv/lib/python3.13/site-packages ./venv/lib/python3.13/site-packages
COPY --from=llama /opt/waybill/models ./models
ENV WAYBILL_LOCAL_MODEL=/opt/waybill/models/SmolLM2-135M-Instruct.Q4_1.gguf

# The target that is built when none is named.
FROM fleet
