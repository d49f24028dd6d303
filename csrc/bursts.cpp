#include "bursts.h"

#include "common.h"

#if defined(__x86_64__)
#include <immintrin.h>
#define PAGODA_TARGET(features) __attribute__((target(features)))
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

// The factors come from memory, so that no compiler computes ahead. Chains must outnumber latency × pipes: 4 × 2 on x86,
// 4 × 4 on Arm.
volatile float seed = 0.5f;

float generic_fp32(int64_t rounds) {
    float x[16], a = seed, b = seed;
    for (int i = 0; i < 16; ++i) x[i] = seed;
    for (int64_t round = 0; round < rounds; ++round)
        for (int i = 0; i < 16; ++i) x[i] = x[i] * a + b;
    float sum = 0;
    for (const float v : x) sum += v;
    return sum;
}

uint64_t generic_read(const uint8_t *data, size_t bytes) {
    uint64_t sum[8] = {};
    for (size_t at = 0; at < bytes; at += 64)
        for (int i = 0; i < 8; ++i) sum[i] += reinterpret_cast<const uint64_t *>(data + at)[i];
    uint64_t all = 0;
    for (const uint64_t s : sum) all += s;
    return all;
}

#if defined(__x86_64__)

PAGODA_TARGET("avx2,fma") float avx2_fp32(int64_t rounds) {
    __m256 x[12];
    const __m256 a = _mm256_set1_ps(seed), b = _mm256_set1_ps(seed);
    for (auto &v : x) v = _mm256_set1_ps(seed);
    for (int64_t round = 0; round < rounds; ++round)
#pragma GCC unroll 12
        for (int i = 0; i < 12; ++i) x[i] = _mm256_fmadd_ps(x[i], a, b);
    __m256 sum = x[0];
    for (int i = 1; i < 12; ++i) sum = _mm256_add_ps(sum, x[i]);
    return _mm256_cvtss_f32(sum);
}

PAGODA_TARGET("avx2") uint64_t avx2_read(const uint8_t *data, size_t bytes) {
    __m256i x[8];
    for (auto &v : x) v = _mm256_setzero_si256();
    for (size_t at = 0; at < bytes; at += 256)
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i)
            x[i] = _mm256_xor_si256(x[i], _mm256_load_si256(reinterpret_cast<const __m256i *>(data + at) + i));
    __m256i all = x[0];
    for (int i = 1; i < 8; ++i) all = _mm256_xor_si256(all, x[i]);
    return static_cast<uint64_t>(_mm256_extract_epi64(all, 0));
}

PAGODA_TARGET("avx512f") float avx512_fp32(int64_t rounds) {
    __m512 x[16];
    const __m512 a = _mm512_set1_ps(seed), b = _mm512_set1_ps(seed);
    for (auto &v : x) v = _mm512_set1_ps(seed);
    for (int64_t round = 0; round < rounds; ++round)
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) x[i] = _mm512_fmadd_ps(x[i], a, b);
    __m512 sum = x[0];
    for (int i = 1; i < 16; ++i) sum = _mm512_add_ps(sum, x[i]);
    return _mm512_cvtss_f32(sum);
}

PAGODA_TARGET("avx512f") uint64_t avx512_read(const uint8_t *data, size_t bytes) {
    __m512i x[8];
    for (auto &v : x) v = _mm512_setzero_si512();
    for (size_t at = 0; at < bytes; at += 512)
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) x[i] = _mm512_xor_si512(x[i], _mm512_load_si512(data + at + 64 * i));
    __m512i all = x[0];
    for (int i = 1; i < 8; ++i) all = _mm512_xor_si512(all, x[i]);
    alignas(64) uint64_t lanes[8];
    _mm512_store_si512(lanes, all);
    return lanes[0];
}

PAGODA_TARGET("avx512f,avx512bf16") float avx512_bf16(int64_t rounds) {
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

bool has(const char *feature) {
    __builtin_cpu_init();
    const auto is = [&](const char *name) { return std::strcmp(feature, name) == 0; };
    if (is("avx2")) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (is("avx512")) return __builtin_cpu_supports("avx512f");
    return __builtin_cpu_supports("avx512bf16");
}

#elif defined(__aarch64__)

float neon_fp32(int64_t rounds) {
    float32x4_t x[20];
    const float32x4_t a = vdupq_n_f32(seed), b = vdupq_n_f32(seed);
    for (auto &v : x) v = vdupq_n_f32(seed);
    for (int64_t round = 0; round < rounds; ++round)
#pragma GCC unroll 20
        for (int i = 0; i < 20; ++i) x[i] = vfmaq_f32(x[i], a, b);
    float32x4_t sum = x[0];
    for (int i = 1; i < 20; ++i) sum = vaddq_f32(sum, x[i]);
    return vaddvq_f32(sum);
}

#if defined(__linux__)
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

uint64_t neon_read(const uint8_t *data, size_t bytes) {
    uint8x16_t x[16];
    for (auto &v : x) v = vdupq_n_u8(0);
    for (size_t at = 0; at < bytes; at += 256)
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) x[i] = veorq_u8(x[i], vld1q_u8(data + at + 16 * i));
    uint8x16_t all = x[0];
    for (int i = 1; i < 16; ++i) all = veorq_u8(all, x[i]);
    return vgetq_lane_u64(vreinterpretq_u64_u8(all), 0);
}

#endif

}  // namespace

Burst fp32_burst() {
#if defined(__x86_64__)
    if (has("avx512")) return {"avx512", 16 * 16 * 2, avx512_fp32};
    if (has("avx2")) return {"avx2", 12 * 8 * 2, avx2_fp32};
#elif defined(__aarch64__)
    return {"neon", 20 * 4 * 2, neon_fp32};
#endif
    return {"generic", 16 * 2, generic_fp32};
}

Burst bf16_burst() {
#if defined(__x86_64__)
    if (has("avx512bf16")) return {"avx512bf16", 16 * 32 * 2, avx512_bf16};
#elif defined(__aarch64__) && defined(__linux__)
    if (has_bf16()) return {"neonbf16", 20 * 16 * 2, neon_bf16};
#endif
    return {"none", 0, nullptr};
}

ReadLoop read_loop() {
#if defined(__x86_64__)
    if (has("avx512")) return avx512_read;
    if (has("avx2")) return avx2_read;
#elif defined(__aarch64__)
    return neon_read;
#endif
    return generic_read;
}

}  // namespace pagoda
