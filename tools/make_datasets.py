"""Writes testdata/datasets: small Parquet files as pyarrow (and so pandas and Hugging Face datasets) writes them.

    python3 -m venv .venv && .venv/bin/pip install pyarrow==26.0.1
    .venv/bin/python tools/make_datasets.py testdata/datasets
"""

import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

out = Path(sys.argv[1])
out.mkdir(parents=True, exist_ok=True)


def features(**kinds):
    """The metadata that Hugging Face datasets leave in a schema."""
    return {b"huggingface": json.dumps({"info": {"features": kinds}}).encode()}


names = {"names": ["entailment", "neutral", "contradiction"], "_type": "ClassLabel"}
pairs = pa.table(
    {
        "premise": ["A man eats.", "É tarde — the café\nis shut.", "x" * 3000],
        "hypothesis": ["Someone eats.", "Nobody is there.", ""],
        "label": pa.array([0, 2, None], pa.int64()),
        "idx": pa.array([7, 8, 9], pa.int32()),
        "when": pa.array([1, 2, 3], pa.timestamp("us")),
    }
)
pairs = pairs.replace_schema_metadata(features(label=names))
pq.write_table(pairs, out / "pairs.parquet", compression="snappy", row_group_size=2)
pq.write_table(pairs, out / "pairs-plain.parquet", compression="none", use_dictionary=False, version="1.0")
pq.write_table(pairs, out / "pairs-zstd.parquet", compression="zstd")

tags = pa.table({"tokens": [["Ada", "met", "Byron"], ["日本", "!"]], "ner_tags": [[1, 0, 1], [2, 0]]})
tag_names = {"feature": {"names": ["O", "B-PER", "B-LOC"], "_type": "ClassLabel"}, "_type": "Sequence"}
pq.write_table(tags.replace_schema_metadata(features(ner_tags=tag_names)), out / "tags.parquet")

answers = pa.array(
    [{"text": ["Ada", "Ada L."], "answer_start": [0, 0]}, {"text": [], "answer_start": []}],
    pa.struct([("text", pa.list_(pa.string())), ("answer_start", pa.list_(pa.int32()))]),
)
squad = pa.table({"id": ["a", "b"], "question": ["Who?", "When?"], "context": ["Ada L. did.", "No."], "answers": answers})
pq.write_table(squad, out / "squad.parquet")
pq.write_table(pairs.slice(0, 0), out / "empty.parquet")
