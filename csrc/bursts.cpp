#include "bursts.h"

#include "common.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#if defined(__linux__)
#include <sys/auxv.h>
#ifndef HWCAP2_BF16  // older than the C library's headers
#define HWCAP2_BF16 (1 << 14)
#endif
#endif
#endif

namespace pagoda {
namespace {

// From memory, so that no compiler computes ahead. Chains must outnumber latency × pipes: 4 × 2 on x86, 4 × 4 on Arm.
[[maybe_unused]] volatile float seed = 0.5f;

#if defined(__x86_64__)

__attribute__((target("avx512f,avx512bf16"))) float avx512_bf16(int64_t rounds) {
    __m512 x[16];
    const __m512 ones = _mm512_set1_ps(seed);
    __m512bh a;
    std::memcpy(&a, &ones, sizeof(a));
    for (auto &v : x) v = _mm512_set1_ps(seed);
    for (int64_t round = 0; round < rounds; ++round)
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) x[i] = _mm512_dpbf16_ps(x[i], a, a);
    __m512 sum = x[0];
    for (int i = 1; i < 16; ++i) sum = _mm512_add_ps(sum, x[i]);
    return _mm512_cvtss_f32(sum);
}

bool has_bf16() {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512bf16");
}

#elif defined(__aarch64__) && defined(__linux__)

// Written out, because what a compiler must be told to take BFMMLA differs; the machine is asked before it runs.
float neon_bf16(int64_t rounds) {
    float32x4_t x[20];
    const float32x4_t a = vdupq_n_f32(seed);
    for (auto &v : x) v = vdupq_n_f32(seed);
    for (int64_t round = 0; round < rounds; ++round)
#pragma GCC unroll 20
        for (int i = 0; i < 20; ++i)
            asm volatile(".arch armv8.6-a+bf16\n\tbfmmla %0.4s, %1.8h, %1.8h" : "+w"(x[i]) : "w"(a));
    float32x4_t sum = x[0];
    for (int i = 1; i < 20; ++i) sum = vaddq_f32(sum, x[i]);
    return vaddvq_f32(sum);
}

bool has_bf16() { return (getauxval(AT_HWCAP2) & HWCAP2_BF16) != 0; }

#endif

}  // namespace

Burst bf16_burst() {
#if defined(__x86_64__)
    if (has_bf16()) return {16 * 32 * 2, avx512_bf16};
#elif defined(__aarch64__) && defined(__linux__)
    if (has_bf16()) return {20 * 16 * 2, neon_bf16};
#endif
    return {0, nullptr};
}

}  // namespace pagoda
