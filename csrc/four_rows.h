// Words of 32 bits of four rows side by side: what packing works on. Vectors are the compiler's own, of the size that every
// processor has.
#pragma once

#include "common.h"

namespace pagoda {

typedef uint32_t FourRows __attribute__((vector_size(16)));

PAGODA_INLINE FourRows load_words(const uint8_t *from) {
    FourRows x;
    std::memcpy(&x, from, 16);
    return x;
}

// Lanes 0 … 3 of a and 4 … 7 of b.
#if defined(__clang__)
#define PAGODA_LANES(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define PAGODA_LANES(a, b, ...) __builtin_shuffle(a, b, FourRows{__VA_ARGS__})
#endif

// to[k] = word k of each of the four rows at row[…] + at.
template <int Words>
PAGODA_INLINE void transpose(const uint8_t *const (&row)[4], int64_t at, FourRows *to) {
    constexpr int kWhole = Words / 4 * 4;
    for (int k = 0; k < kWhole; k += 4, at += 16, to += 4) {
        const FourRows a = load_words(row[0] + at), b = load_words(row[1] + at);
        const FourRows c = load_words(row[2] + at), d = load_words(row[3] + at);
        const FourRows ab0 = PAGODA_LANES(a, b, 0, 4, 1, 5), ab1 = PAGODA_LANES(a, b, 2, 6, 3, 7);
        const FourRows cd0 = PAGODA_LANES(c, d, 0, 4, 1, 5), cd1 = PAGODA_LANES(c, d, 2, 6, 3, 7);
        to[0] = PAGODA_LANES(ab0, cd0, 0, 1, 4, 5);
        to[1] = PAGODA_LANES(ab0, cd0, 2, 3, 6, 7);
        to[2] = PAGODA_LANES(ab1, cd1, 0, 1, 4, 5);
        to[3] = PAGODA_LANES(ab1, cd1, 2, 3, 6, 7);
    }
    for (int k = kWhole; k < Words; ++k, at += 4, ++to)
        *to = FourRows{load_u32(row[0] + at), load_u32(row[1] + at), load_u32(row[2] + at), load_u32(row[3] + at)};
}

#undef PAGODA_LANES

// Vectors of a panel's codes (weights.h) out of the eight quads of 32 columns, whose codes begin `Shift` bits up in each byte.

// Four vectors of nibbles.
template <int Shift>
PAGODA_INLINE void arrange_nibbles(const FourRows *quads, FourRows *to) {
    for (int j = 0; j < 4; ++j) {
        if constexpr (Shift == 0) to[j] = (quads[j] & 0x0f0f0f0fu) | (quads[j + 4] & 0x0f0f0f0fu) << 4;
        else to[j] = (quads[j] >> 4 & 0x0f0f0f0fu) | (quads[j + 4] & 0xf0f0f0f0u);
    }
}

// Two vectors of two bits, four quads each.
template <int Shift>
PAGODA_INLINE void arrange_pairs(const FourRows *quads, FourRows *to) {
    for (int half = 0; half < 2; ++half, quads += 4) {
        to[half] = quads[0] >> Shift & 0x03030303u;
        for (int j = 1; j < 4; ++j) to[half] |= (quads[j] >> Shift & 0x03030303u) << (2 * j);
    }
}

// A vector of single bits.
template <int Shift>
PAGODA_INLINE void arrange_bits(const FourRows *quads, FourRows *to) {
    *to = quads[0] >> Shift & 0x01010101u;
    for (int j = 1; j < 8; ++j) *to |= (quads[j] >> Shift & 0x01010101u) << j;
}

// All of them, of codes of `Bits` bits in a byte each.
template <int Bits>
PAGODA_INLINE void arrange_codes(const FourRows *quads, FourRows *to) {
    if constexpr (Bits == 8) {
        for (int j = 0; j < 8; ++j) to[j] = quads[j];
    } else if constexpr (Bits < 4) {
        arrange_pairs<0>(quads, to);
        if constexpr (Bits == 3) arrange_bits<2>(quads, to + 2);
    } else {
        arrange_nibbles<0>(quads, to);
        if constexpr (Bits == 5) arrange_bits<4>(quads, to + 4);
        if constexpr (Bits == 6) arrange_pairs<4>(quads, to + 4);
    }
}

}  // namespace pagoda
