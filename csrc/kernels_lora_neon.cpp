#include "simd_neon.h"

#include "kernels_lora.inl"

namespace pagoda {

const LoraKernels *lora_kernels_neon() { return make_lora_kernels<Neon>(); }

}  // namespace pagoda
