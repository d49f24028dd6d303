// How bits of a file's blocks become codes: what several block types share.
#pragma once

#include "four_rows.h"
#include "panels.h"

namespace pagoda::blocks {

// Byte i: weights i and i + 16.
inline void unpack_nibbles(const uint8_t *from, uint8_t *q) {
    for (int i = 0; i < 16; ++i) {
        q[i] = from[i] & 15;
        q[i + 16] = from[i] >> 4;
    }
}

// Bit i: the fifth bit of weight i.
inline void unpack_fifth_bits(const uint8_t *from, uint8_t *q) {
    const uint32_t bits = load_u32(from);
    for (int i = 0; i < 32; ++i) q[i] |= static_cast<uint8_t>((bits >> i & 1) << 4);
}

inline void set_both(uint8_t (&halves)[2], int value) { halves[0] = halves[1] = static_cast<uint8_t>(value); }

struct NoTable {
    static constexpr const int8_t *kTable = nullptr;
};

// `block` is where the block begins, `part` which 32 of its weights are wanted.
//
// Where a panel's codes are a matter of moving bits, they are packed without a look at each weight: codes begin kWordsAt bytes
// into a block and take kWords words of 32 bits, arrange() turns those into the panel's vectors for one part, and header() is
// what unpack() does for scales.

// Codes of 32 weights that lie in files as they do in panels.
template <int At, int Words>
struct CopiedCodes {
    static constexpr int kWordsAt = At, kWords = Words;
    template <int>
    static void arrange(const FourRows *w, FourRows *to) {
        for (int i = 0; i < Words; ++i) to[i] = w[i];
    }
};

// Nibbles like that, and before them 32 fifth bits: bit 4 j + b of that word becomes bit j of byte b.
template <int At>
struct NibblesAndFifthBits {
    static constexpr int kWordsAt = At, kWords = 5;
    template <int>
    static void arrange(const FourRows *w, FourRows *to) {
        for (int j = 0; j < 4; ++j) to[j] = w[1 + j];
        FourRows all{};
        for (int j = 0; j < 8; ++j) {
            const FourRows bits = w[0] >> (4 * j) & 15u;
            all |= ((bits | bits << 7 | bits << 14 | bits << 21) & 0x01010101u) << j;
        }
        to[4] = all;
    }
};

}  // namespace pagoda::blocks
