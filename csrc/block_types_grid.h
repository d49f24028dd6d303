// Block types IQ1 to IQ3. They take their weights, eight or four at a time, from the points of a grid. A code in a panel is
// a coordinate's number with a sign above it, so that no grid is needed to multiply.
#pragma once

#include <bit>

#include "block_bits.h"
#include "grids.h"

namespace pagoda::blocks {

// Writes 8 weights: coordinates of 2 bits, bit i of `signs` the sign of weight i.
inline void put_point(uint16_t point, int signs, uint8_t *q) {
    for (int i = 0; i < 8; ++i) q[i] = static_cast<uint8_t>((point >> (2 * i) & 3) | (signs >> i & 1) << 2);
}
// The same of 3 bits, with two points of four weights.
inline void put_points(uint16_t first, uint16_t second, int signs, uint8_t *q) {
    for (int i = 0; i < 8; ++i)
        q[i] = static_cast<uint8_t>(((i < 4 ? first : second) >> (3 * (i % 4)) & 7) | (signs >> i & 1) << 3);
}
// Seven signs, and an eighth that makes the number of minuses even.
inline int even_signs(uint32_t seven) { return static_cast<int>(seven | (std::popcount(seven) & 1) << 7); }
inline int odd(int scale) { return 2 * scale + 1; }

constexpr int8_t kIq2Values[16] = {8, 25, 43, 0, -8, -25, -43};
constexpr int8_t kIq1Values[16] = {-7, 1, 9, 0, -9, -1, 7};  // eighths: -1, 0 or 1, an eighth more or less
constexpr int8_t kIq3XxsValues[16] = {8, 24, 40, 56, 72, 88, 104, 124, -8, -24, -40, -56, -72, -88, -104, -124};
constexpr int8_t kIq3Values[16] = {1, 3, 5, 7, 9, 11, 13, 15, -1, -3, -5, -7, -9, -11, -13, -15};

struct IQ2_XXS {
    static constexpr TypeInfo kInfo{"IQ2_XXS", 256, 66, 0, -1};
    static constexpr const int8_t *kTable = kIq2Values;
    using Codes = TableCodes<3>;
    using Scales = SuperSigned<1, 3>;
    static void unpack(const uint8_t *block, int part, Block32 &o) {
        const uint8_t *points = block + 2 + 8 * part;
        const uint32_t rest = load_u32(points + 4);
        o.d = load_u16(block);
        set_both(o.scale, odd(static_cast<int>(rest >> 28)));
        for (int i = 0; i < 4; ++i) put_point(kGridIQ2_XXS[points[i]], even_signs(rest >> (7 * i) & 127), o.q + 8 * i);
    }
};

// The scales of two halves in the nibbles of a byte.
inline void set_odd_scales(Block32 &o, uint8_t nibbles) {
    o.scale[0] = static_cast<uint8_t>(odd(nibbles & 15));
    o.scale[1] = static_cast<uint8_t>(odd(nibbles >> 4));
}

struct IQ2_XS {
    static constexpr TypeInfo kInfo{"IQ2_XS", 256, 74, 0, -1};
    static constexpr const int8_t *kTable = kIq2Values;
    using Codes = TableCodes<3>;
    using Scales = SuperSigned<2, 3>;
    static void unpack(const uint8_t *block, int part, Block32 &o) {
        o.d = load_u16(block);
        set_odd_scales(o, block[66 + part]);
        for (int i = 0; i < 4; ++i) {
            const uint16_t point = load_u16(block + 2 + 8 * part + 2 * i);
            put_point(kGridIQ2_XS[point & 511], even_signs(point >> 9), o.q + 8 * i);
        }
    }
};

struct IQ2_S {
    static constexpr TypeInfo kInfo{"IQ2_S", 256, 82, 0, -1};
    static constexpr const int8_t *kTable = kIq2Values;
    using Codes = TableCodes<3>;
    using Scales = SuperSigned<2, 3>;
    static void unpack(const uint8_t *block, int part, Block32 &o) {
        const uint8_t *low = block + 2 + 4 * part, *signs = low + 32;
        const int high = block[66 + part];
        o.d = load_u16(block);
        set_odd_scales(o, block[74 + part]);
        for (int i = 0; i < 4; ++i) put_point(kGridIQ2_S[low[i] | (high >> (2 * i) & 3) << 8], signs[i], o.q + 8 * i);
    }
};

struct IQ3_XXS {
    static constexpr TypeInfo kInfo{"IQ3_XXS", 256, 98, 0, -1};
    static constexpr const int8_t *kTable = kIq3XxsValues;
    using Codes = TableCodes<4>;
    using Scales = SuperSigned<1, 3>;
    static void unpack(const uint8_t *block, int part, Block32 &o) {
        const uint8_t *points = block + 2 + 8 * part;
        const uint32_t rest = load_u32(block + 66 + 4 * part);
        o.d = load_u16(block);
        set_both(o.scale, odd(static_cast<int>(rest >> 28)));
        for (int i = 0; i < 4; ++i)
            put_points(kGridIQ3_XXS[points[2 * i]], kGridIQ3_XXS[points[2 * i + 1]], even_signs(rest >> (7 * i) & 127),
                       o.q + 8 * i);
    }
};

struct IQ3_S {
    static constexpr TypeInfo kInfo{"IQ3_S", 256, 110, 0, -1};
    static constexpr const int8_t *kTable = kIq3Values;
    using Codes = TableCodes<4>;
    using Scales = SuperSigned<1>;
    static void unpack(const uint8_t *block, int part, Block32 &o) {
        const uint8_t *low = block + 2 + 8 * part, *signs = block + 74 + 4 * part;
        const int high = block[66 + part];
        const auto point = [&](int i) { return kGridIQ3_S[low[i] | (high >> i & 1) << 8]; };
        o.d = load_u16(block);
        set_both(o.scale, odd(block[106 + part / 2] >> (4 * (part % 2)) & 15));
        for (int i = 0; i < 4; ++i) put_points(point(2 * i), point(2 * i + 1), signs[i], o.q + 8 * i);
    }
};

struct IQ1_S {
    static constexpr TypeInfo kInfo{"IQ1_S", 256, 50, 0, -1};
    static constexpr const int8_t *kTable = kIq1Values;
    using Codes = TableCodes<3>;
    using Scales = SuperSigned<1, 3>;
    static void unpack(const uint8_t *block, int part, Block32 &o) {
        const uint8_t *low = block + 2 + 4 * part;
        const int high = load_u16(block + 34 + 2 * part);
        o.d = load_u16(block);
        set_both(o.scale, odd(high >> 12 & 7));
        for (int i = 0; i < 4; ++i) put_point(kGridIQ1[low[i] | (high >> (3 * i) & 7) << 8], high >> 15 ? 255 : 0, o.q + 8 * i);
    }
};

struct IQ1_M {  // its f16 d stands in the top bits of four words of scales
    static constexpr TypeInfo kInfo{"IQ1_M", 256, 56, -1, -1};
    static constexpr const int8_t *kTable = kIq1Values;
    using Codes = TableCodes<3>;
    using Scales = SuperSigned<2, 3>;
    static void unpack(const uint8_t *block, int part, Block32 &o) {
        const uint8_t *low = block + 4 * part, *high = block + 32 + 2 * part, *scales = block + 48;
        o.d = 0;
        for (int i = 0; i < 4; ++i) o.d = static_cast<uint16_t>(o.d | (load_u16(scales + 2 * i) >> 12) << (4 * i));
        for (int h = 0; h < 2; ++h)
            o.scale[h] = static_cast<uint8_t>(odd(load_u16(scales + 2 * (part / 2)) >> (6 * (part % 2) + 3 * h) & 7));
        for (int i = 0; i < 4; ++i) {
            const int nibble = high[i / 2] >> (4 * (i % 2)) & 15;
            put_point(kGridIQ1[low[i] | (nibble & 7) << 8], nibble >> 3 ? 255 : 0, o.q + 8 * i);
        }
    }
};

}  // namespace pagoda::blocks
