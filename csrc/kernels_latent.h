// Attention to one vector a token, as latent attention keeps it: the vector is the key, and its columns from one on are the
// value.
//
// A block keeps such vectors as values of `kernels.h` are kept: [16 tokens][head_dim], codes of 16 bits as
// [8 pairs of tokens][head_dim][2]; then, of types that are codes, a scale a token. head_dim is a multiple of 16.
#pragma once

#include "kernels.h"

namespace pagoda {

// As AttendArgs, of which v_offset, k_scale_offset and v_scale_offset follow from k_offset. Out has head_dim - values_from
// numbers a head.
struct LatentArgs : AttendArgs {
    int values_from;  // which column of the vector is the first of its value
};

struct LatentKernels {
    // Stores one token of one head at `slot` of a block.
    void (*store)(const float *x, int head_dim, int slot, KVType type, uint8_t *to, float *scales);
    void (*attend)(const LatentArgs &);
    void (*merge_attended)(const LatentArgs &, const float *parts);
};

// Of the instruction set called so, which this machine runs.
const LatentKernels &latent_kernels(const char *isa);

const LatentKernels *latent_kernels_generic();
const LatentKernels *latent_kernels_avx2();
const LatentKernels *latent_kernels_avx512();
const LatentKernels *latent_kernels_neon();

}  // namespace pagoda
