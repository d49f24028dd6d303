// In place of the compiler's immintrin.h: AVX-512 in plain C by SIMD Everywhere (libsimde-dev), for machines that
// lack the instructions, and the few conversions that its version 0.7 does not have yet.
#pragma once

#define SIMDE_NO_INLINE  // kernels inline everything, which compilers take very long over
#define SIMDE_NO_NATIVE
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>
#include <simde/x86/fma.h>

#include <cstdint>
#include <cstring>

#include "../../common.h"

#ifndef _MM_FROUND_TO_NEAREST_INT
#define _MM_FROUND_TO_NEAREST_INT SIMDE_MM_FROUND_TO_NEAREST_INT
#endif
#ifndef _MM_FROUND_NO_EXC
#define _MM_FROUND_NO_EXC SIMDE_MM_FROUND_NO_EXC
#endif

namespace simde_fallback {

template <class To, class Lane, class FromLane, class From, class Fn>
inline To convert(const From &from, Fn fn) {
    FromLane in[16];
    Lane out[16];
    To to;
    std::memcpy(in, &from, sizeof in);
    for (int i = 0; i < 16; ++i) out[i] = fn(in[i]);
    static_assert(sizeof out == sizeof to);
    std::memcpy(&to, out, sizeof to);
    return to;
}
constexpr auto kWiden = [](auto x) { return static_cast<int32_t>(x); };

inline int32_t reduce_add(const __m512i &x) {
    int32_t lanes[16], sum = 0;
    std::memcpy(lanes, &x, sizeof lanes);
    for (const int32_t lane : lanes) sum += lane;
    return sum;
}

inline __m512 cvtph_ps(__m256i x) {
    const __m128i low = _mm256_castsi256_si128(x), high = _mm256_extracti128_si256(x, 1);
    return _mm512_insertf32x8(_mm512_castps256_ps512(_mm256_cvtph_ps(low)), _mm256_cvtph_ps(high), 1);
}

// Rounds to nearest even, which is all that is asked for.
inline __m256i cvtps_ph(const __m512 &x) {
    float lanes[16];
    uint16_t halves[16];
    std::memcpy(lanes, &x, sizeof lanes);
    for (int i = 0; i < 16; ++i) halves[i] = pagoda::float_to_half(lanes[i]);
    __m256i to;
    std::memcpy(&to, halves, sizeof to);
    return to;
}

// Two 128-bit lanes of either.
inline __m512 shuffle_f32x4(const __m512 &x, const __m512 &y, unsigned order) {
    float in[32], out[16];
    std::memcpy(in, &x, 64);
    std::memcpy(in + 16, &y, 64);
    for (unsigned i = 0; i < 16; ++i) out[i] = in[i / 8 * 16 + (order >> i / 4 * 2 & 3) * 4 + i % 4];
    __m512 to;
    std::memcpy(&to, out, sizeof to);
    return to;
}

inline __m256 upper_half(const __m512 &x) {
    float in[16];
    std::memcpy(in, &x, sizeof in);
    __m256 to;
    std::memcpy(&to, in + 8, sizeof to);
    return to;
}

inline void mask_store_epi16(void *to, uint32_t mask, const __m512i &x) {
    int16_t lanes[32];
    std::memcpy(lanes, &x, sizeof lanes);
    for (int i = 0; i < 32; ++i)
        if (mask >> i & 1) std::memcpy(static_cast<int16_t *>(to) + i, lanes + i, 2);
}

inline __m512 permute_ps(const __m512 &x, unsigned order) {  // within each four lanes
    float in[16], out[16];
    std::memcpy(in, &x, sizeof in);
    for (unsigned i = 0; i < 16; ++i) out[i] = in[i / 4 * 4 + (order >> i % 4 * 2 & 3)];
    __m512 to;
    std::memcpy(&to, out, sizeof to);
    return to;
}

}  // namespace simde_fallback

#ifndef _mm512_cvtph_ps
#define _mm512_cvtph_ps simde_fallback::cvtph_ps
#endif
#ifndef _mm512_cvtps_ph
#define _mm512_cvtps_ph(x, rounding) simde_fallback::cvtps_ph(x)
#endif
#ifndef _mm512_permute_ps
#define _mm512_permute_ps(x, order) simde_fallback::permute_ps(x, order)
#endif
#ifndef _mm512_cvtepi8_epi32
#define _mm512_cvtepi8_epi32(x) simde_fallback::convert<__m512i, int32_t, int8_t>(x, simde_fallback::kWiden)
#endif
#ifndef _mm512_cvtepu8_epi32
#define _mm512_cvtepu8_epi32(x) simde_fallback::convert<__m512i, int32_t, uint8_t>(x, simde_fallback::kWiden)
#endif
#ifndef _mm512_cvtepu16_epi32
#define _mm512_cvtepu16_epi32(x) simde_fallback::convert<__m512i, int32_t, uint16_t>(x, simde_fallback::kWiden)
#endif
#ifndef _mm512_cvtepi32_ps
#define _mm512_cvtepi32_ps(x) \
    simde_fallback::convert<__m512, float, int32_t>(x, [](int32_t lane) { return static_cast<float>(lane); })
#endif
#ifndef _mm512_cvtps_epi32
#define _mm512_cvtps_epi32(x) \
    simde_fallback::convert<__m512i, int32_t, float>(x, [](float lane) { return static_cast<int32_t>(__builtin_rintf(lane)); })
#endif
#ifndef _mm512_cvtepi32_epi8
#define _mm512_cvtepi32_epi8(x) \
    simde_fallback::convert<__m128i, int8_t, int32_t>(x, [](int32_t lane) { return static_cast<int8_t>(lane); })
#endif
#ifndef _mm512_srai_epi32
#define _mm512_srai_epi32(x, n) \
    simde_fallback::convert<__m512i, int32_t, int32_t>(x, [](int32_t lane) { return lane >> (n); })
#endif
#ifndef _mm512_reduce_add_epi32
#define _mm512_reduce_add_epi32(x) simde_fallback::reduce_add(x)
#endif
#ifndef _mm512_cvtepi32_epi16
#define _mm512_cvtepi32_epi16(x) \
    simde_fallback::convert<__m256i, int16_t, int32_t>(x, [](int32_t lane) { return static_cast<int16_t>(lane); })
#endif
#ifndef _mm512_mask_storeu_epi16
#define _mm512_mask_storeu_epi16 simde_fallback::mask_store_epi16
#endif
#ifndef _mm512_rcp14_ps
#define _mm512_rcp14_ps(x) simde_fallback::convert<__m512, float, float>(x, [](float lane) { return 1.0f / lane; })
#endif
#ifndef _mm512_shuffle_f32x4
#define _mm512_shuffle_f32x4 simde_fallback::shuffle_f32x4
#endif
#ifndef _mm512_extractf32x8_ps
#define _mm512_extractf32x8_ps(x, half) simde_fallback::upper_half(x)  // half 1
#endif
