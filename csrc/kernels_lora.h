// The products of adapters: a factor times some of a step's tokens; see adapter.h. A table of functions for each
// instruction set, apart from `Kernels`, with its law: each output comes from its own row alone.
#pragma once

#include <cstdint>

namespace pagoda {

struct LoraArgs {
    const uint8_t *weights;  // A [rank][columns], or B [panels][rank][16]
    bool halves;             // bfloat16, else float32
    int64_t rank, columns;   // columns of A, a multiple of 16
    int64_t begin, end;      // ranks of A, or panels of B
    const int32_t *tokens;
    int64_t count;           // of tokens
    const float *x;          // [T][x_stride], zero beyond the weight's columns: what A reads
    int64_t x_stride;
    float *hidden;           // [T][hidden_stride]: what A makes and B reads
    int64_t hidden_stride;
    float *out;              // [T][out_stride]: what B adds to
    int64_t out_stride;
    const float *bias;       // [panels * 16] that is added, too; or null
};

struct LoraKernels {
    void (*shrink)(const LoraArgs &);  // hidden = A x
    void (*expand)(const LoraArgs &);  // out += B hidden + bias
};

// Of the instruction set called so, which this machine runs.
const LoraKernels &lora_kernels(const char *isa);

const LoraKernels *lora_kernels_generic();
const LoraKernels *lora_kernels_avx2();
const LoraKernels *lora_kernels_avx512();
const LoraKernels *lora_kernels_neon();

}  // namespace pagoda
