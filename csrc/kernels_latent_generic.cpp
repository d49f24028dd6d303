#include <cstring>

#include "simd_generic.h"

#include "kernels_latent.inl"

namespace pagoda {

namespace {

struct GenericApart {
    // Of codes of two tokens in turn: pairs of the one, then of the other.
    PAGODA_INLINE static Generic::B apart(const Generic::B &x) {
        Generic::B r;
        for (int i = 0; i < 64; i += 8)
            for (int half = 0; half < 4; ++half) std::memcpy(r.v + i + 2 * (half % 2 * 2 + half / 2), x.v + i + 2 * half, 2);
        return r;
    }
    // The sum of the even lanes, and of the odd ones.
    PAGODA_INLINE static void sums(const Generic::I &x, int32_t *out) {
        out[0] = out[1] = 0;
        for (int i = 0; i < 16; ++i) out[i % 2] += x.v[i];
    }
};

}  // namespace

const LatentKernels *latent_kernels_generic() { return make_latent_kernels<Generic, GenericApart>(); }

}  // namespace pagoda
