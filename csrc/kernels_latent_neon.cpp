#include "simd_neon.h"

#include "kernels_latent.inl"

namespace pagoda {

namespace {

struct NeonApart {
    // Of codes of two tokens in turn: pairs of the one, then of the other.
    PAGODA_INLINE static Neon::B apart(const Neon::B &x) {
        static const uint8_t kOrder[16] = {0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15};
        const uint8x16_t order = vld1q_u8(kOrder);
        return {vqtbl1q_u8(x.a, order), vqtbl1q_u8(x.b, order), vqtbl1q_u8(x.c, order), vqtbl1q_u8(x.d, order)};
    }
    // The sum of the even lanes, and of the odd ones.
    PAGODA_INLINE static void sums(const Neon::I &x, int32_t *out) {
        const int32x4_t four = vaddq_s32(vaddq_s32(x.a, x.b), vaddq_s32(x.c, x.d));
        vst1_s32(out, vadd_s32(vget_low_s32(four), vget_high_s32(four)));
    }
};

}  // namespace

const LatentKernels *latent_kernels_neon() { return make_latent_kernels<Neon, NeonApart>(); }

}  // namespace pagoda
