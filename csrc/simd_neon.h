// 16 lanes as four 128-bit registers: Armv8.2 with dot products.
#pragma once

#include <arm_neon.h>

#include <type_traits>

#include "common.h"

namespace pagoda {

struct Neon {
    static constexpr const char *kName = "neon";
    static constexpr int kTile = 2;
    static constexpr int kDirectTile = 2;
    static constexpr int kPanels = 1;
    static constexpr int kFloatTile = 6;
    static constexpr int kRows = 6;
    static constexpr int kCodeRows = 6;
    static constexpr int kCodeSums = 6;
    static constexpr int kUnpackTokens = 8;
    static constexpr bool kSigned = true;
    static constexpr int kParts = 1;
    static constexpr bool kWide = false;
    static constexpr int kBits = 16;
    static constexpr bool kWeighed = false;

    struct F { float32x4_t a, b, c, d; };
    struct I { int32x4_t a, b, c, d; };
    struct B { uint8x16_t a, b, c, d; };
    using W = B;

    // fn of each register of the operands.
    template <class V, class Fn, class... Operands>
    PAGODA_INLINE static V each(Fn fn, const Operands &...x) {
        return {fn(x.a...), fn(x.b...), fn(x.c...), fn(x.d...)};
    }

    PAGODA_INLINE static F zero() { return set1(0.0f); }
    PAGODA_INLINE static F set1(float x) {
        const float32x4_t v = vdupq_n_f32(x);
        return {v, v, v, v};
    }
    PAGODA_INLINE static F load(const float *p) {
        return {vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)};
    }
    PAGODA_INLINE static F load_half(const void *p) {
        const uint16_t *h = static_cast<const uint16_t *>(p);
        const auto widen = [](const uint16_t *x) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(x))); };
        return {widen(h), widen(h + 4), widen(h + 8), widen(h + 12)};
    }
    PAGODA_INLINE static F load_bfloat(const void *p) {
        const uint16_t *h = static_cast<const uint16_t *>(p);
        const auto widen = [](const uint16_t *x) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(x), 16)); };
        return {widen(h), widen(h + 4), widen(h + 8), widen(h + 12)};
    }
    PAGODA_INLINE static F widen_i8(int8x16_t x) {
        const int16x8_t low = vmovl_s8(vget_low_s8(x)), high = vmovl_s8(vget_high_s8(x));
        return {vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(low))),
                vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(high)))};
    }
    PAGODA_INLINE static F load_i8(const void *p) { return widen_i8(vld1q_s8(static_cast<const int8_t *>(p))); }
    PAGODA_INLINE static float32x4_t powers(const uint16x4_t &bytes) {
        const int32x4_t e = vreinterpretq_s32_u32(vmovl_u16(bytes));
        const int32x4_t bits = vmaxq_s32(vaddq_s32(e, vdupq_n_s32(1)), vsubq_s32(vshlq_n_s32(e, 2), vdupq_n_s32(4)));
        return vreinterpretq_f32_s32(vshlq_n_s32(bits, 21));
    }
    PAGODA_INLINE static F load_power(const void *p) {  // see power_of_two
        const uint8x16_t x = vld1q_u8(static_cast<const uint8_t *>(p));
        const uint16x8_t low = vmovl_u8(vget_low_u8(x)), high = vmovl_u8(vget_high_u8(x));
        return {powers(vget_low_u16(low)), powers(vget_high_u16(low)), powers(vget_low_u16(high)), powers(vget_high_u16(high))};
    }
    PAGODA_INLINE static F load_u4(const void *p, int shift) {
        const uint8x16_t x = vshlq_u8(vld1q_u8(static_cast<const uint8_t *>(p)), vdupq_n_s8(static_cast<int8_t>(-shift)));
        return widen_i8(vreinterpretq_s8_u8(vandq_u8(x, vdupq_n_u8(15))));
    }
    PAGODA_INLINE static void store(float *p, const F &x) {
        vst1q_f32(p, x.a);
        vst1q_f32(p + 4, x.b);
        vst1q_f32(p + 8, x.c);
        vst1q_f32(p + 12, x.d);
    }
    PAGODA_INLINE static void store_half(uint16_t *p, const F &x) {
        const auto narrow = [](float32x4_t v) { return vreinterpret_u16_f16(vcvt_f16_f32(v)); };
        vst1_u16(p, narrow(x.a));
        vst1_u16(p + 4, narrow(x.b));
        vst1_u16(p + 8, narrow(x.c));
        vst1_u16(p + 12, narrow(x.d));
    }
    PAGODA_INLINE static F swap_pairs(const F &x) {
        return each<F>([](auto p) { return vrev64q_f32(p); }, x);
    }
    PAGODA_INLINE static F add(const F &x, const F &y) {
        return each<F>([](auto p, auto q) { return vaddq_f32(p, q); }, x, y);
    }
    PAGODA_INLINE static F sub(const F &x, const F &y) {
        return each<F>([](auto p, auto q) { return vsubq_f32(p, q); }, x, y);
    }
    PAGODA_INLINE static F mul(const F &x, const F &y) {
        return each<F>([](auto p, auto q) { return vmulq_f32(p, q); }, x, y);
    }
    PAGODA_INLINE static F div(const F &x, const F &y) {
        return each<F>([](auto p, auto q) { return vdivq_f32(p, q); }, x, y);
    }
    PAGODA_INLINE static F max(const F &x, const F &y) {
        return each<F>([](auto p, auto q) { return vmaxq_f32(p, q); }, x, y);
    }
    PAGODA_INLINE static F min(const F &x, const F &y) {
        return each<F>([](auto p, auto q) { return vminq_f32(p, q); }, x, y);
    }
    PAGODA_INLINE static F abs(const F &x) {
        return each<F>([](auto p) { return vabsq_f32(p); }, x);
    }
    PAGODA_INLINE static F fma(const F &x, const F &y, const F &z) {
        return each<F>([](auto p, auto q, auto r) { return vfmaq_f32(r, p, q); }, x, y, z);
    }
    PAGODA_INLINE static F round(const F &x) {
        return each<F>([](auto p) { return vrndnq_f32(p); }, x);
    }
    PAGODA_INLINE static F pow2(const F &n) {
        return each<F>(
            [](auto p) { return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(p), vdupq_n_s32(127)), 23)); },
            n);
    }
    PAGODA_INLINE static F below(const F &x, const F &limit, const F &yes, const F &no) {
        return each<F>([](auto p, auto l, auto y, auto n) { return vbslq_f32(vcltq_f32(p, l), y, n); }, x, limit, yes, no);
    }
    PAGODA_INLINE static void store_i8(int8_t *p, const F &x) {
        const auto narrow = [](float32x4_t u, float32x4_t v) {
            return vcombine_s16(vqmovn_s32(vcvtq_s32_f32(u)), vqmovn_s32(vcvtq_s32_f32(v)));
        };
        vst1q_s8(p, vcombine_s8(vqmovn_s16(narrow(x.a, x.b)), vqmovn_s16(narrow(x.c, x.d))));
    }
    PAGODA_INLINE static void store_i16(int16_t *p, const I &x) {
        vst1q_s16(p, vcombine_s16(vmovn_s32(x.a), vmovn_s32(x.b)));
        vst1q_s16(p + 8, vcombine_s16(vmovn_s32(x.c), vmovn_s32(x.d)));
    }
    PAGODA_INLINE static void store_every_other(int16_t *p, const I &x) {
        int16_t codes[16];
        store_i16(codes, x);
        for (int i = 0; i < 16; ++i) p[2 * i] = codes[i];
    }
    PAGODA_INLINE static B pair(const int16_t *p) {
        int32_t both;
        std::memcpy(&both, p, 4);
        const uint8x16_t x = vreinterpretq_u8_s32(vdupq_n_s32(both));
        return {x, x, x, x};
    }
    PAGODA_INLINE static I add_pairs(const I &sum, const B &x, const B &y) {
        return each<I>(
            [](auto s, auto u, auto v) {
                const int16x8_t p = vreinterpretq_s16_u8(u), q = vreinterpretq_s16_u8(v);
                const int32x4_t low = vmull_s16(vget_low_s16(p), vget_low_s16(q));
                return vaddq_s32(s, vpaddq_s32(low, vmull_high_s16(p, q)));
            },
            sum, x, y);
    }
    PAGODA_INLINE static uint32_t factor(int x) { return float_to_bits(static_cast<float>(x)); }
    PAGODA_INLINE static I zero_int() {
        const int32x4_t zero = vdupq_n_s32(0);
        return {zero, zero, zero, zero};
    }
    PAGODA_INLINE static I round_int(const F &x) {
        return each<I>([](auto p) { return vcvtnq_s32_f32(p); }, x);
    }
    // A quad's low bytes (signed), then its high ones.
    PAGODA_INLINE static void store_quads(uint8_t *p, const I &x) {
        const auto narrow = [](const I &v) {
            return vcombine_s8(vmovn_s16(vcombine_s16(vmovn_s32(v.a), vmovn_s32(v.b))),
                               vmovn_s16(vcombine_s16(vmovn_s32(v.c), vmovn_s32(v.d))));
        };
        const I raised = each<I>([](auto v) { return vshrq_n_s32(vaddq_s32(v, vdupq_n_s32(128)), 8); }, x);
        const int32x4_t low = vreinterpretq_s32_s8(narrow(x)), high = vreinterpretq_s32_s8(narrow(raised));
        vst1q_u8(p, vreinterpretq_u8_s32(vzip1q_s32(low, high)));
        vst1q_u8(p + 16, vreinterpretq_u8_s32(vzip2q_s32(low, high)));
    }
    PAGODA_INLINE static int32_t sum_int(const I &x) {
        return vaddvq_s32(vaddq_s32(vaddq_s32(x.a, x.b), vaddq_s32(x.c, x.d)));
    }
    PAGODA_INLINE static F to_float(const I &x) {
        return each<F>([](auto p) { return vcvtq_f32_s32(p); }, x);
    }
    PAGODA_INLINE static I sub_shifted(const I &x, const int32_t *y, int shift) {
        const int32x4_t v = vshlq_s32(vdupq_n_s32(*y), vdupq_n_s32(shift));
        return each<I>([=](auto p) { return vsubq_s32(p, v); }, x);
    }
    PAGODA_INLINE static I sixteen_times(const I &x, const I &y) {
        return each<I>([](auto p, auto q) { return vaddq_s32(vshlq_n_s32(p, 4), q); }, x, y);
    }

    PAGODA_INLINE static B load_b(const void *p) {
        const uint8_t *u = static_cast<const uint8_t *>(p);
        return {vld1q_u8(u), vld1q_u8(u + 16), vld1q_u8(u + 32), vld1q_u8(u + 48)};
    }
    PAGODA_INLINE static void store_b(void *p, const B &x) {
        uint8_t *u = static_cast<uint8_t *>(p);
        vst1q_u8(u, x.a);
        vst1q_u8(u + 16, x.b);
        vst1q_u8(u + 32, x.c);
        vst1q_u8(u + 48, x.d);
    }
    template <int Right, int Left>
    PAGODA_INLINE static B field(const B &x, uint8_t mask) {
        const auto one = [=](uint8x16_t v) {
            if constexpr (Right > Left) {
                v = vshrq_n_u8(v, Right - Left);
                if (mask == 0xff >> (Right - Left)) return v;  // the shift has cleared the rest
            }
            if constexpr (Left > Right) v = vshlq_n_u8(v, Left - Right);
            return vandq_u8(v, vdupq_n_u8(mask));
        };
        return each<B>(one, x);
    }
    PAGODA_INLINE static B or_b(const B &x, const B &y) {
        return each<B>([](auto p, auto q) { return vorrq_u8(p, q); }, x, y);
    }
    PAGODA_INLINE static B lookup(const int8_t *table, const B &x) {
        const int8x16_t t = vld1q_s8(table);
        return each<B>([=](auto p) { return vreinterpretq_u8_s8(vqtbl1q_s8(t, p)); }, x);
    }

    PAGODA_INLINE static W load_w(const void *p) { return load_b(p); }
    PAGODA_INLINE static void store_w(void *p, const W &x) { store_b(p, x); }
    template <int P, bool Signed, int Offset>
    PAGODA_INLINE static W part(const B &x) {  // unsigned codes are below 128: all serve as signed
        if constexpr (Offset == 0) return x;
        return each<W>([](auto v) { return vsubq_u8(v, vdupq_n_u8(Offset)); }, x);
    }

    struct Dot {
        I low, high;
        int8x16_t quads;  // two at a time
        template <int J, int P>
        PAGODA_INLINE void mac(const W &w, const uint8_t *token) {
            if constexpr (J == 0) low = high = zero_int();
            if constexpr (J % 2 == 0) quads = vld1q_s8(reinterpret_cast<const int8_t *>(token + 8 * J));
            const auto dot = [this](auto lane) {
                return [this, lane](auto sum, auto codes) {
                    return vdotq_laneq_s32(sum, vreinterpretq_s8_u8(codes), quads, decltype(lane)::value);
                };
            };
            low = each<I>(dot(std::integral_constant<int, J % 2 * 2>{}), low, w);
            high = each<I>(dot(std::integral_constant<int, J % 2 * 2 + 1>{}), high, w);
        }
        PAGODA_INLINE I sum() const {
            return each<I>([](auto l, auto h) { return vaddq_s32(l, vshlq_n_s32(h, 8)); }, low, high);
        }
    };

    struct Burst {
        I acc{vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0)};
        template <int J>
        PAGODA_INLINE void mac(const B &w, const int8_t *token) {
            const int8x16_t x = vreinterpretq_s8_s32(vdupq_n_s32(load_i32(token)));
            acc = each<I>([=](auto sum, auto codes) { return vdotq_s32(sum, vreinterpretq_s8_u8(codes), x); }, acc, w);
        }
        PAGODA_INLINE static int32_t load_i32(const int8_t *p) {
            int32_t v;
            std::memcpy(&v, p, 4);
            return v;
        }
        PAGODA_INLINE I sum() const { return acc; }
    };
};

// The same with activations of 8 bits.
struct NeonBytes : Neon {
    static constexpr int kTile = 4;
    static constexpr int kBits = 8;
    static constexpr bool takes(int) { return true; }
    template <int Most, int Quads>
    struct Dot {
        I acc;
        int8x16_t quads;  // four at a time
        template <int J, int P>
        PAGODA_INLINE void mac(const W &w, const uint8_t *token, uint32_t) {
            if constexpr (J == 0) acc = zero_int();
            if constexpr (J % 4 == 0) quads = vld1q_s8(reinterpret_cast<const int8_t *>(token + 4 * J));
            acc = each<I>([this](auto sum, auto codes) {
                return vdotq_laneq_s32(sum, vreinterpretq_s8_u8(codes), quads, J % 4);
            }, acc, w);
        }
        PAGODA_INLINE I sum() const { return acc; }
    };
};

}  // namespace pagoda
