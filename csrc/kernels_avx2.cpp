#include "simd_avx2.h"

#include "kernels.inl"

namespace pagoda {
const Kernels *kernels_avx2() {
    static const Kernels table = make_kernels<Avx2>();
    return &table;
}
}  // namespace pagoda
