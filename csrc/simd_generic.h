// 16 lanes in plain C++: the instruction set of last resort, and the meaning of the others.
#pragma once

#include <cmath>

#include "common.h"

namespace pagoda {

struct Generic {
    static constexpr const char *kName = "generic";
    static constexpr int kTile = 1;       // tokens of one integer tile, from unpacked weights
    static constexpr int kDirectTile = 1;  // and from packed ones
    static constexpr int kPanels = 1;      // of one integer tile, from unpacked weights
    static constexpr int kFloatTile = 1;  // tokens of one float tile
    static constexpr int kRows = 1;       // query rows of one attention tile
    static constexpr int kCodeRows = 1;   // and of one whose keys are codes
    static constexpr int kCodeSums = 1;   // of that
    static constexpr int kUnpackTokens = 0;  // from so many on unpacking panels first pays; 0: never
    static constexpr bool kSigned = true;   // whether W holds signed codes (else signed ones are raised by 128)
    static constexpr int kParts = 1;        // W to a B
    static constexpr bool kWide = false;    // whether W holds 16-bit codes
    static constexpr int kBits = 16;  // of an activation's code
    static constexpr bool kWeighed = false;  // whether byte dot products multiply by the factor themselves

    struct F { float v[16]; };
    struct I { int32_t v[16]; };
    struct B { uint8_t v[64]; };  // 16 rows, 4 bytes each
    using W = B;                  // codes of 16 rows as the dot product takes them

    template <class Fn>
    PAGODA_INLINE static F map(Fn fn) {
        F r;
        for (int i = 0; i < 16; ++i) r.v[i] = fn(i);
        return r;
    }
    PAGODA_INLINE static F zero() { return set1(0.0f); }
    PAGODA_INLINE static F set1(float x) { return map([=](int) { return x; }); }
    PAGODA_INLINE static F load(const float *p) { return map([=](int i) { return p[i]; }); }
    PAGODA_INLINE static F load_half(const void *p) {
        const uint8_t *u = static_cast<const uint8_t *>(p);
        return map([=](int i) { return half_to_float(load_u16(u + 2 * i)); });
    }
    PAGODA_INLINE static F load_bfloat(const void *p) {
        const uint8_t *u = static_cast<const uint8_t *>(p);
        return map([=](int i) { return bfloat_to_float(load_u16(u + 2 * i)); });
    }
    PAGODA_INLINE static F load_i8(const void *p) {
        const int8_t *u = static_cast<const int8_t *>(p);
        return map([=](int i) { return static_cast<float>(u[i]); });
    }
    PAGODA_INLINE static F load_power(const void *p) {  // 2^(byte - 128)
        const uint8_t *u = static_cast<const uint8_t *>(p);
        return map([=](int i) { return power_of_two(u[i]); });
    }
    PAGODA_INLINE static F load_u4(const void *p, int shift) {  // 16 nibbles, one a byte
        const uint8_t *u = static_cast<const uint8_t *>(p);
        return map([=](int i) { return static_cast<float>(u[i] >> shift & 15); });
    }
    PAGODA_INLINE static void store(float *p, const F &x) { std::memcpy(p, x.v, 64); }
    PAGODA_INLINE static void store_half(uint16_t *p, const F &x) {  // to nearest even
        for (int i = 0; i < 16; ++i) p[i] = float_to_half(x.v[i]);
    }
    PAGODA_INLINE static F swap_pairs(const F &x) { return map([&](int i) { return x.v[i ^ 1]; }); }
    PAGODA_INLINE static F add(const F &a, const F &b) { return map([&](int i) { return a.v[i] + b.v[i]; }); }
    PAGODA_INLINE static F sub(const F &a, const F &b) { return map([&](int i) { return a.v[i] - b.v[i]; }); }
    PAGODA_INLINE static F mul(const F &a, const F &b) { return map([&](int i) { return a.v[i] * b.v[i]; }); }
    PAGODA_INLINE static F div(const F &a, const F &b) { return map([&](int i) { return a.v[i] / b.v[i]; }); }
    PAGODA_INLINE static F max(const F &a, const F &b) {
        return map([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
    }
    PAGODA_INLINE static F min(const F &a, const F &b) {
        return map([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
    }
    PAGODA_INLINE static F abs(const F &a) { return map([&](int i) { return std::fabs(a.v[i]); }); }
    PAGODA_INLINE static F fma(const F &a, const F &b, const F &c) {  // a * b + c
        return map([&](int i) { return a.v[i] * b.v[i] + c.v[i]; });
    }
    PAGODA_INLINE static F round(const F &a) { return map([&](int i) { return std::nearbyint(a.v[i]); }); }
    PAGODA_INLINE static F pow2(const F &n) {  // n integral, in [-126, 127]
        return map([&](int i) { return bits_to_float(static_cast<uint32_t>(static_cast<int32_t>(n.v[i]) + 127) << 23); });
    }
    PAGODA_INLINE static F below(const F &a, const F &limit, const F &yes, const F &no) {  // a < limit ? yes : no
        return map([&](int i) { return a.v[i] < limit.v[i] ? yes.v[i] : no.v[i]; });
    }
    PAGODA_INLINE static void store_i8(int8_t *p, const F &x) {  // x integral, in [-128, 127]
        for (int i = 0; i < 16; ++i) p[i] = static_cast<int8_t>(x.v[i]);
    }
    PAGODA_INLINE static I round_int(const F &x) {
        I r;
        for (int i = 0; i < 16; ++i) r.v[i] = static_cast<int32_t>(std::nearbyint(x.v[i]));
        return r;
    }
    // 16 columns' 16-bit codes as four quads of 8 bytes: here four low bytes (signed), then four high ones.
    PAGODA_INLINE static void store_quads(uint8_t *p, const I &x) {
        for (int i = 0; i < 16; ++i) {
            const auto low = static_cast<int8_t>(x.v[i]);
            p[8 * (i / 4) + i % 4] = static_cast<uint8_t>(low);
            p[8 * (i / 4) + i % 4 + 4] = static_cast<uint8_t>((x.v[i] - low) >> 8);
        }
    }
    PAGODA_INLINE static void store_i16(int16_t *p, const I &x) {  // x in [-32768, 32767]
        for (int i = 0; i < 16; ++i) p[i] = static_cast<int16_t>(x.v[i]);
    }
    PAGODA_INLINE static void store_every_other(int16_t *p, const I &x) {  // p[2 i] = x[i], and nothing else is written
        for (int i = 0; i < 16; ++i) p[2 * i] = static_cast<int16_t>(x.v[i]);
    }
    PAGODA_INLINE static I zero_int() { return {}; }
    PAGODA_INLINE static B pair(const int16_t *p) {  // p[0] and p[1], 16 times
        B r;
        for (int i = 0; i < 16; ++i) std::memcpy(r.v + 4 * i, p, 4);
        return r;
    }
    PAGODA_INLINE static I add_pairs(I sum, const B &a, const B &b) {  // of 16-bit codes: sum[i] += a[2 i] b[2 i] + a[2 i + 1] b[2 i + 1]
        int16_t x[32], y[32];
        std::memcpy(x, a.v, 64);
        std::memcpy(y, b.v, 64);
        for (int i = 0; i < 16; ++i) sum.v[i] += x[2 * i] * y[2 * i] + x[2 * i + 1] * y[2 * i + 1];
        return sum;
    }
    PAGODA_INLINE static uint32_t factor(int x) { return float_to_bits(static_cast<float>(x)); }
    PAGODA_INLINE static int32_t sum_int(const I &x) {
        int32_t sum = 0;
        for (const int32_t v : x.v) sum += v;
        return sum;
    }
    PAGODA_INLINE static F to_float(const I &a) { return map([&](int i) { return static_cast<float>(a.v[i]); }); }
    PAGODA_INLINE static I sub_shifted(const I &a, const int32_t *x, int shift) {  // a - (*x << shift)
        I r;
        for (int i = 0; i < 16; ++i) r.v[i] = a.v[i] - (*x << shift);
        return r;
    }

    // 16 a + b
    PAGODA_INLINE static I sixteen_times(const I &a, const I &b) {
        I r;
        for (int i = 0; i < 16; ++i) r.v[i] = 16 * a.v[i] + b.v[i];
        return r;
    }

    PAGODA_INLINE static B load_b(const void *p) {
        B r;
        std::memcpy(r.v, p, 64);
        return r;
    }
    PAGODA_INLINE static void store_b(void *p, const B &x) { std::memcpy(p, x.v, 64); }
    // (x >> right << left) & mask, a byte at a time (the mask must clear what crosses bytes)
    template <int Right, int Left>
    PAGODA_INLINE static B field(const B &x, uint8_t mask) {
        B r;
        for (int i = 0; i < 64; ++i) r.v[i] = static_cast<uint8_t>((x.v[i] >> Right << Left) & mask);
        return r;
    }
    PAGODA_INLINE static B or_b(const B &a, const B &b) {
        B r;
        for (int i = 0; i < 64; ++i) r.v[i] = a.v[i] | b.v[i];
        return r;
    }
    PAGODA_INLINE static B lookup(const int8_t *table, const B &x) {  // x < 16
        B r;
        for (int i = 0; i < 64; ++i) r.v[i] = static_cast<uint8_t>(table[x.v[i]]);
        return r;
    }

    PAGODA_INLINE static W load_w(const void *p) { return load_b(p); }
    PAGODA_INLINE static void store_w(void *p, const W &x) { store_b(p, x); }
    // Part P of a quad's codes, less Offset.
    template <int P, bool Signed, int Offset>
    PAGODA_INLINE static W part(const B &x) {
        W r;
        for (int i = 0; i < 64; ++i) r.v[i] = static_cast<uint8_t>(x.v[i] - Offset);
        return r;
    }

    // Dot products of 16 rows' quads with one token's quads, at most 8 quads.
    struct Dot {
        I acc;
        template <int J, int P>
        PAGODA_INLINE void mac(const W &w, const uint8_t *quads) {
            if constexpr (J == 0) acc = {};
            const auto *low = reinterpret_cast<const int8_t *>(quads + 8 * J), *high = low + 4;
            for (int r = 0; r < 16; ++r)
                for (int b = 0; b < 4; ++b)
                    acc.v[r] += static_cast<int8_t>(w.v[4 * r + b]) * (256 * high[b] + low[b]);
        }
        PAGODA_INLINE I sum() const { return acc; }
    };

    // The fastest dot product of bytes there is, to measure the machine by: codes below 16 by signed bytes.
    struct Burst {
        I acc{};
        template <int J>
        PAGODA_INLINE void mac(const B &w, const int8_t *a) {
            for (int r = 0; r < 16; ++r)
                for (int b = 0; b < 4; ++b) acc.v[r] += w.v[4 * r + b] * a[b];
        }
        PAGODA_INLINE I sum() const { return acc; }
    };
};

// The same with activations of 8 bits.
struct GenericBytes : Generic {
    static constexpr int kBits = 8;
    static constexpr bool takes(int) { return true; }  // codes up to so many; -1: signed ones
    // Dot products with codes up to Most (-1: signed) of at most Quads quads, which have one factor.
    template <int Most, int Quads>
    struct Dot {
        I acc;
        template <int J, int P>
        PAGODA_INLINE void mac(const W &w, const uint8_t *quads, uint32_t) {
            if constexpr (J == 0) acc = {};
            const auto *codes = reinterpret_cast<const int8_t *>(quads + 4 * J);
            for (int r = 0; r < 16; ++r)
                for (int b = 0; b < 4; ++b) acc.v[r] += static_cast<int8_t>(w.v[4 * r + b]) * codes[b];
        }
        PAGODA_INLINE I sum() const { return acc; }
    };
};

}  // namespace pagoda
