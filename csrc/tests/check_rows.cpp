// What works on rows: quantization of activations, norms, gates, sums, rotations.
#include <algorithm>

#include "check.h"

namespace pagoda::check {
namespace {

constexpr double kUlp = 0x1p-24;

template <class T>
const T *in_plane(const T *p, int64_t bytes) {
    return reinterpret_cast<const T *>(reinterpret_cast<const char *>(p) + bytes);
}

// The sums that a block's codes in one plane go with.
void check_sums(const Quantized &a, int64_t t, int64_t b, int64_t plane, Report &report) {
    const int64_t at = t * (a.k / 32) + b;
    const int8_t *q = in_plane(a.q, plane) + t * a.k + 32 * b;
    const float scale = in_plane(a.scale, plane)[at];
    int sum[2] = {0, 0};
    for (int i = 0; i < 32; ++i) sum[i / 16] += q[i];
    report.expect(in_plane(a.sum32, plane)[at] == sum[0] + sum[1], "sum32");
    report.close(in_plane(a.scaled32, plane)[at], scale * (sum[0] + sum[1]), 0.0, "scaled32");
    for (int h = 0; h < 2; ++h) {
        report.expect(in_plane(a.sum16, plane)[2 * at + h] == sum[h], "sum16");
        report.close(in_plane(a.scaled16, plane)[2 * at + h], scale * static_cast<float>(sum[h]), 0.0, "scaled16");
    }
}

// One plane alone is right to half a step of 1/127 of the block's largest value, both to half a step 253 times finer.
void check_block(const float *x, double rms, const Quantized &a, int64_t t, int64_t b, Report &report) {
    double largest = 0.0;
    for (int i = 0; i < 32; ++i) largest = std::fmax(largest, std::fabs(static_cast<double>(x[i])));
    const int64_t at = t * (a.k / 32) + b;
    const bool refined = a.refined[at] != 0;
    const double limit = static_cast<double>(kRefineAbove) * rms;
    if (std::fabs(largest - limit) > 1e-5 * limit) report.expect(refined == (largest > limit), "block refined or not");
    const double first = a.scale[at], second = in_plane(a.scale, a.plane)[at];
    report.expect(refined || second == 0.0, "the second scale of a block that is not refined");
    for (int i = 0; i < 32; ++i) {
        const double fine = in_plane(a.q, a.plane)[t * a.k + 32 * b + i] * second;
        const double got = a.q[t * a.k + 32 * b + i] * first + fine;
        report.close(got, x[i], largest * ((refined ? 0.51 / 127 / 253 : 0.5001 / 127) + 2 * kUlp), "code");
    }
    check_sums(a, t, b, 0, report);
    if (refined) return check_sums(a, t, b, a.plane, report);
    const float *scaled16 = in_plane(a.scaled16, a.plane) + 2 * at;
    report.expect(in_plane(a.scaled32, a.plane)[at] == 0.0f && scaled16[0] == 0.0f && scaled16[1] == 0.0f,
                  "the second sums of a block that is not refined");
}

int check_quantize(const Kernels &k) {
    Report report("quantize");
    Random random;
    constexpr int64_t kTokens = 5;
    for (const int64_t n : {32, 64, 576, 1280}) {
        std::vector<uint8_t> memory(static_cast<size_t>(kTokens * Quantized::bytes_per_token(n) + 64), 0xa5);
        uint8_t *start = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64);
        const Quantized a = Quantized::at(start, kTokens, n);
        for (int64_t t = 0; t < kTokens; ++t) {
            std::vector<float> x = random.normals(static_cast<size_t>(n));
            if (t % 2 == 1) x[static_cast<size_t>(random.below(static_cast<int>(n)))] = -50.0f;
            if (t == 2) std::fill(x.begin(), x.begin() + 32, 0.0f);
            if (t == 3) for (float &v : x) v *= 1e-12f;
            if (t == 4) std::fill(x.begin(), x.end(), 0.0f);
            double squares = 0.0;
            for (const float v : x) squares += static_cast<double>(v) * v;
            k.quantize(x.data(), n, a, t);
            const double rms = std::sqrt(squares / static_cast<double>(n));
            for (int64_t b = 0; b < n / 32; ++b) check_block(&x[static_cast<size_t>(32 * b)], rms, a, t, b, report);
        }
    }
    return report.finish();
}

int check_norm(const Kernels &k) {
    Report report("rms_norm");
    Random random;
    for (const size_t n : {1u, 15u, 16u, 17u, 64u, 576u, 2047u}) {
        const std::vector<float> weight = random.normals(n);
        std::vector<float> x = random.normals(n), out(n);
        double squares = 0.0;
        for (const float v : x) squares += static_cast<double>(v) * v;
        const double factor = 1.0 / std::sqrt(squares / static_cast<double>(n) + 1e-5);
        k.rms_norm(x.data(), weight.data(), 1e-5f, static_cast<int64_t>(n), out.data());
        for (size_t i = 0; i < n; ++i) {
            const double want = x[i] * factor * weight[i];
            report.close(out[i], want, 2e-6 * std::fabs(want), "value");
        }
        k.rms_norm(x.data(), weight.data(), 1e-5f, static_cast<int64_t>(n), x.data());
        report.expect(x == out, "in place differs");
    }
    return report.finish();
}

double activated(double x, Activation kind) {
    switch (kind) {
        case Activation::Silu: return x / (1.0 + std::exp(-x));
        case Activation::GeluTanh: return 0.5 * x * (1.0 + std::tanh(std::sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x)));
        default: return 0.5 * x * (1.0 + std::erf(x / std::sqrt(2.0)));
    }
}

int check_gated(const Kernels &k) {
    Report report("gated");
    Random random;
    for (const Activation kind : {Activation::Silu, Activation::GeluTanh, Activation::Gelu})
        for (const size_t n : {1u, 16u, 31u, 1536u}) {
            std::vector<float> gate = random.normals(n), up = random.normals(n), out(n + 1, 7.0f);
            constexpr float kFar[] = {0.0f, -0.0f, 5.0f, -5.0f, 88.5f, -88.5f, 1000.0f, -1000.0f, 1e-20f, -1e-20f};
            for (size_t i = 3; i < n; ++i) gate[i] = i < 13 ? kFar[i - 3] : 4.0f * gate[i];
            k.gated(gate.data(), up.data(), kind, static_cast<int64_t>(n), out.data());
            for (size_t i = 0; i < n; ++i)
                report.close(out[i], activated(gate[i], kind) * up[i],
                             1e-6 * std::fabs(static_cast<double>(gate[i]) * up[i]), "value");
            report.expect(out[n] == 7.0f, "wrote past the end");
        }
    return report.finish();
}

int check_add(const Kernels &k) {
    Report report("add");
    Random random;
    for (const size_t n : {1u, 16u, 37u}) {
        std::vector<float> x = random.normals(n);
        const std::vector<float> y = random.normals(n), before = x;
        k.add(x.data(), y.data(), static_cast<int64_t>(n));
        for (size_t i = 0; i < n; ++i) report.expect(x[i] == before[i] + y[i], "value");
    }
    return report.finish();
}

int check_rope(const Kernels &k) {
    Report report("rope");
    Random random;
    for (const int dim : {2, 16, 30, 64, 128})
        for (const bool neox : {false, true}) {
            const int half = dim / 2;
            std::vector<float> x = random.normals(static_cast<size_t>(dim) + 16), turns(static_cast<size_t>(dim));
            for (int i = 0; i < half; ++i) {
                const float angle = 10.0f * random.normal();
                turns[static_cast<size_t>(i)] = std::cos(angle);
                turns[static_cast<size_t>(i + half)] = std::sin(angle);
            }
            const std::vector<float> before = x;
            k.rope(x.data(), turns.data(), dim, neox);
            for (int i = 0; i < half; ++i) {
                const auto at = [&](int which) { return static_cast<size_t>(neox ? i + which * half : 2 * i + which); };
                const double a = before[at(0)], b = before[at(1)];
                const double c = turns[static_cast<size_t>(i)], s = turns[static_cast<size_t>(i + half)];
                const double tolerance = 3 * kUlp * (std::fabs(a) + std::fabs(b));
                report.close(x[at(0)], a * c - b * s, tolerance, "first");
                report.close(x[at(1)], a * s + b * c, tolerance, "second");
            }
            for (size_t i = static_cast<size_t>(dim); i < x.size(); ++i)
                report.expect(x[i] == before[i], "turned what is not rotary");
        }
    return report.finish();
}

}  // namespace

int check_rows(const Kernels &k) {
    return check_quantize(k) + check_norm(k) + check_gated(k) + check_add(k) + check_rope(k);
}

}  // namespace pagoda::check
