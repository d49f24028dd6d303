// Encoders: float32 rows to GGUF blocks, the inverse of formats.h. Results are the same on every instruction set and for
// any number of threads: 16 groups of weights lie side by side in the lanes, and each lane is computed for itself.
#pragma once

#include "formats.h"

namespace pagoda {

// Writes the blocks of `rows` rows of `columns` numbers to `out`. `importance` weighs the squared error of each column
// (nullptr: encoders choose); of types that cannot use it, it is ignored. Numbers must be finite.
using EncodeFn = void (*)(Type type, const float *x, const float *importance, int64_t rows, int64_t columns, uint8_t *out);

EncodeFn encode_generic();
EncodeFn encode_avx2();
EncodeFn encode_avx512();
EncodeFn encode_neon();

}  // namespace pagoda
