#!/usr/bin/env bash
# Build, search and measure an impact index and a BM25 index of one BEIR folder.
#
#   scripts/run_collection.sh MODEL CORPUS OUTPUT [--remove-query]
#   scripts/run_collection.sh lexical my_corpus indexes/my_corpus
#
# OUTPUT gets: impact/ impact.vectors/ bm25/ (folders), impact.trec bm25.trec (runs), impact.json bm25.json (measures).
# After a kill, the same command continues with the documents that are not encoded yet.
set -euo pipefail
model=$1 corpus=$2 output=$3 remove_query=${4:-}
measures="nDCG@10 R@100 R@1000 RR@10"
mkdir -p "$output"

python -m sparse_ir build --model "$model" --input "$corpus" --output "$output/impact"
python -m sparse_ir bm25 --input "$corpus" --output "$output/bm25"

for system in impact bm25; do
    python -m sparse_ir verify --index "$output/$system"
    python -m sparse_ir search --index "$output/$system" --queries "$corpus" --output "$output/$system.trec" $remove_query
    python -m sparse_ir evaluate --run "$output/$system.trec" --qrels "$corpus" --measures "$measures" --json \
        | tee "$output/$system.json"
done
