#include "simd_avx512.h"

#include "kernels.inl"

namespace pagoda {

void set_gemms_avx512(Kernels &);
void set_byte_gemms_avx512(Kernels &);
void set_bf16_gemms_avx512(Kernels &);

const Kernels *kernels_avx512() {
    static const Kernels table = [] {
        Kernels k = make_kernels<Avx512>();
        set_gemms_avx512(k);
        set_byte_gemms_avx512(k);
#ifdef PAGODA_BF16
        if (__builtin_cpu_supports("avx512bf16")) set_bf16_gemms_avx512(k);
#endif
        return k;
    }();
    return &table;
}

}  // namespace pagoda
