#include "simd_avx512.h"

#include "quantize.inl"

namespace pagoda {

EncodeFn encode_avx512() { return &encode<Avx512>; }

}  // namespace pagoda
