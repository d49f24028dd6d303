#include "simd_generic.h"

#include "kernels.inl"

namespace pagoda {
const Kernels *kernels_generic() {
    static const Kernels table = make_kernels<Generic>();
    return &table;
}
}  // namespace pagoda
