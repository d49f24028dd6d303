#include "simd_avx512.h"

#include <algorithm>
#include <utility>

#include "block_types.h"
#include "kernels.h"

namespace pagoda {
namespace {
#include "tiles.inl"
#include "kernels_gemm.inl"
}  // namespace

void set_byte_gemms_avx512(Kernels &k) { set_byte_gemms<Avx512Bytes>(k); }
}  // namespace pagoda
