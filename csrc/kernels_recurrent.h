// Kernels of ops with a state: short convolutions, the gated delta rule and the selective scan. A table of functions for
// each instruction set, apart from `Kernels`, with its law: a sequence's numbers come from its own tokens alone, one after
// the other, so they do not depend on how a prompt is cut into steps.
#pragma once

#include <cstdint>

namespace pagoda {

constexpr int64_t kConvTaps = 8;       // of a convolution at most
constexpr int64_t kStateColumns = 32;  // of a state that lie together, and are worked on at a time

// Some columns of one token: out = bias + the sum of rows[i] * taps[i], or, with `silu`, that of it.
struct ConvArgs {
    const float *rows[kConvTaps];  // the token's row last, before it those of earlier tokens
    const float *taps;             // [count][taps_stride]
    const float *bias;             // [columns], or null
    int64_t count, taps_stride;
    int64_t columns;               // a multiple of 16
    bool silu;
    float *out;
};

// `columns` columns of one head's state, over `tokens` tokens.
struct DeltaArgs {
    float *state;                       // [k_dim][columns]
    int64_t k_dim, columns;             // multiples of 16; kStateColumns at most
    int64_t tokens;
    const float *q, *k;                 // [tokens][k_dim]
    const float *v;                     // [tokens][v_stride]
    int64_t v_stride;
    const float *left, *beta, *qk;      // [tokens] what is left of the state, how much is written; q times k
    float *out;                         // [tokens][out_stride]
    int64_t out_stride;
};

// `columns` columns of one head's state of a selective scan, over `tokens` tokens: state = left * state + b (dt x)^T, and
// then out = state^T c + skip * x.
struct ScanArgs {
    float *state;               // [state_dim][columns]
    int64_t state_dim, columns;  // multiples of 16; kStateColumns at most
    int64_t tokens;
    const float *x, *b, *c;     // [tokens][stride]
    int64_t stride;
    const float *left, *dt;     // [tokens] what is left of the state, how long a step is
    float skip;
    float *out;                 // [tokens][out_stride]
    int64_t out_stride;
};

struct RecurrentKernels {
    void (*short_conv)(const ConvArgs &);
    // out = x * scale / sqrt(sum of squares + 1e-6); n a multiple of 16.
    void (*unit)(const float *x, float scale, int64_t n, float *out);
    float (*dot)(const float *a, const float *b, int64_t n);
    void (*delta)(const DeltaArgs &);
    void (*scan)(const ScanArgs &);
};

// Of the instruction set called so, which this machine runs.
const RecurrentKernels &recurrent_kernels(const char *isa);

const RecurrentKernels *recurrent_kernels_generic();
const RecurrentKernels *recurrent_kernels_avx2();
const RecurrentKernels *recurrent_kernels_avx512();
const RecurrentKernels *recurrent_kernels_neon();

}  // namespace pagoda
