#!/usr/bin/env bash
# sqlite-vec 0.1.9 and numpy 2.4.6: bits of a vector stand in opposite orders.
#
# `vec_quantize_binary` of sqlite-vec puts the first number of a vector into the lowest bit of the first byte;
# `numpy.packbits`, with which sentence-transformers and usearch make binary embeddings, into the highest. A table of
# `bit[N]` takes both, for both are N/8 bytes, so a question that was packed by one and texts that were packed by the
# other are compared without an error.
#
# Seen: a vector is as far as can be from itself, at a Hamming distance of 8 of 8, and at 0 from its opposite.
set -euo pipefail
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder" && "$folder/bin/pip" install --quiet sqlite-vec==0.1.9 apsw==3.54.1.0 numpy==2.4.6
"$folder/bin/python" - <<'END'
import apsw  # SQLite with extensions, which not every Python was built with
import numpy as np
import sqlite_vec

db = apsw.Connection(":memory:")
db.enable_load_extension(True)
db.load_extension(sqlite_vec.loadable_path())
db.execute("CREATE VIRTUAL TABLE texts USING vec0(embedding bit[8])")
vector = np.array([1, 1, 1, 1, -1, -1, -1, -1], np.float32)
db.execute("INSERT INTO texts(rowid, embedding) VALUES (1, vec_quantize_binary(?))", (vector.tobytes(),))


def distance(other):
    """By a question packed with numpy."""
    packed = np.packbits(other > 0).tobytes()
    asked = "SELECT distance FROM texts WHERE embedding MATCH vec_bit(?) AND k = 1"
    return db.execute(asked, (packed,)).fetchone()[0]


seen = distance(vector), distance(-vector)
print("Hamming distances of a vector to itself and to its opposite:", seen)
assert seen == (8.0, 0.0), "sqlite-vec or numpy behaves otherwise now"
END
