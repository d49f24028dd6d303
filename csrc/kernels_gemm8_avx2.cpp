#include "simd_avx2.h"

#include <algorithm>
#include <utility>

#include "block_types.h"
#include "kernels.h"

namespace pagoda {
namespace {
#include "tiles.inl"
#include "kernels_gemm.inl"
}  // namespace

void set_byte_gemms_avx2(Kernels &k) { set_byte_gemms<Avx2Bytes>(k); }
}  // namespace pagoda
