#include "simd_generic.h"

#include <utility>

#include "kernels.h"

namespace pagoda {
namespace {
#include "tiles.inl"
#include "kernels_gemm.inl"
}  // namespace

void set_gemms_generic(Kernels &k) { set_gemms<Generic>(k); }
}  // namespace pagoda
