#!/bin/sh
# The whole path on real proteins: ingest, train, embed, compare. Finished stages are kept when it is run again.
set -eu

folder=${1:-quickstart}
queries=data_manifests/sample/uniprotkb_queries.fasta.xz

if [ -d "$folder/corpus" ]; then
    echo "keeping $folder/corpus"
else
    proteinlm ingest --manifest data_manifests/uniprotkb_sample.toml -o "$folder/corpus"
fi

resume=""
if [ -d "$folder/run/training_state" ]; then resume="--resume"; else rm -rf "$folder/run"; fi
proteinlm train pipelines/quickstart.toml --corpus "$folder/corpus" --output "$folder/run" $resume

rm -rf "$folder/embeddings.h5" "$folder/embeddings.per_tok.h5" "$folder/report"
proteinlm embed "$queries" --checkpoint "$folder/run" -o "$folder/embeddings.h5" --include mean per_tok
proteinlm compare "$queries" --checkpoint "$folder/run" -o "$folder/report" --max-sequences 6

echo "embeddings: $folder/embeddings.h5 and $folder/embeddings.per_tok.h5"
echo "report:     $folder/report/report.html"
