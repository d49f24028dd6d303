#include "simd_generic.h"

#include "kernels_recurrent.inl"

namespace pagoda {

const RecurrentKernels *recurrent_kernels_generic() { return make_recurrent_kernels<Generic>(); }

}  // namespace pagoda
