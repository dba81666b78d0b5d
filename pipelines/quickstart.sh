#!/bin/sh
# The whole path on real proteins: ingest, train, embed, compare. Run it again after an interruption: it keeps what
# is whole, goes on with a run or with embeddings that are not, and makes the rest.
set -eu

folder=${1:-quickstart}
queries=data_manifests/sample/uniprotkb_queries.fasta.xz
embeddings=$folder/embeddings.h5

if [ -d "$folder/corpus" ]; then
    echo "keeping $folder/corpus"
else
    proteinlm ingest --manifest data_manifests/uniprotkb_sample.toml -o "$folder/corpus" --resume
fi

resume=""
# without a saved state the run begins again, and what was made with it goes too
if [ -d "$folder/run/training_state" ]; then
    resume="--resume"
else
    rm -rf "$folder/run" "$embeddings" "$embeddings.partial" "$folder/embeddings.per_tok.h5" "$folder/report"
fi
proteinlm train pipelines/quickstart.toml --corpus "$folder/corpus" --output "$folder/run" $resume

resume=""
if [ -d "$embeddings.partial" ]; then resume="--resume"; fi
if [ -z "$resume" ] && [ -f "$embeddings" ] && [ -f "$folder/embeddings.per_tok.h5" ]; then
    echo "keeping $embeddings and $folder/embeddings.per_tok.h5"
else
    proteinlm embed "$queries" --checkpoint "$folder/run" -o "$embeddings" --include mean per_tok $resume
fi

if [ -d "$folder/report" ]; then
    echo "keeping $folder/report"
else
    proteinlm compare "$queries" --checkpoint "$folder/run" -o "$folder/report" --max-sequences 6
fi

echo "embeddings: $embeddings and $folder/embeddings.per_tok.h5"
echo "report:     $folder/report/report.html"
