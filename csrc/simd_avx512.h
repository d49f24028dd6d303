// 16 lanes as one 512-bit register: AVX-512 F, BW, VL, DQ and VNNI.
#pragma once

#include <immintrin.h>

#include "common.h"

namespace pagoda {

struct Avx512 {
    static constexpr const char *kName = "avx512";
    static constexpr int kTile = 4;
    static constexpr int kDirectTile = 8;
    static constexpr int kPanels = 2;  // a broadcast of activations takes as long as a product
    static constexpr int kFloatTile = 12;
    static constexpr int kRows = 12;
    static constexpr int kCodeRows = 6;
    static constexpr int kCodeSums = 12;
    static constexpr int kUnpackTokens = 24;
    static constexpr bool kSigned = false;
    static constexpr int kParts = 1;
    static constexpr bool kWide = false;
    static constexpr int kBits = 16;
    static constexpr bool kWeighed = false;

    struct F { __m512 v; };
    struct I { __m512i v; };
    struct B { __m512i v; };
    using W = B;

    PAGODA_INLINE static F zero() { return {_mm512_setzero_ps()}; }
    PAGODA_INLINE static F set1(float x) { return {_mm512_set1_ps(x)}; }
    PAGODA_INLINE static F load(const float *p) { return {_mm512_loadu_ps(p)}; }
    PAGODA_INLINE static F load_half(const void *p) {
        return {_mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i *>(p)))};
    }
    PAGODA_INLINE static F load_bfloat(const void *p) {
        const __m256i h = _mm256_loadu_si256(static_cast<const __m256i *>(p));
        return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16))};
    }
    PAGODA_INLINE static F load_i8(const void *p) {
        const __m128i x = _mm_loadu_si128(static_cast<const __m128i *>(p));
        return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(x))};
    }
    PAGODA_INLINE static F load_power(const void *p) {  // see power_of_two
        const __m512i e = _mm512_cvtepu8_epi32(_mm_loadu_si128(static_cast<const __m128i *>(p)));
        const __m512i low = _mm512_add_epi32(e, _mm512_set1_epi32(1));
        const __m512i high = _mm512_sub_epi32(_mm512_slli_epi32(e, 2), _mm512_set1_epi32(4));
        return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_max_epi32(low, high), 21))};
    }
    PAGODA_INLINE static F load_u4(const void *p, int shift) {
        __m128i x = _mm_loadu_si128(static_cast<const __m128i *>(p));
        x = _mm_and_si128(_mm_srli_epi16(x, shift), _mm_set1_epi8(15));
        return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(x))};
    }
    PAGODA_INLINE static void store(float *p, const F &x) { _mm512_storeu_ps(p, x.v); }
    PAGODA_INLINE static void store_half(uint16_t *p, const F &x) {
        _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), _mm512_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT));
    }
    PAGODA_INLINE static F swap_pairs(const F &x) { return {_mm512_permute_ps(x.v, 0xb1)}; }
    PAGODA_INLINE static F add(const F &x, const F &y) { return {_mm512_add_ps(x.v, y.v)}; }
    PAGODA_INLINE static F sub(const F &x, const F &y) { return {_mm512_sub_ps(x.v, y.v)}; }
    PAGODA_INLINE static F mul(const F &x, const F &y) { return {_mm512_mul_ps(x.v, y.v)}; }
    PAGODA_INLINE static F div(const F &x, const F &y) { return {_mm512_div_ps(x.v, y.v)}; }
    PAGODA_INLINE static F max(const F &x, const F &y) { return {_mm512_max_ps(x.v, y.v)}; }
    PAGODA_INLINE static F min(const F &x, const F &y) { return {_mm512_min_ps(x.v, y.v)}; }
    PAGODA_INLINE static F abs(const F &x) { return {_mm512_abs_ps(x.v)}; }
    PAGODA_INLINE static F fma(const F &x, const F &y, const F &z) { return {_mm512_fmadd_ps(x.v, y.v, z.v)}; }
    PAGODA_INLINE static F round(const F &x) {
        return {_mm512_roundscale_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
    }
    PAGODA_INLINE static F pow2(const F &n) {
        const __m512i e = _mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127));
        return {_mm512_castsi512_ps(_mm512_slli_epi32(e, 23))};
    }
    PAGODA_INLINE static F below(const F &x, const F &limit, const F &yes, const F &no) {
        return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(x.v, limit.v, _CMP_LT_OQ), no.v, yes.v)};
    }
    PAGODA_INLINE static void store_i8(int8_t *p, const F &x) {
        _mm_storeu_si128(reinterpret_cast<__m128i *>(p), _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(x.v)));
    }
    PAGODA_INLINE static void store_i16(int16_t *p, const I &x) {
        _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), _mm512_cvtepi32_epi16(x.v));
    }
    PAGODA_INLINE static void store_even_lanes(void *p, const I &x) {
        _mm256_storeu_si256(static_cast<__m256i *>(p), _mm512_cvtepi64_epi32(x.v));
    }
    PAGODA_INLINE static void store_even_lanes(void *p, const F &x) { store_even_lanes(p, I{_mm512_castps_si512(x.v)}); }
    PAGODA_INLINE static void store_every_other(int16_t *p, const I &x) { _mm512_mask_storeu_epi16(p, 0x55555555, x.v); }
    PAGODA_INLINE static I zero_int() { return {_mm512_setzero_si512()}; }
    PAGODA_INLINE static B pair(const int16_t *p) { return {broadcast4(p)}; }
    PAGODA_INLINE static I add_pairs(const I &sum, const B &a, const B &b) { return {_mm512_dpwssd_epi32(sum.v, a.v, b.v)}; }
    PAGODA_INLINE static uint32_t factor(int x) { return float_to_bits(static_cast<float>(x)); }
    PAGODA_INLINE static I round_int(const F &x) { return {_mm512_cvtps_epi32(x.v)}; }
    // A quad's low bytes (signed), then its high ones.
    PAGODA_INLINE static void store_quads(uint8_t *p, const I &x) {
        const __m128i low = _mm512_cvtepi32_epi8(x.v);
        const __m128i high = _mm512_cvtepi32_epi8(_mm512_srai_epi32(_mm512_add_epi32(x.v, _mm512_set1_epi32(128)), 8));
        _mm_storeu_si128(reinterpret_cast<__m128i *>(p), _mm_unpacklo_epi32(low, high));
        _mm_storeu_si128(reinterpret_cast<__m128i *>(p + 16), _mm_unpackhi_epi32(low, high));
    }
    PAGODA_INLINE static int32_t sum_int(const I &x) { return _mm512_reduce_add_epi32(x.v); }
    // 1 / x to about 1 ulp, for normal x whose inverse is normal; 0 where it is not.
    PAGODA_INLINE static F reciprocal(const F &x) {
        const __m512 near = _mm512_rcp14_ps(x.v);
        return {_mm512_fmadd_ps(_mm512_fnmadd_ps(x.v, near, _mm512_set1_ps(1.0f)), near, near)};
    }
    PAGODA_INLINE static F times_pow2(const F &x, const F &n) { return {_mm512_scalef_ps(x.v, n.v)}; }
    // fn of the lanes of each of 16 vectors, side by side.
    template <class Fn>
    PAGODA_INLINE static __m512 fold_each(const __m512 (&x)[16], Fn fn) {
        const auto halves = [&](int i, int j) {
            return fn(_mm512_shuffle_f32x4(x[i], x[j], 0x44), _mm512_shuffle_f32x4(x[i], x[j], 0xee));
        };
        __m512 quarters[4], pairs[2];
        for (int i = 0; i < 4; ++i) {
            const __m512 low = halves(i, i + 4), high = halves(i + 8, i + 12);
            quarters[i] = fn(_mm512_shuffle_f32x4(low, high, 0x88), _mm512_shuffle_f32x4(low, high, 0xdd));
        }
        for (int i = 0; i < 2; ++i)
            pairs[i] = fn(_mm512_unpacklo_ps(quarters[2 * i], quarters[2 * i + 1]),
                          _mm512_unpackhi_ps(quarters[2 * i], quarters[2 * i + 1]));
        const __m512d first = _mm512_castps_pd(pairs[0]), second = _mm512_castps_pd(pairs[1]);
        return fn(_mm512_castpd_ps(_mm512_unpacklo_pd(first, second)), _mm512_castpd_ps(_mm512_unpackhi_pd(first, second)));
    }
    PAGODA_INLINE static F largest_of_each(const F (&x)[16]) {
        __m512 v[16];
        for (int i = 0; i < 16; ++i) v[i] = x[i].v;
        return {fold_each(v, [](__m512 a, __m512 b) { return _mm512_max_ps(a, b); })};
    }
    PAGODA_INLINE static I sum_of_each(const I (&x)[16]) {
        __m512 v[16];
        for (int i = 0; i < 16; ++i) v[i] = _mm512_castsi512_ps(x[i].v);
        return {_mm512_castps_si512(fold_each(v, [](__m512 a, __m512 b) {
            return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a), _mm512_castps_si512(b)));
        }))};
    }
    // Lanes i and i + 8, then i and i + 4, …: the same tree as over plain lanes.
    PAGODA_INLINE static float reduce_add(const F &x) {
        const __m256 s8 = _mm256_add_ps(_mm512_castps512_ps256(x.v), _mm512_extractf32x8_ps(x.v, 1));
        const __m128 s4 = _mm_add_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
        const __m128 s2 = _mm_add_ps(s4, _mm_movehl_ps(s4, s4));
        return _mm_cvtss_f32(_mm_add_ss(s2, _mm_movehdup_ps(s2)));
    }
    PAGODA_INLINE static float reduce_max(const F &x) {
        const __m256 s8 = _mm256_max_ps(_mm512_castps512_ps256(x.v), _mm512_extractf32x8_ps(x.v, 1));
        const __m128 s4 = _mm_max_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
        const __m128 s2 = _mm_max_ps(s4, _mm_movehl_ps(s4, s4));
        return _mm_cvtss_f32(_mm_max_ss(s2, _mm_movehdup_ps(s2)));
    }
    PAGODA_INLINE static F to_float(const I &x) { return {_mm512_cvtepi32_ps(x.v)}; }
    PAGODA_INLINE static I sub_shifted(const I &x, const int32_t *y, int shift) {
        return {_mm512_sub_epi32(x.v, _mm512_slli_epi32(_mm512_set1_epi32(*y), static_cast<unsigned>(shift)))};
    }

    PAGODA_INLINE static I sixteen_times(const I &x, const I &y) {
        return {_mm512_add_epi32(_mm512_slli_epi32(x.v, 4), y.v)};
    }

    PAGODA_INLINE static B load_b(const void *p) { return {_mm512_loadu_si512(p)}; }
    PAGODA_INLINE static void store_b(void *p, const B &x) { _mm512_storeu_si512(p, x.v); }
    template <int Right, int Left>
    PAGODA_INLINE static B field(const B &x, uint8_t mask) {
        __m512i v = x.v;
        if constexpr (Right > Left) v = _mm512_srli_epi16(v, Right - Left);
        if constexpr (Left > Right) v = _mm512_slli_epi16(v, Left - Right);
        return {_mm512_and_si512(v, _mm512_set1_epi8(static_cast<char>(mask)))};
    }
    PAGODA_INLINE static B or_b(const B &x, const B &y) { return {_mm512_or_si512(x.v, y.v)}; }
    PAGODA_INLINE static B lookup(const int8_t *table, const B &x) {
        const __m512i t = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i *>(table)));
        return {_mm512_shuffle_epi8(t, x.v)};
    }

    PAGODA_INLINE static W load_w(const void *p) { return load_b(p); }
    PAGODA_INLINE static void store_w(void *p, const W &x) { store_b(p, x); }
    template <int P, bool Signed, int Offset>
    PAGODA_INLINE static W part(const B &x) {
        static_assert(Offset == 0);
        if constexpr (Signed) return {_mm512_xor_si512(x.v, _mm512_set1_epi8(static_cast<char>(0x80)))};
        return x;
    }
    PAGODA_INLINE static __m512i broadcast4(const void *p) {
        int32_t v;
        std::memcpy(&v, p, 4);
        return _mm512_set1_epi32(v);
    }

    struct Dot {
        __m512i low, high;
        template <int J, int P>
        PAGODA_INLINE void mac(const W &w, const uint8_t *quads) {
            const __m512i zero = _mm512_setzero_si512();
            low = _mm512_dpbusd_epi32(J == 0 ? zero : low, w.v, broadcast4(quads + 8 * J));
            high = _mm512_dpbusd_epi32(J == 0 ? zero : high, w.v, broadcast4(quads + 8 * J + 4));
        }
        PAGODA_INLINE I sum() const { return {_mm512_add_epi32(_mm512_slli_epi32(high, 8), low)}; }
    };

    struct Burst {
        __m512i acc = _mm512_setzero_si512();
        template <int J>
        PAGODA_INLINE void mac(const B &w, const int8_t *token) {
            acc = _mm512_dpbusd_epi32(acc, w.v, broadcast4(token));
        }
        PAGODA_INLINE I sum() const { return {acc}; }
    };
};

// The same with activations of 8 bits.
struct Avx512Bytes : Avx512 {
    static constexpr int kTile = 6;
    static constexpr int kBits = 8;
    static constexpr bool takes(int) { return true; }
    template <int Most, int Quads>
    struct Dot {
        __m512i acc;
        template <int J, int P>
        PAGODA_INLINE void mac(const W &w, const uint8_t *quads, uint32_t) {
            acc = _mm512_dpbusd_epi32(J == 0 ? _mm512_setzero_si512() : acc, w.v, broadcast4(quads + 4 * J));
        }
        PAGODA_INLINE I sum() const { return {acc}; }
    };
};

}  // namespace pagoda
