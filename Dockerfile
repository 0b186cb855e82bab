# The server in an image. docs/image.md tells what is in it, and what has been tried of it.
#   docker build --build-arg DEVICE=hpu --tag tgi-gaudi .       DEVICE is cpu, hpu or cuda
#   docker build --build-arg DEVICE=hpu --target sagemaker .
ARG DEVICE=cpu
ARG PYTHON=3.12
ARG GAUDI=1.24.1
ARG GAUDI_TORCH=2.11.0
ARG GAUDI_UBUNTU=24.04
ARG GAUDI_REGISTRY=vault.habana.ai/gaudi-docker

FROM python:${PYTHON}-slim AS base-cpu
# OpenMP, for torch.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends libgomp1 \
 && rm -rf /var/lib/apt/lists/*
ENV DEVICE=cpu

FROM python:${PYTHON}-slim AS base-cuda
# torch brings CUDA along, and Triton a compiler that needs this one.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends gcc libc6-dev libgomp1 \
 && rm -rf /var/lib/apt/lists/*
ENV DEVICE=cuda NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

# hadolint ignore=DL3007
FROM ${GAUDI_REGISTRY}/${GAUDI}/ubuntu${GAUDI_UBUNTU}/habanalabs/pytorch-installer-${GAUDI_TORCH}:latest AS base-hpu
ARG GAUDI
ARG GAUDI_TORCH
COPY docker/pairing.py tgi/device/hpu/gaudi_releases.py /opt/tgi/docker/
RUN python3 /opt/tgi/docker/pairing.py --gaudi "$GAUDI" --torch "$GAUDI_TORCH"
ENV DEVICE=hpu \
    HABANA_VISIBLE_DEVICES=all \
    HABANA_LOGS=/tmp/habana_logs \
    OMPI_MCA_btl_vader_single_copy_mechanism=none \
    PIP_BREAK_SYSTEM_PACKAGES=1 \
    PT_HPU_LAZY_MODE=1

# hadolint ignore=DL3006
FROM base-${DEVICE} AS server
WORKDIR /opt/tgi
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
# The build of torch that suits a CPU is in an index of its own, and a third as large: --build-arg PIP_INDEX_URL=…
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG TORCH="torch==2.13.0"
# hadolint ignore=DL3013
RUN [ "$DEVICE" = hpu ] || python3 -m pip install "$TORCH"
# What the server needs beside, so that a change of its code changes the last layers only.
COPY docker/requirements.py docker/
COPY pyproject.toml ./
RUN python3 docker/requirements.py pyproject.toml "$DEVICE" > /tmp/requirements.txt \
 && python3 -m pip install --requirement /tmp/requirements.txt \
 && rm /tmp/requirements.txt
# Kernels for every instruction set of CPUs; without a compiler, and for other devices, an empty package.
COPY kernels kernels
# hadolint ignore=DL3008,DL3013
RUN if [ "$DEVICE" = cpu ]; then \
    apt-get update && apt-get install --yes --no-install-recommends g++ libc6-dev; \
  fi \
 && TGI_KERNELS=all python3 -m pip install --no-deps ./kernels/*/ \
 && if [ "$DEVICE" = cpu ]; then apt-get purge --yes --auto-remove g++ libc6-dev; fi \
 && rm -rf /var/lib/apt/lists/* kernels/*/build kernels/*/*.egg-info
COPY README.md LICENSE ./
COPY docker docker
COPY tgi tgi
COPY adapters adapters
# hadolint ignore=DL3013
RUN python3 -m pip install --no-deps . ./adapters/*/ \
 && rm -rf build ./*.egg-info adapters/*/build adapters/*/*.egg-info \
 && python3 -m pip check \
 && tgi plugins \
 && install --directory --owner=1000 --group=1000 /data
# Any user may run it, also one without a name, with a read-only root: only /data and /tmp are written to.
ENV HF_HOME=/data HOME=/tmp USER=tgi PYTHONDONTWRITEBYTECODE=1 PORT=80
USER 1000:1000
VOLUME /data
# A server that warms up for an hour is healthy when it is ready, and not ill before.
HEALTHCHECK --interval=15s --timeout=10s --start-period=2h --retries=4 CMD ["python3", "/opt/tgi/docker/health.py"]

FROM server AS sagemaker
ENV PORT=8080
EXPOSE 8080
ENTRYPOINT ["/opt/tgi/docker/sagemaker-entrypoint.sh"]

FROM server
EXPOSE 80
ENTRYPOINT ["text-generation-launcher"]
CMD ["--json-output"]
