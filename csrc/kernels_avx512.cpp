#include "simd_avx512.h"

#include "kernels.inl"

namespace pagoda {
const Kernels *kernels_avx512() {
    static const Kernels table = make_kernels<Avx512>();
    return &table;
}
}  // namespace pagoda
