#include "simd_generic.h"

#include <algorithm>
#include <utility>

#include "block_types.h"
#include "kernels.h"

namespace pagoda {
namespace {
#include "tiles.inl"
#include "kernels_gemm.inl"
}  // namespace

void set_gemms_generic(Kernels &k) { set_gemms<Generic>(k); }
}  // namespace pagoda
