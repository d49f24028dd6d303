#include "simd_generic.h"

#include <utility>

#include "kernels.h"

namespace pagoda {
namespace {
#include "tiles.inl"
#include "kernels_gemm.inl"
}  // namespace

void set_byte_gemms_generic(Kernels &k) { set_byte_gemms<GenericBytes>(k); }
}  // namespace pagoda
