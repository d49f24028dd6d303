// What works on rows: quantization of activations, norms, gates, sums, rotations; and the bursts.
#include <algorithm>
#include <numeric>

#include "check.h"

namespace pagoda::check {
namespace {

constexpr double kUlp = 0x1p-24;

// Codes in bytes, in the order that every instruction set takes them.
void check_bytes(const std::vector<float> &x, const Quantized &a, int64_t t, Report &report) {
    const auto n = static_cast<int64_t>(x.size());
    if (!std::isfinite(x.back())) return report.expect(std::isnan(a.scale[t]), "a row that is not finite has a scale in bytes");
    float scale = 0.0f;
    std::vector<int> factors;
    const std::vector<int> codes = quantized_bytes(x.data(), n, scale, factors);
    report.close(a.scale[t], scale, 0.0, "scale of bytes");
    for (int64_t i = 0; i < n; ++i)
        report.expect(static_cast<int8_t>(a.q[t * n + i]) == codes[static_cast<size_t>(i)], "code in a byte");
    for (int64_t i = 0; i < n; i += 32) {
        const int64_t at = t * (n / 32) + i / 32;
        const int factor = factors[static_cast<size_t>(i / 32)];
        const int low = std::accumulate(codes.begin() + i, codes.begin() + i + 16, 0);
        const int high = std::accumulate(codes.begin() + i + 16, codes.begin() + i + 32, 0);
        report.expect(a.float32[at] == static_cast<float>(factor * (low + high)), "float32 of bytes");
        report.expect(a.float16[2 * at + 1] == static_cast<float>(factor * high), "float16 of bytes");
        report.expect(a.sum32[at] == low + high && a.sum16[2 * at] == low, "sums of bytes");
    }
}

int check_quantize(const Kernels &k) {
    Report report("quantize");
    Random random;
    constexpr int64_t kTokens = 7;
    for (const int64_t n : {32, 64, 576, 1280}) {
        std::vector<uint8_t> memory(static_cast<size_t>(kTokens * Quantized::bytes_per_token(n, 16) + 64), 0xa5);
        uint8_t *start = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64);
        const Quantized a = Quantized::at(start, kTokens, n, 16), b = Quantized::at(start, kTokens, n, 8);
        for (int64_t t = 0; t < kTokens; ++t) {
            std::vector<float> x = random.normals(static_cast<size_t>(n));
            if (t % 2 == 1) x[static_cast<size_t>(random.below(static_cast<int>(n)))] = -50.0f;
            if (t == 2) std::fill(x.begin(), x.begin() + 32, 0.0f);
            if (t == 3) for (float &v : x) v *= 1e-12f;
            if (t == 4) std::fill(x.begin(), x.end(), 0.0f);
            if (t >= 5) x[static_cast<size_t>(n - 1)] = t == 5 ? INFINITY : NAN;
            k.quantize8(x.data(), n, b, t);
            check_bytes(x, b, t, report);
            k.quantize(x.data(), n, a, t);
            if (t >= 5) {
                report.expect(std::isnan(a.scale[t]), "a row that is not finite has a scale");
                continue;
            }
            float scale = 0.0f;
            const std::vector<int> codes = quantized_codes(x.data(), n, scale);
            report.close(a.scale[t], scale, 0.0, "scale");
            for (int64_t i = 0; i < n; i += 16) {
                const int sum = std::accumulate(codes.begin() + i, codes.begin() + i + 16, 0);
                const int other = std::accumulate(codes.begin() + (i ^ 16), codes.begin() + (i ^ 16) + 16, 0);
                const int64_t at = t * n / 16 + i / 16;
                report.expect(a.sum16[at] == sum && a.sum32[at / 2] == sum + other, "sum");
                report.expect(a.float16[at] == static_cast<float>(sum), "float16");
                report.expect(a.float32[at / 2] == static_cast<float>(sum + other), "float32");
            }
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

int check_layer_norm(const Kernels &k) {
    Report report("layer_norm");
    Random random;
    for (const size_t n : {1u, 15u, 16u, 17u, 64u, 384u, 2047u}) {
        const std::vector<float> weight = random.normals(n), bias = random.normals(n);
        std::vector<float> x = random.normals(n), out(n);
        for (float &v : x) v += 3.0f;
        double mean = 0.0, square = 0.0;
        for (const float v : x) mean += static_cast<double>(v) / static_cast<double>(n);
        for (const float v : x) square += (v - mean) * (v - mean);
        const double factor = 1.0 / std::sqrt(square / static_cast<double>(n) + 1e-5);
        k.layer_norm(x.data(), weight.data(), bias.data(), 1e-5f, static_cast<int64_t>(n), out.data());
        for (size_t i = 0; i < n; ++i) {
            const double part = (x[i] - mean) * factor * weight[i];
            report.close(out[i], part + bias[i], 1e-5 * (std::fabs(part) + std::fabs(static_cast<double>(bias[i])) + factor),
                         "value");
        }
        k.layer_norm(x.data(), weight.data(), bias.data(), 1e-5f, static_cast<int64_t>(n), x.data());
        report.expect(x == out, "in place differs");
    }
    return report.finish();
}

double activated(double x, Activation kind) {
    switch (kind) {
        case Activation::Silu: return x / (1.0 + std::exp(-x));
        case Activation::GeluTanh: return 0.5 * x * (1.0 + std::tanh(std::sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x)));
        case Activation::Relu2: return x > 0.0 ? x * x : 0.0;
        case Activation::Gelu: return 0.5 * x * (1.0 + std::erf(x / std::sqrt(2.0)));
        default: return std::fmin(x, 7.0) / (1.0 + std::exp(-1.702 * std::fmin(x, 7.0)));
    }
}

double beside(double up, Activation kind) {
    return kind == Activation::ClampedSwiglu ? std::fmax(std::fmin(up, 7.0), -7.0) + 1.0 : up;
}

int check_gated(const Kernels &k) {
    Report report("gated");
    Random random;
    for (const Activation kind : {Activation::Silu, Activation::GeluTanh, Activation::Gelu, Activation::Relu2, Activation::ClampedSwiglu})
        for (const size_t n : {1u, 16u, 31u, 1536u}) {
            std::vector<float> gate = random.normals(n), up = random.normals(n), out(n + 1, 7.0f);
            constexpr float kFar[] = {0.0f, -0.0f, 5.0f, -5.0f, 88.5f, -88.5f, 1000.0f, -1000.0f, 1e-20f, -1e-20f};
            for (size_t i = 3; i < n; ++i) gate[i] = i < 13 ? kFar[i - 3] : 4.0f * gate[i];
            for (size_t i = 13; i < n; ++i) up[i] *= 8.0f;
            k.gated(gate.data(), up.data(), kind, static_cast<int64_t>(n), out.data());
            for (size_t i = 0; i < n; ++i)
                report.close(out[i], activated(gate[i], kind) * beside(up[i], kind),
                             1e-6 * std::fmax(std::fabs(activated(gate[i], kind)), std::fabs(static_cast<double>(gate[i]))) *
                                 (std::fabs(static_cast<double>(up[i])) + 1.0), "value");
            report.expect(out[n] == 7.0f, "wrote past the end");
            k.activated(gate.data(), kind, static_cast<int64_t>(n), out.data());
            for (size_t i = 0; i < n; ++i)
                report.close(out[i], activated(gate[i], kind), 1e-6 * std::fabs(static_cast<double>(gate[i])), "alone");
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
            std::vector<float> x = random.normals(static_cast<size_t>(dim) + 16), angles, turns(static_cast<size_t>(2 * dim));
            const auto at = [&](int i, int which) { return static_cast<size_t>(neox ? i + which * half : 2 * i + which); };
            for (int i = 0; i < half; ++i) {
                angles.push_back(10.0f * random.normal());
                turns[at(i, 0)] = turns[at(i, 1)] = std::cos(angles.back());
                turns[static_cast<size_t>(dim) + at(i, 0)] = -std::sin(angles.back());
                turns[static_cast<size_t>(dim) + at(i, 1)] = std::sin(angles.back());
            }
            const std::vector<float> before = x;
            k.rope(x.data(), turns.data(), dim, neox);
            for (int i = 0; i < half; ++i) {
                const double a = before[at(i, 0)], b = before[at(i, 1)];
                const double c = std::cos(angles[static_cast<size_t>(i)]), s = std::sin(angles[static_cast<size_t>(i)]);
                const double tolerance = 3 * kUlp * (std::fabs(a) + std::fabs(b));
                report.close(x[at(i, 0)], a * c - b * s, tolerance, "first");
                report.close(x[at(i, 1)], a * s + b * c, tolerance, "second");
            }
            for (size_t i = static_cast<size_t>(dim); i < x.size(); ++i)
                report.expect(x[i] == before[i], "turned what is not rotary");
        }
    return report.finish();
}

// What the machine is measured by does the work that it is credited with.
int check_bursts(const Kernels &k) {
    Report report("bursts");
    int products = 0;
    for (int i = 0; i < 4 * 8 * 64; ++i)  // token, quad, row and column
        products += i % 64 % 16 * static_cast<int8_t>(i / 512 * 32 + i / 64 % 8 * 4 + i % 4);
    report.expect(k.int8_burst(3) == 3 * products, "int8: %d, not %d", k.int8_burst(3), 3 * products);
    const double chains = static_cast<double>(k.fp32_operations / 2);
    report.close(k.fp32_burst(3), chains * 0.9375, 0.0, "fp32: 1/2, then three times half of it and 1/2");
    std::vector<uint8_t> memory(1024 + 64);
    uint8_t *data = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64);
    for (int i = 0; i < 1024; ++i) {
        data[i] = 1;
        report.expect(k.read_burst(data, 1024) == uint64_t{1} << i % 8 * 8, "byte %d is not read", i);
        data[i] = 0;
    }
    return report.finish();
}

}  // namespace

int check_rows(const Kernels &k) {
    return check_quantize(k) + check_norm(k) + check_layer_norm(k) + check_gated(k) + check_add(k) + check_rope(k) + check_bursts(k);
}

}  // namespace pagoda::check
