#include "simd_neon.h"

#include "kernels_lora.inl"

namespace pagoda {

namespace {

// 16 lanes of two 16-bit numbers.
struct NeonPairs {
    using I = Neon::I;
    struct P { int16x8_t a, b, c, d; };
    PAGODA_INLINE static I zero() { return Neon::zero_int(); }
    PAGODA_INLINE static P load(const uint8_t *bytes) {
        const int8x16_t low = vreinterpretq_s8_u8(vld1q_u8(bytes)), high = vreinterpretq_s8_u8(vld1q_u8(bytes + 16));
        return {vmovl_s8(vget_low_s8(low)), vmovl_high_s8(low), vmovl_s8(vget_low_s8(high)), vmovl_high_s8(high)};
    }
    PAGODA_INLINE static P set(int32_t pair) {
        const int16x8_t v = vreinterpretq_s16_s32(vdupq_n_s32(pair));
        return {v, v, v, v};
    }
    PAGODA_INLINE static int32x4_t products(int16x8_t x, int16x8_t y) {
        return vpaddq_s32(vmull_s16(vget_low_s16(x), vget_low_s16(y)), vmull_high_s16(x, y));
    }
    PAGODA_INLINE static I add(const I &sum, const P &x, const P &y) {
        return {vaddq_s32(sum.a, products(x.a, y.a)), vaddq_s32(sum.b, products(x.b, y.b)),
                vaddq_s32(sum.c, products(x.c, y.c)), vaddq_s32(sum.d, products(x.d, y.d))};
    }
};

}  // namespace

const LoraKernels *lora_kernels_neon() { return make_lora_kernels<Neon, NeonPairs>(); }

}  // namespace pagoda
