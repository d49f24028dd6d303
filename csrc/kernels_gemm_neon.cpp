#include "simd_neon.h"

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

void set_gemms_neon(Kernels &k) {
    set_gemms<Neon>(k);
    set_unpackers<Neon>(k);
}
}  // namespace pagoda
