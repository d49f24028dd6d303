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

// Scale layouts: weight = scale * value + min. kHalves is 2 where each 16 columns have a scale of their own. `scales` is
// where those of 32 columns (or of a group) of 16 rows lie, `super` where those of 256 columns do.

struct HalfScale {  // f16 d
    static constexpr int kBytes = 32, kSuperBytes = 0, kHalves = 1;
    static constexpr bool kMin = false, kGroups = false;
    static void pack(const Block32 &b, int r, uint8_t *scales, uint8_t *) { put_u16(scales, r, b.d); }
    static float scale(const Block32 &b, int) { return half_to_float(b.d); }
    template <class S>
    PAGODA_INLINE static typename S::F scale(const uint8_t *scales, const uint8_t *, int) { return S::load_half(scales); }
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
    PAGODA_INLINE static typename S::F min(const uint8_t *scales, const uint8_t *, int) { return S::load_half(scales + 32); }
};

// d * scale and -dmin * min, with f16 d and dmin of 256 columns and a byte each for 32.
struct SuperMin {
    static constexpr int kBytes = 32, kSuperBytes = 64, kHalves = 1;
    static constexpr bool kMin = true, kGroups = false;
    static void pack(const Block32 &b, int r, uint8_t *scales, uint8_t *super) {
        scales[r] = b.scale[0];
        scales[16 + r] = b.min[0];
        put_u16(super, r, b.d);
        put_u16(super + 32, r, b.m);
    }
    static float scale(const Block32 &b, int) { return half_to_float(b.d) * static_cast<float>(b.scale[0]); }
    static float min(const Block32 &b, int) { return -(half_to_float(b.m) * static_cast<float>(b.min[0])); }
    template <class S>
    PAGODA_INLINE static typename S::F scale(const uint8_t *scales, const uint8_t *super, int) {
        return S::mul(S::load_half(super), S::load_i8(scales));
    }
    template <class S>
    PAGODA_INLINE static typename S::F min(const uint8_t *scales, const uint8_t *super, int) {
        return S::sub(S::zero(), S::mul(S::load_half(super + 32), S::load_i8(scales + 16)));
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
    PAGODA_INLINE static typename S::F scale(const uint8_t *scales, const uint8_t *super, int half) {
        return S::mul(S::load_half(super), S::load_u4(scales + 16 * half, 0));
    }
    template <class S>
    PAGODA_INLINE static typename S::F min(const uint8_t *scales, const uint8_t *super, int half) {
        return S::sub(S::zero(), S::mul(S::load_half(super + 32), S::load_u4(scales + 16 * half, 4)));
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
    PAGODA_INLINE static typename S::F scale(const uint8_t *scales, const uint8_t *super, int half) {
        const auto scale = S::mul(S::load_half(super), S::load_i8(scales + 16 * half));
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
    PAGODA_INLINE static typename S::F scale(const uint8_t *, const uint8_t *super, int) { return S::load_half(super); }
};

struct PowerOfTwo {  // 2^(e - 128), e a byte
    static constexpr int kBytes = 16, kSuperBytes = 0, kHalves = 1;
    static constexpr bool kMin = false, kGroups = false;
    static void pack(const Block32 &b, int r, uint8_t *scales, uint8_t *) { scales[r] = b.scale[0]; }
    static float scale(const Block32 &b, int) { return power_of_two(b.scale[0]); }
    template <class S>
    PAGODA_INLINE static typename S::F scale(const uint8_t *scales, const uint8_t *, int) { return S::load_power(scales); }
};

template <bool Min>
struct GroupFloats {
    static constexpr int kBytes = Min ? 128 : 64, kSuperBytes = 0, kHalves = 1;
    static constexpr bool kMin = Min, kGroups = true;
    template <class S>
    PAGODA_INLINE static typename S::F scale(const uint8_t *scales, const uint8_t *, int) {
        return S::load(reinterpret_cast<const float *>(scales));
    }
    template <class S>
    PAGODA_INLINE static typename S::F min(const uint8_t *scales, const uint8_t *, int) {
        return S::load(reinterpret_cast<const float *>(scales) + 16);
    }
};

struct GroupHalves {  // two scales a group, which is a block: of its first 16 columns and of the others
    static constexpr int kBytes = 128, kSuperBytes = 0, kHalves = 2;
    static constexpr bool kMin = false, kGroups = true;
    template <class S>
    PAGODA_INLINE static typename S::F scale(const uint8_t *scales, const uint8_t *, int half) {
        return S::load(reinterpret_cast<const float *>(scales) + 16 * half);
    }
};

}  // namespace pagoda
