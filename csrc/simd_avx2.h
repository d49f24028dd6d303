// 16 lanes as two 256-bit registers: AVX2, FMA and F16C.
#pragma once

#include <immintrin.h>

#include "kernels.h"

namespace pagoda {

struct Avx2 {
    static constexpr const char *kName = "avx2";
    static constexpr int kTile = 6;
    static constexpr int kDirectTile = 4;
    static constexpr int kPanels = 1;
    static constexpr int kFloatTile = 6;
    static constexpr int kRows = 6;
    static constexpr int kCodeRows = 6;
    static constexpr int kCodeSums = 6;
    static constexpr int kUnpackTokens = 12;
    static constexpr bool kSigned = true;
    static constexpr int kParts = 2;  // even columns, odd columns
    static constexpr bool kWide = true;
    static constexpr int kBits = 16;
    static constexpr bool kWeighed = true;

    struct F { __m256 a, b; };
    struct I { __m256i a, b; };
    struct B { __m256i a, b; };
    struct W { __m256i a, b; };  // 16-bit codes of two columns

    PAGODA_INLINE static F zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
    PAGODA_INLINE static F set1(float x) {
        const __m256 v = _mm256_set1_ps(x);
        return {v, v};
    }
    PAGODA_INLINE static F load(const float *p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
    PAGODA_INLINE static F load_half(const void *p) {
        const __m128i *h = static_cast<const __m128i *>(p);
        return {_mm256_cvtph_ps(_mm_loadu_si128(h)), _mm256_cvtph_ps(_mm_loadu_si128(h + 1))};
    }
    PAGODA_INLINE static F load_bfloat(const void *p) {
        const __m128i *h = static_cast<const __m128i *>(p);
        const auto widen = [](__m128i x) {
            return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16));
        };
        return {widen(_mm_loadu_si128(h)), widen(_mm_loadu_si128(h + 1))};
    }
    PAGODA_INLINE static F load_i8(const void *p) {
        const __m128i x = _mm_loadu_si128(static_cast<const __m128i *>(p));
        return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(x)),
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_unpackhi_epi64(x, x)))};
    }
    PAGODA_INLINE static __m256 powers(const __m128i &bytes) {
        const __m256i e = _mm256_cvtepu8_epi32(bytes);
        const __m256i low = _mm256_add_epi32(e, _mm256_set1_epi32(1));
        const __m256i high = _mm256_sub_epi32(_mm256_slli_epi32(e, 2), _mm256_set1_epi32(4));
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_max_epi32(low, high), 21));
    }
    PAGODA_INLINE static F load_power(const void *p) {  // see power_of_two
        const __m128i x = _mm_loadu_si128(static_cast<const __m128i *>(p));
        return {powers(x), powers(_mm_unpackhi_epi64(x, x))};
    }
    PAGODA_INLINE static F load_u4(const void *p, int shift) {
        __m128i x = _mm_loadu_si128(static_cast<const __m128i *>(p));
        x = _mm_and_si128(_mm_srli_epi16(x, shift), _mm_set1_epi8(15));
        return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(x)),
                _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_unpackhi_epi64(x, x)))};
    }
    PAGODA_INLINE static void store(float *p, const F &x) {
        _mm256_storeu_ps(p, x.a);
        _mm256_storeu_ps(p + 8, x.b);
    }
    PAGODA_INLINE static void store_half(uint16_t *p, const F &x) {
        __m128i *h = reinterpret_cast<__m128i *>(p);
        _mm_storeu_si128(h, _mm256_cvtps_ph(x.a, _MM_FROUND_TO_NEAREST_INT));
        _mm_storeu_si128(h + 1, _mm256_cvtps_ph(x.b, _MM_FROUND_TO_NEAREST_INT));
    }
    PAGODA_INLINE static F swap_pairs(const F &x) { return {_mm256_permute_ps(x.a, 0xb1), _mm256_permute_ps(x.b, 0xb1)}; }
    PAGODA_INLINE static F add(const F &x, const F &y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
    PAGODA_INLINE static F sub(const F &x, const F &y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
    PAGODA_INLINE static F mul(const F &x, const F &y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
    PAGODA_INLINE static F div(const F &x, const F &y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
    PAGODA_INLINE static F max(const F &x, const F &y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
    PAGODA_INLINE static F min(const F &x, const F &y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
    PAGODA_INLINE static F abs(const F &x) {
        const __m256 sign = _mm256_set1_ps(-0.0f);
        return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
    }
    PAGODA_INLINE static F fma(const F &x, const F &y, const F &z) {
        return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
    }
    PAGODA_INLINE static F round(const F &x) {
        constexpr int mode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        return {_mm256_round_ps(x.a, mode), _mm256_round_ps(x.b, mode)};
    }
    PAGODA_INLINE static F pow2(const F &n) {
        const auto one = [](__m256 v) {
            const __m256i e = _mm256_add_epi32(_mm256_cvtps_epi32(v), _mm256_set1_epi32(127));
            return _mm256_castsi256_ps(_mm256_slli_epi32(e, 23));
        };
        return {one(n.a), one(n.b)};
    }
    PAGODA_INLINE static F pow2_of_low_bits(const F &x) {  // 2^(n - 127), or 0 of 0, of the n in the low bits of x
        return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(x.a), 23)),
                _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(x.b), 23))};
    }
    PAGODA_INLINE static F below(const F &x, const F &limit, const F &yes, const F &no) {
        return {_mm256_blendv_ps(no.a, yes.a, _mm256_cmp_ps(x.a, limit.a, _CMP_LT_OQ)),
                _mm256_blendv_ps(no.b, yes.b, _mm256_cmp_ps(x.b, limit.b, _CMP_LT_OQ))};
    }
    PAGODA_INLINE static void store_i8(int8_t *p, const F &x) {
        const __m256i w = _mm256_permute4x64_epi64(
            _mm256_packs_epi32(_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)), 0xd8);
        const __m128i r = _mm_packs_epi16(_mm256_castsi256_si128(w), _mm256_extracti128_si256(w, 1));
        _mm_storeu_si128(reinterpret_cast<__m128i *>(p), r);
    }
    PAGODA_INLINE static void store_i16(int16_t *p, const I &x) {
        const __m256i w = _mm256_permute4x64_epi64(_mm256_packs_epi32(x.a, x.b), 0xd8);
        _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), w);
    }
    PAGODA_INLINE static void store_every_other(int16_t *p, const I &x) {
        int16_t codes[16];
        store_i16(codes, x);
        for (int i = 0; i < 16; ++i) p[2 * i] = codes[i];
    }
    PAGODA_INLINE static I zero_int() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
    PAGODA_INLINE static B pair(const int16_t *p) {
        const __m256i x = broadcast4(p);
        return {x, x};
    }
    PAGODA_INLINE static I add_pairs(const I &sum, const B &a, const B &b) {
        I r{_mm256_add_epi32(sum.a, _mm256_madd_epi16(a.a, b.a)), _mm256_add_epi32(sum.b, _mm256_madd_epi16(a.b, b.b))};
        asm("" : "+x"(r.a), "+x"(r.b));  // each sum in a register of its own
        return r;
    }
    PAGODA_INLINE static uint32_t factor(int x) { return static_cast<uint32_t>(x) * 0x10001u; }  // twice, in 16 bits
    PAGODA_INLINE static I round_int(const F &x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
    // A quad's 16-bit codes, even columns first.
    PAGODA_INLINE static void store_quads(uint8_t *p, const I &x) {
        const __m256i w = _mm256_permute4x64_epi64(_mm256_packs_epi32(x.a, x.b), 0xd8);
        _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), _mm256_shufflehi_epi16(_mm256_shufflelo_epi16(w, 0xd8), 0xd8));
    }
    PAGODA_INLINE static int32_t sum_int(const I &x) {
        const __m256i s8 = _mm256_add_epi32(x.a, x.b);
        const __m128i s4 = _mm_add_epi32(_mm256_castsi256_si128(s8), _mm256_extracti128_si256(s8, 1));
        const __m128i s2 = _mm_add_epi32(s4, _mm_shuffle_epi32(s4, 0x4e));
        return _mm_cvtsi128_si32(_mm_add_epi32(s2, _mm_shuffle_epi32(s2, 0xb1)));
    }
    // Lanes i and i + 8, then i and i + 4, …: the same tree as over plain lanes.
    PAGODA_INLINE static float reduce_add(const F &x) {
        const __m256 s8 = _mm256_add_ps(x.a, x.b);
        const __m128 s4 = _mm_add_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
        const __m128 s2 = _mm_add_ps(s4, _mm_movehl_ps(s4, s4));
        return _mm_cvtss_f32(_mm_add_ss(s2, _mm_movehdup_ps(s2)));
    }
    PAGODA_INLINE static float reduce_max(const F &x) {
        const __m256 s8 = _mm256_max_ps(x.a, x.b);
        const __m128 s4 = _mm_max_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
        const __m128 s2 = _mm_max_ps(s4, _mm_movehl_ps(s4, s4));
        return _mm_cvtss_f32(_mm_max_ss(s2, _mm_movehdup_ps(s2)));
    }
    PAGODA_INLINE static F to_float(const I &x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
    PAGODA_INLINE static I sub_shifted(const I &x, const int32_t *y, int shift) {
        const __m256i v = _mm256_slli_epi32(_mm256_set1_epi32(*y), shift);
        return {_mm256_sub_epi32(x.a, v), _mm256_sub_epi32(x.b, v)};
    }

    PAGODA_INLINE static B load_b(const void *p) {
        const __m256i *v = static_cast<const __m256i *>(p);
        return {_mm256_loadu_si256(v), _mm256_loadu_si256(v + 1)};
    }
    PAGODA_INLINE static void store_b(void *p, const B &x) {
        __m256i *v = static_cast<__m256i *>(p);
        _mm256_storeu_si256(v, x.a);
        _mm256_storeu_si256(v + 1, x.b);
    }
    template <int Right, int Left>
    PAGODA_INLINE static B field(const B &x, uint8_t mask) {
        const __m256i m = _mm256_set1_epi8(static_cast<char>(mask));
        const auto one = [&](__m256i v) {
            if constexpr (Right > Left) v = _mm256_srli_epi16(v, Right - Left);
            if constexpr (Left > Right) v = _mm256_slli_epi16(v, Left - Right);
            return _mm256_and_si256(v, m);
        };
        return {one(x.a), one(x.b)};
    }
    PAGODA_INLINE static B or_b(const B &x, const B &y) {
        return {_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)};
    }
    PAGODA_INLINE static B lookup(const int8_t *table, const B &x) {
        const __m256i t = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i *>(table)));
        return {_mm256_shuffle_epi8(t, x.a), _mm256_shuffle_epi8(t, x.b)};
    }

    PAGODA_INLINE static W load_w(const void *p) {
        const B x = load_b(p);
        return {x.a, x.b};
    }
    PAGODA_INLINE static void store_w(void *p, const W &x) { store_b(p, {x.a, x.b}); }
    template <int P, bool Signed, int Offset>
    PAGODA_INLINE static W part(const B &x) {
        const auto one = [](__m256i v) {
            if constexpr (P == 1)
                v = Signed ? _mm256_srai_epi16(v, 8) : _mm256_srli_epi16(v, 8);
            else
                v = Signed ? _mm256_srai_epi16(_mm256_slli_epi16(v, 8), 8) : _mm256_and_si256(v, _mm256_set1_epi16(0xff));
            return Offset == 0 ? v : _mm256_sub_epi16(v, _mm256_set1_epi16(Offset));
        };
        return {one(x.a), one(x.b)};
    }
    // The same of codes in 16 bits, given as their bytes.
    template <int P>
    PAGODA_INLINE static W wide_part(const B &high, const B &low) {
        const auto one = [](__m256i h, __m256i l) {
            const __m256i mask = _mm256_set1_epi16(0xff);
            if constexpr (P == 1) return _mm256_or_si256(_mm256_andnot_si256(mask, h), _mm256_srli_epi16(l, 8));
            else return _mm256_or_si256(_mm256_slli_epi16(h, 8), _mm256_and_si256(l, mask));
        };
        return {one(high.a, low.a), one(high.b, low.b)};
    }
    PAGODA_INLINE static __m256i broadcast4(const void *p) {
        int32_t v;
        std::memcpy(&v, p, 4);
        return _mm256_set1_epi32(v);
    }

    struct Dot {
        __m256i acc_a, acc_b;
        template <int J, int P>
        PAGODA_INLINE void mac(const W &w, const uint8_t *quads) {
            const __m256i x = broadcast4(quads + 8 * J + 4 * P);
            const __m256i a = _mm256_madd_epi16(w.a, x), b = _mm256_madd_epi16(w.b, x);
            acc_a = J + P == 0 ? a : _mm256_add_epi32(acc_a, a);
            acc_b = J + P == 0 ? b : _mm256_add_epi32(acc_b, b);
        }
        PAGODA_INLINE I sum() const { return {acc_a, acc_b}; }
    };

    struct Burst {  // sums of eight products fit in 16 bits
        __m256i a, b;
        template <int J>
        PAGODA_INLINE void mac(const B &w, const int8_t *token) {
            const __m256i x = broadcast4(token);
            const __m256i pa = _mm256_maddubs_epi16(w.a, x), pb = _mm256_maddubs_epi16(w.b, x);
            a = J == 0 ? pa : _mm256_add_epi16(a, pa);
            b = J == 0 ? pb : _mm256_add_epi16(b, pb);
        }
        PAGODA_INLINE I sum() const {
            const __m256i ones = _mm256_set1_epi16(1);
            return {_mm256_madd_epi16(a, ones), _mm256_madd_epi16(b, ones)};
        }
    };
};

// The same with activations of 8 bits, for unsigned codes: signed ones need two more instructions, and 16 bits are as fast.
struct Avx2Bytes : Avx2 {
    static constexpr int kParts = 1;
    static constexpr bool kSigned = false;
    static constexpr bool kWide = false;
    static constexpr int kBits = 8;
    using W = B;
    PAGODA_INLINE static W load_w(const void *p) { return load_b(p); }
    PAGODA_INLINE static void store_w(void *p, const W &x) { store_b(p, x); }
    template <int P, bool Signed, int Offset>
    PAGODA_INLINE static W part(const B &x) {
        static_assert(!Signed && Offset == 0);
        return x;
    }
    static constexpr bool takes(int most) { return most > 0; }  // codes up to it; -1: signed ones

    // Of at most Quads quads and codes up to Most: as many products as fit are added in 16 bits, then multiplied by the
    // factor.
    template <int Most, int Quads>
    struct Dot {
        static constexpr int kTogether = 32767 / (2 * kLargestByte * Most);
        __m256i part_a, part_b, acc_a, acc_b;
        template <int J, int P>
        PAGODA_INLINE void mac(const W &w, const uint8_t *quads, uint32_t factor) {
            const __m256i x = broadcast4(quads + 4 * J);
            const __m256i a = _mm256_maddubs_epi16(w.a, x), b = _mm256_maddubs_epi16(w.b, x);
            part_a = J % kTogether == 0 ? a : _mm256_add_epi16(part_a, a);
            part_b = J % kTogether == 0 ? b : _mm256_add_epi16(part_b, b);
            if constexpr ((J + 1) % kTogether == 0 || J + 1 == Quads) {
                const __m256i f = _mm256_set1_epi32(static_cast<int>(factor));
                const __m256i fa = _mm256_madd_epi16(part_a, f), fb = _mm256_madd_epi16(part_b, f);
                acc_a = J < kTogether ? fa : _mm256_add_epi32(acc_a, fa);
                acc_b = J < kTogether ? fb : _mm256_add_epi32(acc_b, fb);
            }
        }
        PAGODA_INLINE I sum() const { return {acc_a, acc_b}; }
    };
};

}  // namespace pagoda
