// How panels keep codes and scales (weights.h draws a panel). A block type is one of the code layouts and one of the scale
// layouts below. S is an instruction set's 16 lanes (simd_*.h).
#pragma once

#include "formats.h"

namespace pagoda {

// Code layouts. A code stands for code - kOffset, for itself as a signed byte, or for what a table has in its place;
// kMax is the largest code, -1 for values that are signed bytes.
template <int Bits, int Offset = 0>
struct UnsignedCodes {
    static constexpr int kBits = Bits, kMax = (1 << Bits) - 1, kOffset = Offset, kTables = 0;
    static int value(uint8_t code, const int8_t *) { return code - Offset; }
};
struct SignedBytes {
    static constexpr int kBits = 8, kMax = -1, kOffset = 0, kTables = 0;
    static int value(uint8_t code, const int8_t *) { return static_cast<int8_t>(code); }
};
template <int Bits>
struct TableCodes {  // of 16 bytes
    static constexpr int kBits = Bits, kMax = -1, kOffset = 0, kTables = 1;
    static int value(uint8_t code, const int8_t *table) { return table[code]; }
};
struct CodebookCodes {  // 12-bit values in two tables of the weight's own: 16 times the one and the other
    static constexpr int kBits = 4, kMax = -1, kOffset = 0, kTables = 2;
    static int value(uint8_t, const int8_t *) { return 0; }
};

struct E4M3Codes {  // floats of four bits of exponent and three of mantissa, without infinities
    static constexpr int kBits = 8, kMax = -1, kOffset = 0, kTables = 0;
    static constexpr bool kFloats = true;
};

inline void put_u16(uint8_t *to, int r, uint16_t v) { std::memcpy(to + 2 * r, &v, 2); }

// Where the scales of 32 columns of 16 rows lie: their own (or their group's), and those of the 256 columns of which they are
// the `part`th 32.
struct ScalesAt {
    const uint8_t *scales, *super;
    int part;
};

// Scale layouts: weight = scale * value + min. kHalves is 2 where each 16 columns have a scale of their own. pack() writes
// those of row r of 32 columns; pack_header(), where there is one, all of row r from the block of 256 columns.

struct HalfScale {  // f16 d
    static constexpr int kBytes = 32, kSuperBytes = 0, kHalves = 1;
    static constexpr bool kMin = false, kGroups = false;
    static void pack(const Block32 &b, int r, uint8_t *scales, uint8_t *) { put_u16(scales, r, b.d); }
    static float scale(const Block32 &b, int) { return half_to_float(b.d); }
    template <class S>
    PAGODA_INLINE static typename S::F scale(const ScalesAt &at, int) { return S::load_half(at.scales); }
};

struct HalfScaleMin : HalfScale {  // f16 d, f16 m
    static constexpr int kBytes = 64;
    static constexpr bool kMin = true, kGroups = false;
    static void pack(const Block32 &b, int r, uint8_t *scales, uint8_t *) {
        put_u16(scales, r, b.d);
        put_u16(scales + 32, r, b.m);
    }
    static float min(const Block32 &b, int) { return half_to_float(b.m); }
    template <class S>
    PAGODA_INLINE static typename S::F min(const ScalesAt &at, int) { return S::load_half(at.scales + 32); }
};

// d * scale and -dmin * min, with f16 d and dmin of 256 columns and six bits each for 32. Those lie in 12 bytes, as in files:
// in the low six bits of bytes i and 4 + i for columns 32 i, …, i < 4, and for i >= 4 in the low and the high nibble of
// byte 4 + i, with the top two bits of bytes i - 4 and i above them. A byte of 16 rows side by side is a plane.
struct SuperMin {
    static constexpr int kPlanes = 12;
    static constexpr int kBytes = 0, kSuperBytes = 64 + 16 * kPlanes, kHalves = 1;
    static constexpr bool kMin = true, kGroups = false;
    static void pack_header(const uint8_t *block, int r, uint8_t *super) {
        put_u16(super, r, load_u16(block));
        put_u16(super + 32, r, load_u16(block + 2));
        for (int i = 0; i < kPlanes; ++i) super[64 + 16 * i + r] = block[4 + i];
    }
    static float scale(const Block32 &b, int) { return half_to_float(b.d) * static_cast<float>(b.scale[0]); }
    static float min(const Block32 &b, int) { return -(half_to_float(b.m) * static_cast<float>(b.min[0])); }

    typedef uint16_t Plane __attribute__((vector_size(16)));  // 16 bytes, two at a time: no shift crosses the masks
    PAGODA_INLINE static Plane plane(const ScalesAt &at, int i) {
        Plane p;
        std::memcpy(&p, at.super + 64 + 16 * i, 16);
        return p;
    }
    template <class S>
    PAGODA_INLINE static typename S::F times(const uint8_t *halves, const Plane &bytes) {
        return S::mul(S::load_half(halves), S::load_i8(&bytes));
    }
    template <class S>
    PAGODA_INLINE static typename S::F scale(const ScalesAt &at, int) {
        if (at.part < 4) return times<S>(at.super, plane(at, at.part) & 0x3f3f);
        return times<S>(at.super, (plane(at, at.part + 4) & 0x0f0f) | (plane(at, at.part - 4) >> 2 & 0x3030));
    }
    template <class S>
    PAGODA_INLINE static typename S::F min(const ScalesAt &at, int) {
        const auto negative = [](typename S::F x) { return S::sub(S::zero(), x); };
        if (at.part < 4) return negative(times<S>(at.super + 32, plane(at, at.part + 4) & 0x3f3f));
        return negative(times<S>(at.super + 32, (plane(at, at.part + 4) >> 4 & 0x0f0f) | (plane(at, at.part) >> 2 & 0x3030)));
    }
};

// The same for 16 columns each, in the nibbles of a byte.
struct SuperNibblesMin {
    static constexpr int kBytes = 32, kSuperBytes = 64, kHalves = 2;
    static constexpr bool kMin = true, kGroups = false;
    static void pack(const Block32 &b, int r, uint8_t *scales, uint8_t *super) {
        for (int h = 0; h < 2; ++h) scales[16 * h + r] = static_cast<uint8_t>(b.scale[h] | b.min[h] << 4);
        put_u16(super, r, b.d);
        put_u16(super + 32, r, b.m);
    }
    static float scale(const Block32 &b, int half) { return half_to_float(b.d) * static_cast<float>(b.scale[half]); }
    static float min(const Block32 &b, int half) { return -(half_to_float(b.m) * static_cast<float>(b.min[half])); }
    template <class S>
    PAGODA_INLINE static typename S::F scale(const ScalesAt &at, int half) {
        return S::mul(S::load_half(at.super), S::load_u4(at.scales + 16 * half, 0));
    }
    template <class S>
    PAGODA_INLINE static typename S::F min(const ScalesAt &at, int half) {
        return S::sub(S::zero(), S::mul(S::load_half(at.super + 32), S::load_u4(at.scales + 16 * half, 4)));
    }
};

// d * scale / 2^Shift, with f16 d of 256 columns and a signed byte for each 32 or, with two halves, each 16.
template <int Halves, int Shift = 0>
struct SuperSigned {
    static constexpr float kUnit = 1.0f / (1 << Shift);
    static constexpr int kBytes = 16 * Halves, kSuperBytes = 32, kHalves = Halves;
    static constexpr bool kMin = false, kGroups = false;
    static void pack(const Block32 &b, int r, uint8_t *scales, uint8_t *super) {
        for (int h = 0; h < Halves; ++h) scales[16 * h + r] = b.scale[h];
        put_u16(super, r, b.d);
    }
    static float scale(const Block32 &b, int half) {
        return half_to_float(b.d) * static_cast<float>(static_cast<int8_t>(b.scale[half])) * kUnit;
    }
    template <class S>
    PAGODA_INLINE static typename S::F scale(const ScalesAt &at, int half) {
        const auto scale = S::mul(S::load_half(at.super), S::load_i8(at.scales + 16 * half));
        if constexpr (Shift == 0) return scale;
        else return S::mul(scale, S::set1(kUnit));
    }
};

struct SuperHalf {  // f16 d of 256 columns
    static constexpr int kBytes = 0, kSuperBytes = 32, kHalves = 1;
    static constexpr bool kMin = false, kGroups = false;
    static void pack(const Block32 &b, int r, uint8_t *, uint8_t *super) { put_u16(super, r, b.d); }
    static float scale(const Block32 &b, int) { return half_to_float(b.d); }
    template <class S>
    PAGODA_INLINE static typename S::F scale(const ScalesAt &at, int) { return S::load_half(at.super); }
};

struct PowerOfTwo {  // 2^(e - 128), e a byte
    static constexpr int kBytes = 16, kSuperBytes = 0, kHalves = 1;
    static constexpr bool kMin = false, kGroups = false;
    static void pack(const Block32 &b, int r, uint8_t *scales, uint8_t *) { scales[r] = b.scale[0]; }
    static float scale(const Block32 &b, int) { return power_of_two(b.scale[0]); }
    template <class S>
    PAGODA_INLINE static typename S::F scale(const ScalesAt &at, int) { return S::load_power(at.scales); }
};

template <bool Min>
struct GroupFloats {
    static constexpr int kBytes = Min ? 128 : 64, kSuperBytes = 0, kHalves = 1;
    static constexpr bool kMin = Min, kGroups = true;
    template <class S>
    PAGODA_INLINE static typename S::F scale(const ScalesAt &at, int) {
        return S::load(reinterpret_cast<const float *>(at.scales));
    }
    template <class S>
    PAGODA_INLINE static typename S::F min(const ScalesAt &at, int) {
        return S::load(reinterpret_cast<const float *>(at.scales) + 16);
    }
};

struct GroupHalves {  // two scales a group, which is a block: of its first 16 columns and of the others
    static constexpr int kBytes = 128, kSuperBytes = 0, kHalves = 2;
    static constexpr bool kMin = false, kGroups = true;
    template <class S>
    PAGODA_INLINE static typename S::F scale(const ScalesAt &at, int half) {
        return S::load(reinterpret_cast<const float *>(at.scales) + 16 * half);
    }
};

}  // namespace pagoda
