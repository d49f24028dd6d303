// Ops with a state: against plain double arithmetic, and the same bits however the tokens are cut.
#include "../kernels_recurrent.h"
#include "check.h"

namespace pagoda::check {
namespace {

constexpr int64_t kTokens = 7, kDim = 48;

void check_conv(const RecurrentKernels &k, int64_t taps, bool silu, bool biased, Random &random, Report &report) {
    constexpr int64_t columns = 48;
    const std::vector<float> weight = random.normals(static_cast<size_t>(taps * columns));
    const std::vector<float> rows = random.normals(static_cast<size_t>(taps * columns));
    const std::vector<float> bias = random.normals(columns);
    std::vector<float> out(columns);
    ConvArgs a{};
    a.bias = biased ? bias.data() : nullptr;
    for (int64_t i = 0; i < taps; ++i) a.rows[i] = rows.data() + i * columns;
    a.taps = weight.data();
    a.count = taps;
    a.taps_stride = a.columns = columns;
    a.silu = silu;
    a.out = out.data();
    k.short_conv(a);
    for (int64_t c = 0; c < columns; ++c) {
        double sum = biased ? bias[static_cast<size_t>(c)] : 0.0;
        for (int64_t i = 0; i < taps; ++i)
            sum += static_cast<double>(weight[static_cast<size_t>(i * columns + c)]) * rows[static_cast<size_t>(i * columns + c)];
        report.close(out[static_cast<size_t>(c)], silu ? sum / (1 + std::exp(-sum)) : sum, 1e-5 * (1 + std::fabs(sum)), "convolution");
    }
}

struct Delta {
    std::vector<float> q, k, v, left, beta, qk, state;
};

// What comes out, the tokens taken `together` at a time; the state is left in d.
std::vector<float> computed(const RecurrentKernels &kernels, Delta &d, int64_t columns, int64_t together) {
    std::vector<float> out(static_cast<size_t>(kTokens * columns));
    for (int64_t t = 0; t < kTokens; t += together) {
        DeltaArgs a{};
        a.state = d.state.data();
        a.k_dim = kDim;
        a.columns = a.v_stride = a.out_stride = columns;
        a.tokens = std::min(together, kTokens - t);
        a.q = d.q.data() + t * kDim;
        a.k = d.k.data() + t * kDim;
        a.v = d.v.data() + t * columns;
        a.left = d.left.data() + t;
        a.beta = d.beta.data() + t;
        a.qk = d.qk.data() + t;
        a.out = out.data() + t * columns;
        kernels.delta(a);
    }
    return out;
}

std::vector<double> expected(const Delta &d, int64_t columns) {
    std::vector<double> state(d.state.begin(), d.state.end()), out;
    const auto at = [&](int64_t i, int64_t c) -> double & { return state[static_cast<size_t>(i * columns + c)]; };
    for (int64_t t = 0; t < kTokens; ++t)
        for (int64_t c = 0; c < columns; ++c) {
            const float *q = d.q.data() + t * kDim, *k = d.k.data() + t * kDim;
            double known = 0.0, sum = 0.0;
            for (int64_t i = 0; i < kDim; ++i) known += (at(i, c) *= d.left[static_cast<size_t>(t)]) * k[i];
            const double missing = d.beta[static_cast<size_t>(t)] * (d.v[static_cast<size_t>(t * columns + c)] - known);
            for (int64_t i = 0; i < kDim; ++i) sum += (at(i, c) += k[i] * missing) * q[i];
            out.push_back(sum);
        }
    return out;
}

void check_delta(const RecurrentKernels &kernels, int64_t columns, Random &random, Report &report) {
    Delta d;
    d.q.resize(static_cast<size_t>(kTokens * kDim));
    d.k = d.q;
    for (int64_t t = 0; t < kTokens; ++t) {
        float *q = d.q.data() + t * kDim, *k = d.k.data() + t * kDim;
        const std::vector<float> x = random.normals(kDim), y = random.normals(kDim);
        kernels.unit(x.data(), 0.25f, kDim, q);
        kernels.unit(y.data(), 1.0f, kDim, k);
        double squares = 0.0, product = 0.0;
        for (int64_t i = 0; i < kDim; ++i) squares += static_cast<double>(y[static_cast<size_t>(i)]) * y[static_cast<size_t>(i)];
        for (int64_t i = 0; i < kDim; ++i) {
            report.close(k[i], y[static_cast<size_t>(i)] / std::sqrt(squares + 1e-6), 1e-6, "length of 1");
            product += static_cast<double>(q[i]) * k[i];
        }
        d.qk.push_back(kernels.dot(q, k, kDim));
        report.close(d.qk.back(), product, 1e-6, "dot");
        d.left.push_back(0.5f + 0.07f * static_cast<float>(t));
        d.beta.push_back(0.9f - 0.1f * static_cast<float>(t));
    }
    d.v = random.normals(static_cast<size_t>(kTokens * columns));
    d.state = random.normals(static_cast<size_t>(kDim * columns));
    const std::vector<double> wanted = expected(d, columns);
    Delta one = d, three = d;
    const std::vector<float> all = computed(kernels, d, columns, kTokens);
    report.expect(all == computed(kernels, one, columns, 1) && d.state == one.state, "a token at a time has other bits");
    report.expect(all == computed(kernels, three, columns, 3) && d.state == three.state, "three at a time have other bits");
    for (size_t i = 0; i < all.size(); ++i) report.close(all[i], wanted[i], 1e-5, "delta rule");
}

// A selective scan's numbers; x, b and c stand in one row of a token, as after the convolution.
struct Scan {
    int64_t columns, stride;
    std::vector<float> rows, left, dt, state;
    const float *x(int64_t t) const { return rows.data() + t * stride; }
    const float *b(int64_t t) const { return x(t) + columns; }
    const float *c(int64_t t) const { return b(t) + kDim; }
};
constexpr float kSkip = 0.7f;

// What comes out, the tokens taken `together` at a time; the state is left in s.
std::vector<float> scanned(const RecurrentKernels &kernels, Scan &s, int64_t together) {
    std::vector<float> out(static_cast<size_t>(kTokens * s.columns));
    for (int64_t t = 0; t < kTokens; t += together) {
        ScanArgs a{};
        a.state = s.state.data();
        a.state_dim = kDim;
        a.columns = a.out_stride = s.columns;
        a.tokens = std::min(together, kTokens - t);
        a.x = s.x(t);
        a.b = s.b(t);
        a.c = s.c(t);
        a.stride = s.stride;
        a.left = s.left.data() + t;
        a.dt = s.dt.data() + t;
        a.skip = kSkip;
        a.out = out.data() + t * s.columns;
        kernels.scan(a);
    }
    return out;
}

std::vector<double> expected(const Scan &s) {
    std::vector<double> state(s.state.begin(), s.state.end()), out;
    for (int64_t t = 0; t < kTokens; ++t)
        for (int64_t column = 0; column < s.columns; ++column) {
            const double x = s.x(t)[column], written = x * s.dt[static_cast<size_t>(t)];
            double sum = kSkip * x;
            for (int64_t i = 0; i < kDim; ++i) {
                double &at = state[static_cast<size_t>(i * s.columns + column)];
                at = at * s.left[static_cast<size_t>(t)] + s.b(t)[i] * written;
                sum += at * s.c(t)[i];
            }
            out.push_back(sum);
        }
    return out;
}

void check_scan(const RecurrentKernels &kernels, int64_t columns, Random &random, Report &report) {
    Scan s{columns, columns + 2 * kDim + 16, {}, {}, {}, {}};
    s.rows = random.normals(static_cast<size_t>(kTokens * s.stride));
    s.state = random.normals(static_cast<size_t>(kDim * columns));
    for (int t = 0; t < kTokens; ++t) {
        s.left.push_back(0.4f + 0.08f * static_cast<float>(t));
        s.dt.push_back(1.3f - 0.15f * static_cast<float>(t));
    }
    const std::vector<double> wanted = expected(s);
    Scan one = s, three = s;
    const std::vector<float> all = scanned(kernels, s, kTokens);
    report.expect(all == scanned(kernels, one, 1) && s.state == one.state, "a token at a time has other bits");
    report.expect(all == scanned(kernels, three, 3) && s.state == three.state, "three at a time have other bits");
    for (size_t i = 0; i < all.size(); ++i) report.close(all[i], wanted[i], 1e-5 * (1 + std::fabs(wanted[i])), "selective scan");
}

}  // namespace

int check_recurrent(const RecurrentKernels &k) {
    Report report("recurrent");
    Random random;
    for (const bool silu : {true, false})
        for (const int64_t taps : {2, 4, 8}) check_conv(k, taps, silu, taps > 2, random, report);
    for (const int64_t columns : {16, 32}) {
        check_delta(k, columns, random, report);
        check_scan(k, columns, random, report);
    }
    return report.finish();
}

}  // namespace pagoda::check
