// GGUF block formats: sizes, and how 32 weights of a row unpack. Layouts as in ggml's block structs. The grouped types
// lie in no file: their weights come as codes and float32 scales (and minima) for groups of columns; see weights.h.
#pragma once

#include "common.h"

namespace pagoda {

enum class Type : int {
    F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS,
    Grouped4, Grouped4Min, Grouped8, Grouped8Min, Codebook4, Count
};

struct TypeInfo {
    const char *name;
    int elements;  // in one block
    int bytes;     // of one block
};

constexpr TypeInfo kTypes[static_cast<int>(Type::Count)] = {
    {"F32", 1, 4},     {"F16", 1, 2},     {"BF16", 1, 2},    {"Q4_0", 32, 18},  {"Q4_1", 32, 20},
    {"Q5_0", 32, 22},  {"Q5_1", 32, 24},  {"Q8_0", 32, 34},  {"Q2_K", 256, 84}, {"Q3_K", 256, 110},
    {"Q4_K", 256, 144}, {"Q5_K", 256, 176}, {"Q6_K", 256, 210}, {"IQ4_NL", 32, 18}, {"IQ4_XS", 256, 136},
    {"grouped4", 32, 0}, {"grouped4_min", 32, 0}, {"grouped8", 32, 0}, {"grouped8_min", 32, 0}, {"codebook4", 32, 0},
};

constexpr const TypeInfo &info(Type t) { return kTypes[static_cast<int>(t)]; }
constexpr bool is_float(Type t) { return t == Type::F32 || t == Type::F16 || t == Type::BF16; }

constexpr bool is_grouped(Type t) { return t >= Type::Grouped4 && t < Type::Count; }
constexpr bool has_group_mins(Type t) { return t == Type::Grouped4Min || t == Type::Grouped8Min; }

// Throws std::invalid_argument for a name that is not in the table.
Type type_from_name(const char *name);
Type file_type_from_name(const char *name);  // nor for grouped types

inline int64_t row_bytes(Type t, int64_t columns) { return columns / info(t).elements * info(t).bytes; }

// The 16 values that a 4-bit code of IQ4_NL and IQ4_XS stands for.
constexpr int8_t kIq4Values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

// 32 consecutive weights of a row. Weight i is scale(i) * (q[i] - offset) - min(i), with one or two scales a block.
struct Block32 {
    uint8_t q[32];      // codes, unsigned; for Q8_0 the signed byte as it stands
    uint16_t d;         // f16 scale, of the block or of its super-block
    uint16_t m;         // f16 min (Q4_1, Q5_1: added) or super-block min scale (Q2_K, Q4_K, Q5_K: subtracted)
    int8_t scale[2];    // integer scales of the two halves (both equal where 32 weights share one)
    uint8_t min[2];     // integer mins of the two halves
};

// Unpacks block `index` (of 32 weights) of the row at `row`.
void unpack32(Type type, const uint8_t *row, int64_t index, Block32 &out);

// The plain decoder: `columns` weights of one row as float.
void dequantize_row(Type type, const uint8_t *row, int64_t columns, float *out);

}  // namespace pagoda
