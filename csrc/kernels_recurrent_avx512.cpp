#include "simd_avx512.h"

#include "kernels_recurrent.inl"

namespace pagoda {

const RecurrentKernels *recurrent_kernels_avx512() { return make_recurrent_kernels<Avx512>(); }

}  // namespace pagoda
