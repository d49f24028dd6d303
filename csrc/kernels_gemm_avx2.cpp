#include "simd_avx2.h"

#include <algorithm>
#include <utility>

#include "block_types.h"
#include "kernels.h"

namespace pagoda {
namespace {
#include "tiles.inl"
#include "kernels_gemm.inl"
#include "kernels_unpack.inl"
}  // namespace

void set_gemms_avx2(Kernels &k) {
    set_gemms<Avx2>(k);
    set_unpackers<Avx2>(k);
}
}  // namespace pagoda
