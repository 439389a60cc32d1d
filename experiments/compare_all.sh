#!/usr/bin/env bash
# The comparisons behind the README's table: experiments/compare_all.sh SURFACES_DIR [OUT_DIR]
#
# SURFACES_DIR holds rapp-dev, parvagpu and llm-inference-bench, public recordings that are not part of this project
# (experiments/results/compare/README.md says where they come from). Each command goes on where it was interrupted; all
# of them take some hours on two cores, most of it for the libraries.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
surfaces=$1 out=${2:-experiments/results/compare}
export OMP_NUM_THREADS=1
compare() { "${PYTHON:-.venv/bin/python}" -m experiments.compare "$@" --processes "${PROCESSES:-2}"; }

parvagpu=(--surfaces "$surfaces/parvagpu" --objective slo2 --objective slo5 --objective slo12)
llm=(--surfaces "$surfaces/llm-inference-bench" --objective slo4)
rapp() { echo "--surfaces $surfaces/rapp-dev --objective ${1:-cost50}"; }

ours=morphling,gp,portfolio+gp,portfolio,random
paper=maml,finetune,ernest,bo
libraries=optuna-tpe,optuna-gp,botorch,grid,hill-climb

main() {
    for objective in cost50 cost25; do
        compare $(rapp $objective) --searchers $ours --seeds 3 --json "$out/rapp-dev-$objective.json"
    done
    compare "${parvagpu[@]}" --searchers $ours --seeds 3 --json "$out/parvagpu.json"
    compare "${llm[@]}" --searchers $ours --seeds 3 --json "$out/llm-inference-bench.json"
}

h100() {
    compare --surfaces experiments/surfaces/h100 --objective rps --objective rps_per_dollar --searchers $ours --seeds 3 --json "$out/h100.json"
}

robust() {
    local both=(--searchers morphling,gp --seeds 3)
    compare $(rapp) "${both[@]}" --shuffle-prior --json "$out/robust-shuffled-prior.json"
    compare $(rapp) "${both[@]}" --learn-from "$surfaces/parvagpu" --train-tasks 5 --json "$out/robust-five-tasks-of-another-kind.json"
    compare $(rapp) "${both[@]}" --drop-values batch_size=8 --json "$out/robust-unseen-value.json"
    compare $(rapp) "${both[@]}" --drop-knob batch_size --json "$out/robust-unseen-knob.json"
    compare "${llm[@]}" "${both[@]}" --drop-values "hardware=Nvidia H100 GPU" --json "$out/robust-unseen-gpu-type.json"
    compare $(rapp) "${both[@]}" --free-knobs batch_size --json "$out/free-batch-size.json"
}

libraries() {
    compare $(rapp) --searchers morphling,$libraries,$paper --seeds 1 --json "$out/rapp-dev-cost50-1-seed.json"
}

vizier() {
    compare $(rapp) --searchers morphling,vizier,vizier-transfer --seeds 1 --subset 6 --json "$out/rapp-dev-cost50-6-tasks.json"
}

for part in ${PARTS:-main h100 robust libraries vizier}; do $part; done
