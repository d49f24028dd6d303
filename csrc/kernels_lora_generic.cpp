#include "simd_generic.h"

#include "kernels_lora.inl"

namespace pagoda {

const LoraKernels *lora_kernels_generic() { return make_lora_kernels<Generic>(); }

}  // namespace pagoda
