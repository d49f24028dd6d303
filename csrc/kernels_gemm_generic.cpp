#include "simd_generic.h"

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

void set_gemms_generic(Kernels &k) {
    set_gemms<Generic>(k);
    set_unpackers<Generic>(k);
}
}  // namespace pagoda
