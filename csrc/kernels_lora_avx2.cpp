#include "simd_avx2.h"

#include "kernels_lora.inl"

namespace pagoda {

const LoraKernels *lora_kernels_avx2() { return make_lora_kernels<Avx2>(); }

}  // namespace pagoda
