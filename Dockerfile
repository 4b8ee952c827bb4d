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
COPY requirements-tools.lock ./
# uv and the build backend, pinned by hash in this file.
RUN python -m pip install --require-hashes -r requirements-tools.lock && python -m venv --without-pip /opt/waybill/venv
COPY requirements.lock ./
COPY scripts/image_requirements.py ./scripts/
COPY pyproject.toml README.md LICENSE ./
# Without what only a checkout needs: the embedded servers and the development tools.
RUN python scripts/image_requirements.py requirements.lock pyproject.toml >image.lock \
    && uv pip install --python /opt/waybill/venv/bin/python --require-hashes --no-deps -r image.lock
COPY waybill ./waybill
RUN uv build --wheel --no-build-isolation --python /usr/local/bin/python --out-dir dist . \
    && uv pip install --python /opt/waybill/venv/bin/python --no-deps dist/*.whl

# --- llama: the binding, compiled for AVX2 (every x86-64 server since 2013 or so), and the model, both by hash -----------
FROM packages AS llama
RUN apt-get update && apt-get install --yes --no-install-recommends g++=4:12.2.0-3 && rm -rf /var/lib/apt/lists/*
COPY requirements-local.lock ./
COPY scripts/local_lane.py scripts/llama_without_common.cmake ./scripts/
ENV CMAKE_ARGS="-DLLAVA_BUILD=OFF -DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_AVX512=OFF -DCMAKE_PROJECT_llama.cpp_INCLUDE=/build/scripts/llama_without_common.cmake"
RUN python scripts/image_local.py /opt/waybill/venv /opt/waybill/models

# --- run: the same Python, so that the environment's interpreter is where it was -----------------------------------------
FROM python:3.13.9-slim-bookworm AS run
ENV PATH=/opt/waybill/venv/bin:$PATH PYTHONPATH=/opt/waybill/app \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /opt/waybill/app
# The parts of the fleet that are no library, beside the installed one.
COPY policies ./policies
COPY producers ./producers
COPY sandbox ./sandbox
COPY workers ./workers
COPY migrations ./migrations
