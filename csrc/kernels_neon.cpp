#include "simd_neon.h"

#include "kernels.inl"

namespace pagoda {

void set_gemms_neon(Kernels &);
void set_byte_gemms_neon(Kernels &);

const Kernels *kernels_neon() {
    static const Kernels table = [] {
        Kernels k = make_kernels<Neon>();
        set_gemms_neon(k);
        set_byte_gemms_neon(k);
        return k;
    }();
    return &table;
}

}  // namespace pagoda
