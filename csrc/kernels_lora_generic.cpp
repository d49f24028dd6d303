#include "simd_generic.h"

#include "kernels_lora.inl"

namespace pagoda {

namespace {

// 16 lanes of two 16-bit numbers.
struct GenericPairs {
    using I = Generic::I;
    struct P { int16_t v[32]; };
    static I zero() { return {}; }
    static P load(const uint8_t *bytes) {  // 32 signed ones
        P p;
        for (int i = 0; i < 32; ++i) p.v[i] = static_cast<int8_t>(bytes[i]);
        return p;
    }
    static P set(int32_t pair) {  // in every lane
        P p;
        for (int i = 0; i < 32; ++i) p.v[i] = static_cast<int16_t>(i % 2 ? pair >> 16 : pair);
        return p;
    }
    static I add(I sum, const P &x, const P &y) {  // the two products of each lane
        for (int i = 0; i < 16; ++i) sum.v[i] += x.v[2 * i] * y.v[2 * i] + x.v[2 * i + 1] * y.v[2 * i + 1];
        return sum;
    }
};

}  // namespace

const LoraKernels *lora_kernels_generic() { return make_lora_kernels<Generic, GenericPairs>(); }

}  // namespace pagoda
