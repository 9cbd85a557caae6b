#!/usr/bin/env bash
# Everything before a release, from nothing: build, look inside, install the wheel in an empty environment, use it.
# `make release-check` runs it. PYTHON is the interpreter that makes the environments.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_CONSTRAINT="$PWD/constraints.txt"

echo "== build and check"
$PYTHON -m venv "$work/build"
"$work/build/bin/python" -m pip install --quiet build twine
rm -rf dist
"$work/build/bin/python" -m build --outdir dist . > "$work/build.log" 2>&1 || { cat "$work/build.log"; exit 1; }
"$work/build/bin/python" -m twine check --strict dist/*
"$work/build/bin/python" scripts/release_contents.py dist

echo "== install the wheel in an empty environment"
$PYTHON -m venv "$work/empty"
begun=$SECONDS
"$work/empty/bin/python" -m pip install --quiet torch
torch=$((SECONDS - begun))
"$work/empty/bin/python" -m pip install --quiet dist/*.whl
echo "torch in $torch s, lightning-lr and the rest in $((SECONDS - begun - torch)) s;" \
    "$("$work/empty/bin/python" -m pip list --format freeze | wc -l) packages," \
    "$(du -sm "$work/empty" | cut -f1) MB"

echo "== use it away from the sources"
cd "$work"
run() { echo "\$ lightning-lr $*"; "$work/empty/bin/lightning-lr" "$@" 2>&1 | tail -${LINES_SHOWN:-6}; }
"$work/empty/bin/python" -W ignore -c "import lightning_lr; print(lightning_lr.__version__, len(lightning_lr.__all__), 'names')"
run --version
run init --model lightning.pytorch.demos.boring_classes.BoringModel --data lightning.pytorch.demos.boring_classes.BoringDataModule --out toy.yaml
run plan --config toy.yaml --out plan.png
run fit --config toy.yaml --trainer.max_epochs 1 --trainer.accelerator cpu --trainer.enable_progress_bar false
run report . --out report.html
test -s plan.png && test -s report.html
echo "== all is well"
