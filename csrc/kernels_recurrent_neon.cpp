#include "simd_neon.h"

#include "kernels_recurrent.inl"

namespace pagoda {

const RecurrentKernels *recurrent_kernels_neon() { return make_recurrent_kernels<Neon>(); }

}  // namespace pagoda
