#include "simd_avx2.h"

#include "quantize.inl"

namespace pagoda {

EncodeFn encode_avx2() { return &encode<Avx2>; }

}  // namespace pagoda
