#include "simd_avx512.h"

#include "kernels_lora.inl"

namespace pagoda {

const LoraKernels *lora_kernels_avx512() { return make_lora_kernels<Avx512>(); }

}  // namespace pagoda
