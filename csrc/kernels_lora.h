// The products of adapters: a factor times some of a step's tokens; see adapter.h. A table of functions for each
// instruction set, apart from `Kernels`, with its law: each output comes from its own row alone.
#pragma once

#include <cstdint>

namespace pagoda {

// What the numbers of factors are: bytes have a scale for each row of A, and for each row of B.
enum class LoraType : int { F32, BF16, Int8 };
constexpr int64_t lora_element_bytes(LoraType t) { return t == LoraType::F32 ? 4 : t == LoraType::BF16 ? 2 : 1; }

constexpr int64_t kLoraRanks = 8;  // ranks that lie together in A
// Ranks of B as they lie in memory: bytes are multiplied two ranks at a time.
constexpr int64_t lora_b_ranks(LoraType t, int64_t rank) { return t == LoraType::Int8 ? (rank + 1) / 2 * 2 : rank; }

struct LoraArgs {
    // A is [rank / 8][columns / 16][8][16], the last ranks fewer than 8; B is [panels][rank][16], and of bytes
    // [panels][rank / 2][16][2].
    const uint8_t *weights;
    const float *scales;     // of bytes: [rank], or [panels * 16]
    LoraType type;
    int64_t rank, columns;   // columns of A, a multiple of 16
    int64_t begin, end;      // ranks of A, 8 or the last ones; or panels of B
    const int32_t *tokens;
    int64_t count;           // of tokens
    const float *x;          // [T][x_stride], zero beyond the weight's columns: what A reads
    int64_t x_stride;
    float *hidden;           // [T][hidden_stride]: what A makes and B reads
    int64_t hidden_stride;
    float *out;              // [T][out_stride]: what B adds to
    int64_t out_stride;
    const float *bias;       // [panels * 16] that is added, too; or null
    const float *row_scale;  // [panels * 16] of what the product has made of out, or null
    const float *before;     // [T][before_stride] what out was before the product was added to it; null: the product alone
    int64_t before_stride;
};

struct LoraKernels {
    void (*shrink)(const LoraArgs &);  // hidden = A x
    void (*expand)(const LoraArgs &);  // out = before + row_scale * (out - before) + B hidden + bias
};

// Of the instruction set called so, which this machine runs.
const LoraKernels &lora_kernels(const char *isa);

const LoraKernels *lora_kernels_generic();
const LoraKernels *lora_kernels_avx2();
const LoraKernels *lora_kernels_avx512();
const LoraKernels *lora_kernels_neon();

}  // namespace pagoda
