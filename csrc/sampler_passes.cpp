#include "sampler_passes.h"

#include <bit>
#include <cmath>
#include <cstring>

namespace pagoda::sampling {
namespace {

constexpr size_t kLanes = 16;

// 2^t = 2^e 2^r: e is t rounded, r in [-1/2, 1/2] goes into a minimax polynomial of relative error 9.2e-8 (2.1e-7 with
// rounding), which is 1 at 0, so that the likeliest token weighs exactly 1.
constexpr float kLowest = -127.0f;     // where the exponent's bits become 0: lower ones weigh exactly 0
constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, which then is in the low bits
constexpr float kExp2[6] = {1.0f, 0x1.62e42ap-1f, 0x1.ebf9bcp-3f, 0x1.c6b752p-5f, 0x1.3cea88p-7f, 0x1.5bba14p-10f};

// 2^t for t <= 0. The vectors' exp2_nonpositive does the same, operation by operation.
inline float exp2_nonpositive(float t) {
    if (t <= kLowest) return 0.0f;
    const float shifted = t + kRound;
    const float r = t - (shifted - kRound);
    const float r2 = r * r;
    const float high = (kExp2[2] + kExp2[3] * r) + r2 * (kExp2[4] + kExp2[5] * r);
    const float y = (kExp2[0] + kExp2[1] * r) + r2 * high;
    return std::bit_cast<float>(std::bit_cast<uint32_t>(y) + (std::bit_cast<uint32_t>(shifted) << 23));
}

inline float weight(float x, Scale scale) { return exp2_nonpositive((x - scale.max) * scale.slope); }

inline float max_or_nan(const float *x, size_t n) {
    float max = -INFINITY;
    for (size_t i = 0; i < n; ++i) {
        if (x[i] != x[i]) return x[i];
        if (x[i] > max) max = x[i];
    }
    return max;
}

inline double plain_sum(const float *x, size_t n, Scale scale) {
    double sum = 0.0;
    for (size_t i = 0; i < n; ++i) sum += static_cast<double>(weight(x[i], scale));
    return sum;
}

typedef float Quad __attribute__((vector_size(16)));  // a register on every machine

// Lane j takes lane j + 8, then + 4, + 2, + 1.
inline double fold(const float (&lanes)[kLanes]) {
    Quad quads[4];
    std::memcpy(quads, lanes, sizeof quads);
    const Quad sum = (quads[0] + quads[2]) + (quads[1] + quads[3]);
    return static_cast<double>((sum[0] + sum[2]) + (sum[1] + sum[3]));
}

namespace generic {
constexpr size_t kWidth = 4;
constexpr const char *kName = "generic";
#include "sampler_passes.inl"
}  // namespace generic

#if defined(__x86_64__)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2")
#endif
namespace avx2 {
constexpr size_t kWidth = 8;
constexpr const char *kName = "avx2";
#include "sampler_passes.inl"
}  // namespace avx2
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl")
#endif
namespace avx512 {
constexpr size_t kWidth = 16;
constexpr const char *kName = "avx512";
#include "sampler_passes.inl"
}  // namespace avx512
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#elif defined(__aarch64__)

// Four floats are a register of NEON, which every such machine has: the same code under its own name.
constexpr Passes kNeon{"neon",           generic::block_maxima, generic::block_sums,
                       generic::weights, generic::share_from,   generic::count_greater};

#endif

}  // namespace

const Passes *const *available_passes(size_t &count) {
    static const Passes *found[3];
    static const size_t num_found = [] {
        size_t n = 0;
        found[n++] = &generic::passes;
#if defined(__x86_64__)
        if (__builtin_cpu_supports("avx2")) found[n++] = &avx2::passes;
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
            found[n++] = &avx512::passes;
#elif defined(__aarch64__)
        found[n++] = &kNeon;
#endif
        return n;
    }();
    count = num_found;
    return found;
}

}  // namespace pagoda::sampling
