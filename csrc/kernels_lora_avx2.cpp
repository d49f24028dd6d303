#include "simd_avx2.h"

#include "kernels_lora.inl"

namespace pagoda {

namespace {

// 16 lanes of two 16-bit numbers.
struct Avx2Pairs {
    using I = Avx2::I;
    struct P { __m256i a, b; };
    PAGODA_INLINE static I zero() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
    PAGODA_INLINE static P load(const uint8_t *bytes) {
        const auto *p = reinterpret_cast<const __m128i *>(bytes);
        return {_mm256_cvtepi8_epi16(_mm_loadu_si128(p)), _mm256_cvtepi8_epi16(_mm_loadu_si128(p + 1))};
    }
    PAGODA_INLINE static P set(int32_t pair) { return {_mm256_set1_epi32(pair), _mm256_set1_epi32(pair)}; }
    PAGODA_INLINE static I add(const I &sum, const P &x, const P &y) {
        return {_mm256_add_epi32(sum.a, _mm256_madd_epi16(x.a, y.a)), _mm256_add_epi32(sum.b, _mm256_madd_epi16(x.b, y.b))};
    }
};

}  // namespace

const LoraKernels *lora_kernels_avx2() { return make_lora_kernels<Avx2, Avx2Pairs>(); }

}  // namespace pagoda
