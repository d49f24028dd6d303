// One struct a block type: its name and sizes, the layouts of its panels, and how 32 of its weights unpack from a file.
// Layouts in files are those of ggml's block structs. Types whose weights are points of a grid are in block_types_grid.h.
#pragma once

#include "block_bits.h"
#include "block_types_grid.h"

namespace pagoda::blocks {

struct Q4_0 : NoTable, CopiedCodes<2, 4> {
    static constexpr TypeInfo kInfo{"Q4_0", 32, 18, 0, -1};
    using Codes = UnsignedCodes<4, 8>;
    using Scales = HalfScale;
    static void header(const uint8_t *block, int, Block32 &o) {
        o.d = load_u16(block);
    }
    static void unpack(const uint8_t *block, int part, Block32 &o) {
        header(block, part, o);
        unpack_nibbles(block + 2, o.q);
    }
};

struct Q4_1 : NoTable, CopiedCodes<4, 4> {
    static constexpr TypeInfo kInfo{"Q4_1", 32, 20, 0, 2};
    using Codes = UnsignedCodes<4>;
    using Scales = HalfScaleMin;
    static void header(const uint8_t *block, int, Block32 &o) {
        o.d = load_u16(block);
        o.m = load_u16(block + 2);
    }
    static void unpack(const uint8_t *block, int part, Block32 &o) {
        header(block, part, o);
        unpack_nibbles(block + 4, o.q);
    }
};

struct Q5_0 : NoTable, NibblesAndFifthBits<2> {
    static constexpr TypeInfo kInfo{"Q5_0", 32, 22, 0, -1};
    using Codes = UnsignedCodes<5, 16>;
    using Scales = HalfScale;
    static void header(const uint8_t *block, int, Block32 &o) {
        o.d = load_u16(block);
    }
    static void unpack(const uint8_t *block, int part, Block32 &o) {
        header(block, part, o);
        unpack_nibbles(block + 6, o.q);
        unpack_fifth_bits(block + 2, o.q);
    }
};

struct Q5_1 : NoTable, NibblesAndFifthBits<4> {
    static constexpr TypeInfo kInfo{"Q5_1", 32, 24, 0, 2};
    using Codes = UnsignedCodes<5>;
    using Scales = HalfScaleMin;
    static void header(const uint8_t *block, int, Block32 &o) {
        o.d = load_u16(block);
        o.m = load_u16(block + 2);
    }
    static void unpack(const uint8_t *block, int part, Block32 &o) {
        header(block, part, o);
        unpack_nibbles(block + 8, o.q);
        unpack_fifth_bits(block + 4, o.q);
    }
};

struct Q8_0 : NoTable, CopiedCodes<2, 8> {
    static constexpr TypeInfo kInfo{"Q8_0", 32, 34, 0, -1};
    using Codes = SignedBytes;
    using Scales = HalfScale;
    static void header(const uint8_t *block, int, Block32 &o) {
        o.d = load_u16(block);
    }
    static void unpack(const uint8_t *block, int part, Block32 &o) {
        header(block, part, o);
        std::memcpy(o.q, block + 2, 32);
    }
};

struct Q2_K : NoTable {
    static constexpr TypeInfo kInfo{"Q2_K", 256, 84, 80, 82};
    using Codes = UnsignedCodes<2>;
    using Scales = SuperNibblesMin;
    static void header(const uint8_t *block, int part, Block32 &o) {
        for (int h = 0; h < 2; ++h) {
            o.scale[h] = block[2 * part + h] & 15;
            o.min[h] = block[2 * part + h] >> 4;
        }
        o.d = load_u16(block + 80);
        o.m = load_u16(block + 82);
    }
    static void unpack(const uint8_t *block, int part, Block32 &o) {
        header(block, part, o);
        const uint8_t *qs = block + 16 + 32 * (part / 4);
        for (int i = 0; i < 32; ++i) o.q[i] = qs[i] >> (2 * (part % 4)) & 3;
    }
    static constexpr int kWordsAt = 16, kWords = 16;
    template <int Part>
    static void arrange(const FourRows *w, FourRows *to) { arrange_pairs<2 * (Part % 4)>(w + 8 * (Part / 4), to); }
};

struct Q3_K : NoTable {
    static constexpr TypeInfo kInfo{"Q3_K", 256, 110, 108, -1};
    using Codes = UnsignedCodes<3, 4>;
    using Scales = SuperSigned<2>;
    // 6-bit scale of 16 weights: four low bits in s[0..7], two high ones in s[8..11].
    static uint8_t scale_of(const uint8_t *s, int j) {
        const int low = j < 8 ? s[j] & 15 : s[j - 8] >> 4;
        const int high = s[8 + j % 4] >> (2 * (j / 4)) & 3;
        return static_cast<uint8_t>((low | high << 4) - 32);
    }
    static void header(const uint8_t *block, int part, Block32 &o) {
        for (int h = 0; h < 2; ++h) o.scale[h] = scale_of(block + 96, 2 * part + h);
        o.d = load_u16(block + 108);
    }
    static void unpack(const uint8_t *block, int part, Block32 &o) {
        header(block, part, o);
        const uint8_t *high = block, *low = block + 32 + 32 * (part / 4);
        for (int i = 0; i < 32; ++i)
            o.q[i] = static_cast<uint8_t>((low[i] >> (2 * (part % 4)) & 3) | (high[i] >> part & 1) << 2);
    }
    static constexpr int kWordsAt = 0, kWords = 24;
    template <int Part>
    static void arrange(const FourRows *w, FourRows *to) {
        arrange_pairs<2 * (Part % 4)>(w + 8 + 8 * (Part / 4), to);
        arrange_bits<Part>(w, to + 2);
    }
};

// The header that Q4_K and Q5_K share: d, dmin, and 6-bit scales and minima of eight groups in 12 bytes.
struct FourBitSuper : NoTable {
    using Scales = SuperMin;
    static void header(const uint8_t *block, int j, Block32 &o) {
        const uint8_t *s = block + 4;
        set_both(o.scale, j < 4 ? s[j] & 63 : (s[j + 4] & 15) | (s[j - 4] >> 6) << 4);
        set_both(o.min, j < 4 ? s[j + 4] & 63 : (s[j + 4] >> 4) | (s[j] >> 6) << 4);
        o.d = load_u16(block);
        o.m = load_u16(block + 2);
    }
    static void unpack_low(const uint8_t *from, int part, uint8_t *q) {
        for (int i = 0; i < 32; ++i) q[i] = part % 2 ? from[32 * (part / 2) + i] >> 4 : from[32 * (part / 2) + i] & 15;
    }
};

struct Q4_K : FourBitSuper {
    static constexpr TypeInfo kInfo{"Q4_K", 256, 144, 0, 2};
    using Codes = UnsignedCodes<4>;
    static void unpack(const uint8_t *block, int part, Block32 &o) {
        header(block, part, o);
        unpack_low(block + 16, part, o.q);
    }
    static constexpr int kWordsAt = 16, kWords = 32;
    template <int Part>
    static void arrange(const FourRows *w, FourRows *to) { arrange_nibbles<4 * (Part % 2)>(w + 8 * (Part / 2), to); }
};

struct Q5_K : FourBitSuper {
    static constexpr TypeInfo kInfo{"Q5_K", 256, 176, 0, 2};
    using Codes = UnsignedCodes<5>;
    static void unpack(const uint8_t *block, int part, Block32 &o) {
        header(block, part, o);
        unpack_low(block + 48, part, o.q);
        for (int i = 0; i < 32; ++i) o.q[i] |= static_cast<uint8_t>((block[16 + i] >> part & 1) << 4);
    }
    static constexpr int kWordsAt = 16, kWords = 40;
    template <int Part>
    static void arrange(const FourRows *w, FourRows *to) {
        arrange_nibbles<4 * (Part % 2)>(w + 8 + 8 * (Part / 2), to);
        arrange_bits<Part>(w, to + 4);
    }
};

struct Q6_K : NoTable {
    static constexpr TypeInfo kInfo{"Q6_K", 256, 210, 208, -1};
    using Codes = UnsignedCodes<6, 32>;
    using Scales = SuperSigned<2>;
    static void header(const uint8_t *block, int part, Block32 &o) {
        for (int h = 0; h < 2; ++h) o.scale[h] = block[192 + 2 * part + h];
        o.d = load_u16(block + 208);
    }
    static void unpack(const uint8_t *block, int part, Block32 &o) {
        header(block, part, o);
        const int n = part / 4, run = part % 4;
        const uint8_t *low = block + 64 * n + 32 * (run % 2), *high = block + 128 + 32 * n;
        for (int i = 0; i < 32; ++i) {
            const int nibble = run < 2 ? low[i] & 15 : low[i] >> 4;
            o.q[i] = static_cast<uint8_t>(nibble | (high[i] >> (2 * run) & 3) << 4);
        }
    }
    static constexpr int kWordsAt = 0, kWords = 48;
    template <int Part>
    static void arrange(const FourRows *w, FourRows *to) {
        constexpr int kHalf = Part / 4, kRun = Part % 4;
        arrange_nibbles<4 * (kRun / 2)>(w + 16 * kHalf + 8 * (kRun % 2), to);
        arrange_pairs<2 * kRun>(w + 32 + 8 * kHalf, to + 4);
    }
};

// The 16 values that a code of IQ4_NL and IQ4_XS stands for.
constexpr int8_t kIq4Values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

struct IQ4_NL : CopiedCodes<2, 4> {
    static constexpr TypeInfo kInfo{"IQ4_NL", 32, 18, 0, -1};
    static constexpr const int8_t *kTable = kIq4Values;
    using Codes = TableCodes<4>;
    using Scales = HalfScale;
    static void header(const uint8_t *block, int, Block32 &o) {
        o.d = load_u16(block);
    }
    static void unpack(const uint8_t *block, int part, Block32 &o) {
        header(block, part, o);
        unpack_nibbles(block + 2, o.q);
    }
};

struct IQ4_XS {
    static constexpr TypeInfo kInfo{"IQ4_XS", 256, 136, 0, -1};
    static constexpr const int8_t *kTable = kIq4Values;
    using Codes = TableCodes<4>;
    using Scales = SuperSigned<1>;
    static void header(const uint8_t *block, int part, Block32 &o) {
        const int low = block[4 + part / 2] >> (4 * (part % 2)) & 15;
        const int high = load_u16(block + 2) >> (2 * part) & 3;
        set_both(o.scale, (low | high << 4) - 32);
        o.d = load_u16(block);
    }
    static void unpack(const uint8_t *block, int part, Block32 &o) {
        header(block, part, o);
        unpack_nibbles(block + 8 + 16 * part, o.q);
    }
    static constexpr int kWordsAt = 8, kWords = 32;
    template <int Part>
    static void arrange(const FourRows *w, FourRows *to) {
        for (int j = 0; j < 4; ++j) to[j] = w[4 * Part + j];
    }
};

// E2M1: 0, 1/2, 1, 3/2, 2, 3, 4 and 6 with a sign, times two.
constexpr int8_t kE2M1Values[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

struct MXFP4 : CopiedCodes<1, 4> {
    static constexpr TypeInfo kInfo{"MXFP4", 32, 17, -1, -1};
    static constexpr const int8_t *kTable = kE2M1Values;
    using Codes = TableCodes<4>;
    using Scales = PowerOfTwo;
    static void header(const uint8_t *block, int, Block32 &o) {
        set_both(o.scale, block[0]);
    }
    static void unpack(const uint8_t *block, int part, Block32 &o) {
        header(block, part, o);
        unpack_nibbles(block + 1, o.q);
    }
};

// Ternary: -d, 0 or d.
struct TQ1_0 : NoTable {
    static constexpr TypeInfo kInfo{"TQ1_0", 256, 54, 52, -1};
    using Codes = UnsignedCodes<2, 1>;
    using Scales = SuperHalf;
    // Digit `n` of the five of base 3 that a byte holds as a fraction of 256.
    static uint8_t digit(uint8_t byte, int n) {
        constexpr uint8_t kPowers[] = {1, 3, 9, 27, 81};
        return static_cast<uint8_t>(static_cast<uint8_t>(byte * kPowers[n]) * 3 >> 8);
    }
    // 32 bytes hold digits of weights i, i + 32 …, 16 more those of weights 160 + i, 176 + i …, the last four four each.
    static void unpack(const uint8_t *block, int part, Block32 &o) {
        o.d = load_u16(block + 52);
        for (int i = 0; i < 32; ++i) {
            const int at = 32 * part + i;
            if (at < 160) o.q[i] = digit(block[at % 32], at / 32);
            else if (at < 240) o.q[i] = digit(block[32 + (at - 160) % 16], (at - 160) / 16);
            else o.q[i] = digit(block[48 + (at - 240) % 4], (at - 240) / 4);
        }
    }
};

struct TQ2_0 : NoTable {
    static constexpr TypeInfo kInfo{"TQ2_0", 256, 66, 64, -1};
    using Codes = UnsignedCodes<2, 1>;
    using Scales = SuperHalf;
    static void header(const uint8_t *block, int, Block32 &o) {
        o.d = load_u16(block + 64);
    }
    static void unpack(const uint8_t *block, int part, Block32 &o) {
        header(block, part, o);
        for (int i = 0; i < 32; ++i) o.q[i] = block[32 * (part / 4) + i] >> (2 * (part % 4)) & 3;
    }
    static constexpr int kWordsAt = 0, kWords = 16;
    template <int Part>
    static void arrange(const FourRows *w, FourRows *to) { arrange_pairs<2 * (Part % 4)>(w + 8 * (Part / 4), to); }
};

struct Grouped4 : NoTable {
    static constexpr TypeInfo kInfo{"grouped4", 32, 0, -1, -1};
    using Codes = UnsignedCodes<4, 8>;
    using Scales = GroupFloats<false>;
};
struct Grouped4Min : NoTable {
    static constexpr TypeInfo kInfo{"grouped4_min", 32, 0, -1, -1};
    using Codes = UnsignedCodes<4>;
    using Scales = GroupFloats<true>;
};
struct Grouped8 : NoTable {
    static constexpr TypeInfo kInfo{"grouped8", 32, 0, -1, -1};
    using Codes = SignedBytes;
    using Scales = GroupFloats<false>;
};
struct Grouped8Min : NoTable {
    static constexpr TypeInfo kInfo{"grouped8_min", 32, 0, -1, -1};
    using Codes = SignedBytes;
    using Scales = GroupFloats<true>;
};
struct Codebook4 : NoTable {
    static constexpr TypeInfo kInfo{"codebook4", 32, 0, -1, -1};
    using Codes = CodebookCodes;
    using Scales = GroupFloats<false>;
};
struct Fp4Halves {
    static constexpr TypeInfo kInfo{"fp4_halves", 32, 0, -1, -1};
    static constexpr const int8_t *kTable = kE2M1Values;
    using Codes = TableCodes<4>;
    using Scales = GroupHalves;
};
struct GroupedFp8 : NoTable {
    static constexpr TypeInfo kInfo{"grouped_fp8", 1, 0, -1, -1};
    using Codes = E4M3Codes;
    using Scales = GroupFloats<false>;
};

// A type as kernels see it: those of equal layouts share theirs.
template <class C, class S>
struct Panel {
    using Codes = C;
    using Scales = S;
};
template <class B>
using PanelOf = Panel<typename B::Codes, typename B::Scales>;

}  // namespace pagoda::blocks
