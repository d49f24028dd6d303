#include "simd_generic.h"

#include "kernels.inl"

namespace pagoda {

void set_gemms_generic(Kernels &);
void set_byte_gemms_generic(Kernels &);

const Kernels *kernels_generic() {
    static const Kernels table = [] {
        Kernels k = make_kernels<Generic>();
        set_gemms_generic(k);
        set_byte_gemms_generic(k);
        return k;
    }();
    return &table;
}

}  // namespace pagoda
