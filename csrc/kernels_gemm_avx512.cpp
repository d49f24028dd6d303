#include "simd_avx512.h"

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

void set_gemms_avx512(Kernels &k) {
    set_gemms<Avx512>(k);
    set_unpackers<Avx512>(k);
}
}  // namespace pagoda
