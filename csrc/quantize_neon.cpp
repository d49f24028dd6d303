#include "simd_neon.h"

#include "quantize.inl"

namespace pagoda {

EncodeFn encode_neon() { return &encode<Neon>; }

}  // namespace pagoda
