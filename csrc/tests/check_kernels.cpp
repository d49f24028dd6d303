// Checks one instruction set's kernels (PAGODA_CHECK: generic, avx2, avx512 or neon) against plain double arithmetic.
// It is built apart from the extension, so that kernels that this machine cannot run can be checked in an emulator:
// see the Makefile.
#include "check.h"

#define PAGODA_CONCAT(a, b) a##b
#define PAGODA_TABLE(name) PAGODA_CONCAT(kernels_, name)
#define PAGODA_LATENT_TABLE(name) PAGODA_CONCAT(latent_kernels_, name)
#define PAGODA_LORA_TABLE(name) PAGODA_CONCAT(lora_kernels_, name)
#define PAGODA_RECURRENT_TABLE(name) PAGODA_CONCAT(recurrent_kernels_, name)

int main() {
    using namespace pagoda;
    const Kernels &k = *PAGODA_TABLE(PAGODA_CHECK)();
    std::printf("%s\n", k.name);
    int failed = check::check_rows(k) + check::check_gemm(k) + check::check_attend(k);
    failed += check::check_latent(*PAGODA_LATENT_TABLE(PAGODA_CHECK)());
    failed += check::check_recurrent(*PAGODA_RECURRENT_TABLE(PAGODA_CHECK)());
    return failed + check::check_lora(*PAGODA_LORA_TABLE(PAGODA_CHECK)()) > 0;
}
