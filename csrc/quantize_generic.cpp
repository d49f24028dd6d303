#include "simd_generic.h"

#include "quantize.inl"

namespace pagoda {

EncodeFn encode_generic() { return &encode<Generic>; }

}  // namespace pagoda
