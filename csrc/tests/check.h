// What the checks share: random numbers, and a count of what failed.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <random>

#include "../kernels.h"
#include "../kernels_latent.h"
#include "../kernels_lora.h"
#include "../kernels_recurrent.h"

namespace pagoda::check {

// Collects the comparisons of one kernel, and tells the first few that failed.
class Report {
  public:
    explicit Report(const char *what) : what_(what) {}

    // True when |got - want| <= tolerance; a NaN fails.
    void close(double got, double want, double tolerance, const char *where) {
        const double error = std::fabs(got - want);
        if (tolerance > 0.0 && error / tolerance > worst_) worst_ = error / tolerance;
        expect(error <= tolerance, "%s: got %.9g, want %.9g +- %.2g", where, got, want, tolerance);
    }

    __attribute__((format(printf, 3, 4))) void expect(bool ok, const char *format, ...) {
        ++compared_;
        if (ok) return;
        if (++failed_ > kTold) return;
        std::va_list args;
        va_start(args, format);
        std::printf("  %s: ", what_);
        std::vprintf(format, args);
        std::printf("\n");
        va_end(args);
    }

    // Prints the summary; the number of failures.
    int finish() const {
        std::printf("%-10s %9d compared, %d failed, largest error %.2f of what is allowed\n", what_, compared_, failed_,
                    worst_);
        std::fflush(stdout);
        return failed_;
    }

  private:
    static constexpr int kTold = 5;
    const char *what_;
    int compared_ = 0, failed_ = 0;
    double worst_ = 0.0;
};

struct Random {
    std::mt19937 engine{1};
    float normal() { return std::normal_distribution<float>()(engine); }
    int below(int n) { return static_cast<int>(engine() % static_cast<unsigned>(n)); }
    std::vector<float> normals(size_t n) {
        std::vector<float> v(n);
        for (float &x : v) x = normal();
        return v;
    }
};

// Each checks the table's functions against plain double arithmetic, and returns the number of failures.
int check_rows(const Kernels &k);
int check_gemm(const Kernels &k);
int check_attend(const Kernels &k);
int check_lora(const LoraKernels &k);
int check_latent(const LatentKernels &k);
int check_recurrent(const RecurrentKernels &k);

// The 16-bit codes of a row, and the scale that goes with them.
inline std::vector<int> quantized_codes(const float *x, int64_t n, float &scale) {
    float top = 0.0f;
    for (int64_t i = 0; i < n; ++i) top = std::fmax(top, std::fabs(x[i]));
    const float inverse = top > 1e-30f ? kLargestCode / top : 0.0f;
    std::vector<int> codes;
    for (int64_t i = 0; i < n; ++i) codes.push_back(static_cast<int>(std::nearbyint(x[i] * inverse)));
    scale = top / kLargestCode;
    return codes;
}

// The same in bytes, with a factor for each 32.
inline std::vector<int> quantized_bytes(const float *x, int64_t n, float &scale, std::vector<int> &factors) {
    float top = 0.0f;
    for (int64_t i = 0; i < n; ++i) top = std::fmax(top, std::fabs(x[i]));
    const float steps = top > 1e-30f ? kLargestFactor / top : 0.0f;
    std::vector<int> codes;
    for (int64_t block = 0; block < n; block += 32) {
        float most = 0.0f;
        for (int64_t i = block; i < block + 32; ++i) most = std::fmax(most, std::fabs(x[i]));
        const int factor = std::max(static_cast<int>(std::ceil(most * steps)), 1);
        const float inverse = steps * kLargestByte / static_cast<float>(factor);
        for (int64_t i = block; i < block + 32; ++i) codes.push_back(static_cast<int>(std::nearbyint(x[i] * inverse)));
        factors.push_back(factor);
    }
    scale = top / (kLargestByte * kLargestFactor);
    return codes;
}

}  // namespace pagoda::check
