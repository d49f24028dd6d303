#!/usr/bin/env bash
# ml_dtypes 0.6.0: float64 becomes bfloat16 by way of float32, and is rounded twice.
#
# numpy rounds float64 to its own float16 once, to the nearest. To bfloat16, as ml_dtypes adds it to numpy, a float64 is
# rounded to float32 first; what is just above the middle of two bfloat16 numbers may then be the middle, and goes to
# the even one: the farther. So weights that were computed in float64 differ in single bits from what one rounding gives.
# (torch 2.13.0 rounds twice to both types.)
#
# Seen: 1 + 2^-8 + 2^-40 becomes 1, although 1 + 2^-7 is nearer; numpy's float16 takes 1 + 2^-11 + 2^-40 to 1 + 2^-10.
set -euo pipefail
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder" && "$folder/bin/pip" install --quiet ml_dtypes==0.6.0 numpy==2.4.6
"$folder/bin/python" - <<'END'
import ml_dtypes
import numpy as np

seen = {}
for dtype, bits in ((np.float16, 10), (ml_dtypes.bfloat16, 7)):
    x = np.float64(1 + 2.0 ** -(bits + 1) + 2.0**-40)  # just above the middle of 1 and the next number
    seen[np.dtype(dtype).name] = (float(x.astype(dtype)) - 1) * 2**bits
print("1 plus a little more than half a unit in the last place becomes 1 plus so many units:", seen)
assert seen == {"float16": 1.0, "bfloat16": 0.0}, "numpy or ml_dtypes behaves otherwise now"
END
