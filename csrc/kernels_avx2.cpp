#include "simd_avx2.h"

#include "kernels.inl"

namespace pagoda {

void set_gemms_avx2(Kernels &);
void set_byte_gemms_avx2(Kernels &);

const Kernels *kernels_avx2() {
    static const Kernels table = [] {
        Kernels k = make_kernels<Avx2>();
        set_gemms_avx2(k);
        set_byte_gemms_avx2(k);
        return k;
    }();
    return &table;
}

}  // namespace pagoda
