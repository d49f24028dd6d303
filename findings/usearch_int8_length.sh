#!/usr/bin/env bash
# usearch 2.26.6: Euclidean distances of an int8 index do not see how long vectors are.
#
# Floats that are added to an index of dtype "i8" are divided by the length of their own vector first, whatever the
# metric. For cosines that changes nothing; with "l2sq" all vectors of one direction become one, without a warning, and
# distances are in units of 1/127 of a length.
#
# Seen: [30, 40] lies at a distance of 0 from [3, 4]. In float32 it is 2025, and so it is in bf16.
set -euo pipefail
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder" && "$folder/bin/pip" install --quiet usearch==2.26.6 numpy==2.4.6
"$folder/bin/python" - <<'END'
import numpy as np
from usearch.index import Index

short, long = np.array([3, 4], np.float32), np.array([30, 40], np.float32)
seen = {}
for dtype in ("f32", "bf16", "i8"):
    index = Index(ndim=2, metric="l2sq", dtype=dtype)
    index.add(1, short)
    seen[dtype] = float(index.search(long, 1).distances[0])
print("squared distance of [3, 4] and [30, 40]:", seen)
assert seen == {"f32": 2025.0, "bf16": 2025.0, "i8": 0.0}, "usearch behaves otherwise now"
END
