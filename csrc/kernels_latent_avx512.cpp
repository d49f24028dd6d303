#include "simd_avx512.h"

#include "kernels_latent.inl"

namespace pagoda {

namespace {

struct Avx512Apart {
    // Of codes of two tokens in turn: pairs of the one, then of the other.
    PAGODA_INLINE static Avx512::B apart(const Avx512::B &x) {
        const __m512i order =
            _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15));
        return {_mm512_shuffle_epi8(x.v, order)};
    }
    // The sum of the even lanes, and of the odd ones.
    PAGODA_INLINE static void sums(const Avx512::I &x, int32_t *out) {
        const __m256i both = _mm256_add_epi32(_mm512_castsi512_si256(x.v), _mm512_extracti64x4_epi64(x.v, 1));
        const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
        _mm_storel_epi64(reinterpret_cast<__m128i *>(out), _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e)));
    }
};

}  // namespace

const LatentKernels *latent_kernels_avx512() { return make_latent_kernels<Avx512, Avx512Apart>(); }

}  // namespace pagoda
