#include "simd_avx512.h"

#include "kernels.inl"

namespace pagoda {

void set_gemms_avx512(Kernels &);
void set_byte_gemms_avx512(Kernels &);

const Kernels *kernels_avx512() {
    static const Kernels table = [] {
        Kernels k = make_kernels<Avx512>();
        set_gemms_avx512(k);
        set_byte_gemms_avx512(k);
        return k;
    }();
    return &table;
}

}  // namespace pagoda
