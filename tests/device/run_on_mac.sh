#!/usr/bin/env bash
# Runs the Metal target on a Mac with Apple silicon and prints a report, which is also left in build/mac-report.txt:
#
#     tests/device/run_on_mac.sh [CHECKPOINT_OR_ARTIFACT]
#
# All kernels on the GPU against numpy, the bundled model against its reference, linked by Apple's linker and by ziglang,
# then text and speed of the model that is named: a checkpoint is compiled to int4 first, an artifact for Metal is taken
# as it is, wherever it was made. Installs into .venv.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

if [ "$(uname -s)" != Darwin ] || [ "$(uname -m)" != arm64 ]; then
    echo "this needs macOS on Apple silicon, this is $(uname -s) on $(uname -m)" >&2
    exit 2
fi
model=${1:-artifacts/models/fairytale-10m}
report=build/mac-report.txt
mkdir -p build
: > "$report"
failed=0

# step NAME COMMAND…: its output and how it ended into the report; the next step runs whatever happens.
step() {
    local name=$1
    shift
    printf '\n== %s\n$ %s\n' "$name" "$*" | tee -a "$report"
    if "$@" 2>&1 | tee -a "$report"; then
        echo "== $name: ok" | tee -a "$report"
    else
        echo "== $name: FAILED" | tee -a "$report"
        failed=1
    fi
}

{
    echo "commit $(git rev-parse HEAD 2> /dev/null || echo unknown)"
    sw_vers
    sysctl -n machdep.cpu.brand_string hw.memsize
} | tee -a "$report"

make venv || exit 1
bin=.venv/bin
step "packages" "$bin/python" -m pip list --format=freeze
step "doctor" "$bin/dsv3c" doctor
step "kernels and bundled model" "$bin/pytest" -q tests/device/test_metal.py
artifact=$model
if [ ! -f "$model/manifest.json" ]; then
    artifact=build/mac-artifact
    step "compile" "$bin/dsv3c" compile "$model" --target metal --quant int4 -o "$artifact" --overwrite
fi
step "library" codesign --display --verbose=2 "$artifact/kernels/metal.dylib"
step "generate" "$bin/dsv3c" generate "$artifact" -p "Once upon a time" -n 100 --temperature 0
step "bench" "$bin/dsv3c" bench "$artifact"
step "time of each kernel" "$bin/dsv3c" bench "$artifact" -p 128 -n 16 -r 1 --per-op

printf '\nThe report is in %s\n' "$report"
exit "$failed"
