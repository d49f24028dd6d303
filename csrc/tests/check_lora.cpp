// The products of adapters: every number type, ranks and panels in any number, and the same bits for a token whoever is
// beside it.
#include "../adapter.h"
#include "check.h"

namespace pagoda::check {
namespace {

constexpr int64_t kTokens = 9;

struct Case {
    int64_t rows, columns, rank;
    LoraType type;
    bool has_bias;
    bool scales_rows = false;
    bool is_added = false;  // the product, to what was there before
};

// The products of all tokens at once, or of each alone.
std::vector<float> computed(const LoraKernels &k, const Adapter &adapter, const std::vector<float> &x, int64_t stride,
                            const std::vector<float> &base, int64_t out_stride, const std::vector<float> *before, bool alone) {
    const Adapter::Delta &d = adapter.deltas[0];
    std::vector<float> hidden(static_cast<size_t>(kTokens * d.rank)), out = base;
    std::vector<int32_t> tokens;
    for (int32_t t = 0; t < kTokens; ++t) tokens.push_back(t);
    for (int64_t first = 0; first < kTokens; first += alone ? 1 : kTokens) {
        LoraArgs a{};
        a.type = adapter.type;
        a.rank = d.rank;
        a.columns = d.columns;
        a.tokens = tokens.data() + first;
        a.count = alone ? 1 : kTokens;
        a.x = x.data();
        a.x_stride = stride;
        a.hidden = hidden.data();
        a.hidden_stride = d.rank;
        a.out = out.data();
        a.out_stride = out_stride;
        a.weights = d.a;
        a.scales = d.a_scales.data();
        for (a.begin = 0; a.begin < d.rank; a.begin = a.end) {
            a.end = std::min(a.begin + kLoraRanks, d.rank);
            k.shrink(a);
        }
        a.weights = d.b;
        a.scales = d.b_scales.data();
        a.bias = d.bias.empty() ? nullptr : d.bias.data();
        a.row_scale = d.row_scale.empty() ? nullptr : d.row_scale.data();
        a.before = before ? before->data() : nullptr;
        a.before_stride = out_stride;
        a.begin = 0;
        a.end = out_stride / kPanelRows;
        k.expand(a);
    }
    return out;
}

void check_case(const LoraKernels &k, const Case &c, Random &random, Report &report) {
    const int64_t stride = round_up(c.columns, 32), out_stride = round_up(c.rows, kPanelRows);
    const std::vector<float> a = random.normals(static_cast<size_t>(c.rank * c.columns));
    const std::vector<float> b = random.normals(static_cast<size_t>(c.rows * c.rank));
    const std::vector<float> bias = random.normals(static_cast<size_t>(c.rows));
    const std::vector<float> scale = random.normals(static_cast<size_t>(c.rows));
    const Adapter adapter(nullptr, {{c.rows, c.columns}},
                          {{0, c.rank, a.data(), b.data(), c.has_bias ? bias.data() : nullptr,
                            c.scales_rows ? scale.data() : nullptr}},
                          c.type);
    std::vector<float> x(static_cast<size_t>(kTokens * stride));
    for (int64_t t = 0; t < kTokens; ++t)
        for (int64_t i = 0; i < c.columns; ++i) x[static_cast<size_t>(t * stride + i)] = random.normal();
    const std::vector<float> base = random.normals(static_cast<size_t>(kTokens * out_stride));
    const std::vector<float> earlier = random.normals(static_cast<size_t>(kTokens * out_stride));
    const std::vector<float> *before = c.is_added ? &earlier : nullptr;
    const std::vector<float> together = computed(k, adapter, x, stride, base, out_stride, before, false);
    report.expect(together == computed(k, adapter, x, stride, base, out_stride, before, true), "a token alone has other bits");
    const double rounding = c.type == LoraType::F32 ? 1e-6 : c.type == LoraType::BF16 ? 0x1p-7 : 0.05;
    for (int64_t t = 0; t < kTokens; ++t)
        for (int64_t row = 0; row < c.rows; ++row) {
            double sum = c.has_bias ? bias[static_cast<size_t>(row)] : 0.0, size = std::fabs(sum);
            for (int64_t j = 0; j < c.rank; ++j) {
                double inner = 0.0, most = 0.0;
                for (int64_t i = 0; i < c.columns; ++i) {
                    const double product = static_cast<double>(a[static_cast<size_t>(j * c.columns + i)]) * x[static_cast<size_t>(t * stride + i)];
                    inner += product;
                    most += std::fabs(product);
                }
                sum += inner * b[static_cast<size_t>(row * c.rank + j)];
                size += most * std::fabs(b[static_cast<size_t>(row * c.rank + j)]);
            }
            const auto at = static_cast<size_t>(t * out_stride + row);
            const double old = c.is_added ? earlier[at] : 0.0, factor = c.scales_rows ? scale[static_cast<size_t>(row)] : 1.0;
            report.close(together[at], old + factor * (base[at] - old) + sum, rounding * size + 1e-5, "adapter");
        }
}

}  // namespace

int check_lora(const LoraKernels &k) {
    Report report("adapters");
    Random random;
    for (const LoraType type : {LoraType::F32, LoraType::BF16, LoraType::Int8})
        for (const int64_t rank : {1, 3, 8, 16, 27})
            for (const auto &[rows, columns] : {std::pair<int64_t, int64_t>{16, 32}, {200, 96}, {70, 50}})
                check_case(k, {rows, columns, rank, type, rank == 3, rank != 3, rank == 8}, random, report);
    return report.finish();
}

}  // namespace pagoda::check
