# The server for CPUs. Models are kept in /data; give it a volume.
FROM python:3.12-slim

RUN apt-get update \
 && apt-get install --yes --no-install-recommends libgomp1 \
 && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/tgi
# A build of torch that suits the machine; a CPU-only index keeps the image small:
#   docker build --build-arg PIP_EXTRA_INDEX_URL=… .
ARG TORCH="torch==2.13.0"
ARG PIP_EXTRA_INDEX_URL=""
RUN pip install --no-cache-dir "$TORCH"

COPY pyproject.toml README.md LICENSE ./
COPY tgi tgi
COPY adapters adapters
RUN pip install --no-cache-dir "$TORCH" . ./adapters/*/

# As TGI's images: port 80, models in /data. Works with a read-only root and any user.
ENV HF_HOME=/data PORT=80 PYTHONDONTWRITEBYTECODE=1
VOLUME /data
EXPOSE 80
ENTRYPOINT ["text-generation-launcher"]
CMD ["--json-output"]
