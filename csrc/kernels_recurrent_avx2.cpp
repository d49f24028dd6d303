#include "simd_avx2.h"

#include "kernels_recurrent.inl"

namespace pagoda {

const RecurrentKernels *recurrent_kernels_avx2() { return make_recurrent_kernels<Avx2>(); }

}  // namespace pagoda
