#!/bin/sh
# What SageMaker sets becomes what the launcher reads, as in TGI's image. SageMaker's own argument, `serve`, is not one of ours.
set -eu
if [ -z "${HF_MODEL_ID:-}" ]; then
    echo "HF_MODEL_ID must be set" >&2
    exit 1
fi
export MODEL_ID="$HF_MODEL_ID"
[ -z "${HF_MODEL_REVISION:-}" ] || export REVISION="$HF_MODEL_REVISION"
[ -z "${SM_NUM_GPUS:-}" ] || export NUM_SHARD="$SM_NUM_GPUS"
[ -z "${HF_MODEL_QUANTIZE:-}" ] || export QUANTIZE="$HF_MODEL_QUANTIZE"
[ -z "${HF_MODEL_TRUST_REMOTE_CODE:-}" ] || export TRUST_REMOTE_CODE="$HF_MODEL_TRUST_REMOTE_CODE"
exec text-generation-launcher --port 8080 --json-output
