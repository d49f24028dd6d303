#include "simd_avx512.h"

#include "kernels_lora.inl"

namespace pagoda {

namespace {

// 16 lanes of two 16-bit numbers.
struct Avx512Pairs {
    using I = Avx512::I;
    struct P { __m512i v; };
    PAGODA_INLINE static I zero() { return {_mm512_setzero_si512()}; }
    PAGODA_INLINE static P load(const uint8_t *bytes) {
        return {_mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(bytes)))};
    }
    PAGODA_INLINE static P set(int32_t pair) { return {_mm512_set1_epi32(pair)}; }
    PAGODA_INLINE static I add(const I &sum, const P &x, const P &y) { return {_mm512_dpwssd_epi32(sum.v, x.v, y.v)}; }
};

}  // namespace

const LoraKernels *lora_kernels_avx512() { return make_lora_kernels<Avx512, Avx512Pairs>(); }

}  // namespace pagoda
