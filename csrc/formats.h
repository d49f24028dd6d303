// The types of weights: their names, their sizes, and how 32 weights of a row unpack. What each type is, is said once, by
// its struct in block_types.h; the functions here look it up.
#pragma once

#include "common.h"

namespace pagoda {

// Types of GGUF files: numbers as they are, and blocks, which lie as ggml's block structs do.
#define PAGODA_FLOAT_TYPES(X) X(F32) X(F16) X(BF16)
#define PAGODA_FILE_BLOCK_TYPES(X) \
    X(Q4_0) X(Q4_1) X(Q5_0) X(Q5_1) X(Q8_0) X(Q2_K) X(Q3_K) X(Q4_K) X(Q5_K) X(Q6_K) X(IQ4_NL) X(IQ4_XS) X(MXFP4) X(TQ1_0) \
    X(TQ2_0) X(IQ1_S) X(IQ1_M) X(IQ2_XXS) X(IQ2_XS) X(IQ2_S) X(IQ3_XXS) X(IQ3_S)
// Grouped types lie in no file: their weights come as codes and float32 scales (and minima) for groups of columns; see
// weights.h.
#define PAGODA_GROUPED_TYPES(X) X(Grouped4) X(Grouped4Min) X(Grouped8) X(Grouped8Min) X(Codebook4) X(Fp4Halves)
#define PAGODA_BLOCK_TYPES(X) PAGODA_FILE_BLOCK_TYPES(X) PAGODA_GROUPED_TYPES(X)
// Grouped types whose codes are floats: they are decoded, and multiplied with activations as they are.
#define PAGODA_DECODED_TYPES(X) X(GroupedFp8)

enum class Type : int {
#define PAGODA_TYPE(name) name,
    PAGODA_FLOAT_TYPES(PAGODA_TYPE) PAGODA_BLOCK_TYPES(PAGODA_TYPE) PAGODA_DECODED_TYPES(PAGODA_TYPE)
#undef PAGODA_TYPE
    Count
};

struct TypeInfo {
    const char *name;
    int elements;           // in one block
    int bytes;              // of one block; 0: in no file
    int scale_at, min_at;   // where a block keeps its f16 scale and its f16 min; -1: it has none of that kind
};

// Of 16 rows; see weights.h.
struct PanelShape {
    int codes;   // bytes for 32 columns
    int scales;  // bytes for 32 columns, or for a group of them
    int super;   // bytes for 256 columns
};

// 32 consecutive weights of a row. Which fields a type fills, and what they mean, its Scales say (panels.h).
struct Block32 {
    uint8_t q[32];     // codes
    uint16_t d;        // f16 scale, of the block or of its super-block
    uint16_t m;        // f16 min, likewise
    uint8_t scale[2];  // bytes of the scales of the two halves (both equal where 32 weights share one)
    uint8_t min[2];    // bytes of the minima of the two halves
};

struct TypeTraits {
    TypeInfo info;
    PanelShape shape;
    bool has_mins;
    int halves;  // of 32 columns that have scales of their own
    int code_bits;
    const int8_t *table;  // what 16 codes stand for; null: the codes are numbers
    // Unpacks block `index` (of 32 weights) of the row at `row`. Null for types without blocks in files, as are the others.
    void (*unpack)(const uint8_t *row, int64_t index, Block32 &out);
    void (*decode)(const Block32 &block, float *out);  // 32 weights
};

const TypeTraits &traits(Type t);
inline const TypeInfo &info(Type t) { return traits(t).info; }
inline bool is_float(Type t) { return info(t).elements == 1; }
inline bool is_grouped(Type t) { return info(t).bytes == 0; }

// Throws std::invalid_argument for a name that is not in the table.
Type type_from_name(const char *name);
Type file_type_from_name(const char *name);  // nor for grouped types

inline int64_t row_bytes(Type t, int64_t columns) { return columns / info(t).elements * info(t).bytes; }

// The plain decoder: `columns` weights of one row as float.
void dequantize_row(Type type, const uint8_t *row, int64_t columns, float *out);

}  // namespace pagoda
