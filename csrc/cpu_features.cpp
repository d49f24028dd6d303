// Which kernel tables this machine can run.
#include "kernels.h"

#if defined(__x86_64__) && defined(PAGODA_AVX)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#ifndef HWCAP_ASIMDDP  // older than the C library's headers
#define HWCAP_ASIMDDP (1 << 20)
#endif
#endif

namespace pagoda {

#if defined(__x86_64__) && defined(PAGODA_AVX)
// Not every compiler's __builtin_cpu_supports knows f16c.
static bool has_f16c() {
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C) != 0;
}
#endif

std::vector<const Kernels *> available_kernels() {
    std::vector<const Kernels *> found;
#if defined(__x86_64__) && defined(PAGODA_AVX)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512vnni");
    if (avx512) found.push_back(kernels_avx512());
    if (avx2) found.push_back(kernels_avx2());
#elif defined(__aarch64__) && defined(PAGODA_NEON)
#if defined(__linux__)
    if ((getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0) found.push_back(kernels_neon());
#else
    found.push_back(kernels_neon());  // every Apple silicon has dot products
#endif
#endif
    found.push_back(kernels_generic());
    return found;
}

}  // namespace pagoda
