#!/usr/bin/env bash
# Write all benchmark tables of a GPU, each into its own file:
#
#     benchmarks/gpu.sh [OUT]            default: runs/gpu
#     DATA=imagenet/train benchmarks/gpu.sh OUT
#     PARTS="tests base" benchmarks/gpu.sh OUT      parts: tests base large compiled graphs fit data feed
#
# Nothing is installed: libraries that PYTHON (default: .venv's, else python3) lacks are named in the tables. DATA is a
# folder of photographs; by default 3000 JPEGs of 500 x 375 are made from those of scikit-image. If a part fails, the
# others still run; the exit code is the number of failed parts.
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=${1:-runs/gpu}
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
PARTS=${PARTS:-tests base large compiled graphs fit data feed}
REPEATS=${REPEATS:-10}
BATCHES_BASE=${BATCHES_BASE:-"128 256 512"}
BATCHES_LARGE=${BATCHES_LARGE:-"64 128 256"}
FEED_STEPS=${FEED_STEPS:-300}
FEED_BATCH=${FEED_BATCH:-512}
WORK=${WORK:-$(mktemp -d)}
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}"
failed=0

hardpatch() { "$PYTHON" -m hardpatch "$@"; }

# save NAME COMMAND...: print the command and its output, and write both to OUT/NAME.md
save() {
    local name=$1
    shift
    { echo "\`$*\`"; echo; "$@" 2>&1; } | tee "$OUT/$name.md"
    local code=${PIPESTATUS[0]}
    [ "$code" = 0 ] || { failed=$((failed + 1)); echo "$name failed with exit code $code" | tee -a "$OUT/$name.md"; }
}

wants() { [[ " $PARTS " == *" $1 "* ]]; }

# compare NAME RECIPE BATCH CONTENDERS [OPTION...]: one table of hardpatch bench
compare() {
    local name=$1 recipe=$2 batch=$3 contenders=$4
    shift 4
    save "$name" hardpatch bench --recipe "$recipe" --batch_size "$batch" --contenders "$contenders" --device cuda \
        --precision bf16 --repeats "$REPEATS" --json "$OUT/$name.json" "$@"
}

nvidia-smi > "$OUT/machine.txt" 2>&1
"$PYTHON" -c 'import torch; print(torch.__version__, torch.version.cuda)' >> "$OUT/machine.txt" 2>&1

if wants tests; then
    save tests "$PYTHON" -m pytest -q tests/pretrain/test_gpu.py
fi
if wants base; then
    for batch in $BATCHES_BASE; do
        compare "base_$batch" imagenet_base_200 "$batch" hpm,mae,hpm_fast,transformers,lightly,literal
    done
fi
if wants large; then
    for batch in $BATCHES_LARGE; do
        compare "large_$batch" imagenet_large_200 "$batch" hpm,mae,hpm_fast,transformers,lightly,literal
    done
fi
if wants compiled; then
    for batch in $BATCHES_BASE; do
        compare "base_${batch}_compiled" imagenet_base_200 "$batch" hpm,mae,hpm_fast,transformers,lightly,literal --compile
    done
    for batch in $BATCHES_LARGE; do
        compare "large_${batch}_compiled" imagenet_large_200 "$batch" hpm,mae,hpm_fast,transformers,lightly --compile
    done
fi
if wants graphs; then
    # CUDA graphs save kernel launches, which matter for short kernels: small models, small batches.
    compare tiny_graphs cifar10_tiny 256 hpm,mae,transformers,lightly --compile cuda_graphs
    compare base_graphs imagenet_base_200 "${BATCHES_BASE%% *}" hpm,mae,transformers,lightly --compile cuda_graphs
fi
if wants fit; then
    # ViT-L at the paper's batch of 4096: number of micro-batches and peak memory, without and with checkpointing.
    for checkpointing in false true; do
        name=fit_$checkpointing
        save "$name" hardpatch pretrain --recipe imagenet_large_200 --data demo:train --out "$WORK/$name" \
            --steps 3 --train.log_every 1 --optim.accumulation_steps auto \
            --train.checkpoint_activations "$checkpointing" --method.alpha_start 0.5 --train.device cuda \
            --train.precision bf16
        tail -n 1 "$WORK/$name/metrics.jsonl" | tee -a "$OUT/$name.md"
    done
fi
if wants data || wants feed; then
    if [ -z "${DATA:-}" ]; then
        DATA=$WORK/photographs
        "$PYTHON" - "$DATA" <<'PYTHON_END'
import sys
from pathlib import Path

sys.path.insert(0, "benchmarks")
from decode import photographs

folder = Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
files = photographs(500, 375)
for number in range(3000):
    (folder / f"{number:05}.jpg").write_bytes(files[number % len(files)])
PYTHON_END
    fi
    save shrink hardpatch shrink "$DATA" --side 256 --out "$WORK/shards"
fi
if wants data; then
    save data hardpatch bench data --data "$DATA" --json "$OUT/data.json"
    save data_shards hardpatch bench data --data "$WORK/shards" --json "$OUT/data_shards.json"
fi
if wants feed; then
    # Training on the shards, and the same steps on synthetic images: compare images_per_second of the last lines.
    save feed hardpatch pretrain --recipe imagenet_base_200 --data "$WORK/shards" --out "$WORK/feed" \
        --steps "$FEED_STEPS" --batch_size "$FEED_BATCH" --method.alpha_start 0.5 --train.log_every 50 \
        --train.device cuda --train.precision bf16
    tail -n 3 "$WORK/feed/metrics.jsonl" | tee -a "$OUT/feed.md"
    compare feed_synthetic imagenet_base_200 "$FEED_BATCH" hpm
fi
echo "$OUT: $(ls "$OUT" | wc -l) files, $failed parts failed"
exit "$failed"
