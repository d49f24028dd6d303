// The kernels of one instruction set, as a table of functions. Every entry has the same meaning in every table, and
// computes each output from its own row alone, in an order that depends on shapes and positions only: results do
// not change with the batch.
#pragma once

#include "weights.h"

namespace pagoda {

// ClampedSwiglu: of gate and up, see kernels_rows.inl.
enum class Activation : int { Silu, GeluTanh, Gelu, Relu2, Sigmoid, ClampedSwiglu };
enum class KVType : int { F32, F16, BF16, Int16, Int8 };

// Activations of a number of tokens as codes, whose products are exact integers, so that no order of theirs shows.
// Of 16 bits: value = scale * code. Of 8 bits: value = scale * factor * code, with a whole factor for 32 columns; half the
// work where products of bytes are what the machine does best, but small models then change one next token in thirty.
struct Quantized {
    uint8_t *q;        // [T][K / 4][8 or 4]: quads of columns, each in the order that the instruction set's dot product takes
    int32_t *sum32;    // [T][K / 32] sum of 32 codes, for codes with an offset
    int32_t *sum16;    // [T][K / 16]
    float *float32;    // the same as floats, times the factor, for types with mins
    float *float16;
    uint32_t *factor;  // [T][K / 32] of 8-bit codes, as the instruction set multiplies by it
    float *scale;      // [T]
    int64_t k;         // columns

    static int64_t bytes_per_token(int64_t k, int bits) { return bits / 8 * k + k / 32 * 28 + 4; }
    // The arrays for `tokens` tokens, one after the other from `memory` (64-byte aligned).
    static Quantized at(uint8_t *memory, int64_t tokens, int64_t k, int bits) {
        Quantized a;
        a.k = k;
        a.q = memory;
        a.sum32 = reinterpret_cast<int32_t *>(memory + tokens * (bits / 8) * k);
        a.sum16 = a.sum32 + tokens * (k / 32);
        a.float32 = reinterpret_cast<float *>(a.sum16 + tokens * (k / 16));
        a.float16 = a.float32 + tokens * (k / 32);
        a.factor = reinterpret_cast<uint32_t *>(a.float16 + tokens * (k / 16));
        a.scale = reinterpret_cast<float *>(a.factor + tokens * (k / 32));
        return a;
    }
};
constexpr float kLargestCode = 127 * 256;  // of 16 bits: 256 high + low with both in int8
constexpr int kLargestByte = 127;
constexpr int kLargestFactor = 16383;      // so that 32 products of bytes and 5-bit codes, times it, fit in 32 bits

struct GemmArgs {
    const Weight *weight;
    int64_t panel_begin, panel_end;
    int64_t token_begin, token_end;
    Quantized act;        // for block types, of the bits that the kernel takes
    const float *x;       // for float types: [T][x_stride], padded with zeros to blocks * 32
    int64_t x_stride;
    float *out;           // [T][out_stride]; columns up to panels * 16 are written
    int64_t out_stride;
    const float *bias;    // [panels * 16] or null
    bool accumulate;      // out += result
    float scale;          // result *= scale, before accumulate; 1 for most
    uint8_t *scratch;     // kGemmScratch bytes, 64-byte aligned, this thread's own
};
constexpr size_t kGemmScratch = 1024 * 1024;

constexpr int kAttendChunk = 256;   // keys that one softmax pass covers, at fixed positions

struct AttendArgs {
    // Queries: `tokens` consecutive tokens of one sequence, the first at position `position`, `group` query heads
    // that share KV head `kv_head`.
    const float *q;       // first token's first head of the group
    int64_t q_stride;     // between tokens
    float *out;           // as q
    int64_t out_stride;
    int tokens, position, group, head_dim;
    float scale, softcap;  // softcap 0: none
    const float *sinks;    // [group]: a score of each head's own that counts in its softmax and has no value; null: none
    int window;            // 0: none
    int keys;              // that are looked at: from position 0, for all tokens together
    bool causal;           // each token sees those up to its own position alone
    // Keys and values: block b of the sequence is at kv + table[b] * block_stride.
    const uint8_t *kv;
    const int32_t *table;
    int64_t block_stride;
    int64_t k_offset, v_offset;            // of this layer and head in a block
    int64_t k_scale_offset, v_scale_offset;  // of types with scales
    KVType type;
    uint8_t *scratch;      // kAttendScratch bytes, 64-byte aligned
    // Where `part` is set, only the keys of this chunk are looked at, and what they add goes there.
    int chunk;
    float *part;           // attend_part_floats(tokens * group, head_dim)
    // The first keys that the next call will want, to be read ahead: of so many blocks, or of none.
    const uint8_t *next_keys;
    const int32_t *next_table;
    int next_blocks;

    int first_chunk() const { return window > 0 && position >= window ? (position - window + 1) / kAttendChunk : 0; }
    int last_chunk() const { return (keys - 1) / kAttendChunk; }
};
constexpr int64_t attend_part_floats(int64_t rows, int64_t head_dim) { return rows * (round_up(head_dim, 16) + 2); }

constexpr int kAttendRows = 24;     // query rows (tokens * group) of one call at most
constexpr int kMaxHeadDim = 640;  // latent attention keeps 576 numbers
constexpr size_t kAttendScratch =
    sizeof(float) * (kAttendRows * (kMaxHeadDim * 3 + kAttendChunk * 3 / 2 + 64) + 2 * kAttendChunk) + 4096;

struct Kernels {
    const char *name;
    void (*quantize)(const float *x, int64_t n, const Quantized &to, int64_t token);   // to 16 bits
    void (*quantize8)(const float *x, int64_t n, const Quantized &to, int64_t token);  // to 8
    // out may be x. weight [n].
    void (*rms_norm)(const float *x, const float *weight, float eps, int64_t n, float *out);
    // (x - mean) / sqrt(variance + eps) * weight + bias; out may be x. weight, bias [n].
    void (*layer_norm)(const float *x, const float *weight, const float *bias, float eps, int64_t n, float *out);
    void (*activated)(const float *x, Activation kind, int64_t n, float *out);  // out may be x
    void (*gated)(const float *gate, const float *up, Activation kind, int64_t n, float *out);
    void (*add)(float *x, const float *y, int64_t n);
    // Rotates pairs of one head; turn holds rotary_dim cosines, an element each, then the sines that the element's partner
    // is multiplied by.
    void (*rope)(float *x, const float *turn, int rotary_dim, bool neox);
    // Stores one token of one KV head at `slot` of a block.
    void (*store_kv)(const float *k, const float *v, int head_dim, int slot, KVType type, uint8_t *k_to,
                     uint8_t *v_to, float *k_scale, float *v_scale);
    void (*attend)(const AttendArgs &);
    // The rows of all chunks from their parts, chunk c at parts + c * attend_part_floats(…).
    void (*merge_attended)(const AttendArgs &, const float *parts);
    void (*gemm[static_cast<int>(Type::Count)])(const GemmArgs &);
    void (*gemm8[static_cast<int>(Type::Count)])(const GemmArgs &);  // null where 8 bits are no faster than 16
    // The weights of a panel's 16 rows as numbers, [columns][16].
    void (*unpack[static_cast<int>(Type::Count)])(const Weight &, int64_t panel, float *out);
    // Such rows as bfloat16, row i at out[i * stride].
    void (*to_bfloat)(const float *rows, int64_t n, uint16_t *out, int64_t stride);
    // What keeps a part of a core as busy as it can be; each returns something that depends on all it did. In
    // registers, kBurstOperations integer operations a round, and fp32_operations of floats:
    int32_t (*int8_burst)(int64_t rounds);
    float (*fp32_burst)(int64_t rounds);
    int64_t fp32_operations;
    // Reads `bytes`, a multiple of 256, with the widest loads.
    uint64_t (*read_burst)(const uint8_t *data, size_t bytes);
    // As gemm, of floats rounded to bfloat16 with 16-bit float weights; null where that is no faster.
    void (*gemm_bf16[static_cast<int>(Type::Count)])(const GemmArgs &);
};
constexpr int64_t kBurstOperations = 4 * 8 * 64 * 2;  // 4 tokens, 8 quads of 16 rows, multiply and add

const Kernels *kernels_generic();
const Kernels *kernels_avx2();    // null where not compiled in
const Kernels *kernels_avx512();
const Kernels *kernels_neon();

// The names of the instruction sets that this binary carries and this machine runs, best first.
std::vector<const Kernels *> available_kernels();

}  // namespace pagoda
