// One packed weight by itself, without a program: its product with rows of floats, and its numbers. Training computes
// with these: forward as the engine does, backward by the transposed weight, a stretch of rows at a time.
#include "runtime.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

namespace nb = nanobind;
using namespace nb::literals;

namespace pagoda {
namespace {

using Rows = nb::ndarray<const float, nb::ndim<2>, nb::c_contig>;
using OutRows = nb::ndarray<float, nb::ndim<2>, nb::c_contig>;
constexpr int64_t kMostTokens = 4096;  // of one product; see kernels_gemm.inl
constexpr int64_t kPanelsTogether = 2;  // that the widest kernels multiply at a time

// Rows as the kernels read them: themselves, or a copy padded with zeros to whole blocks.
const float *padded_rows(const Rows &x, int64_t k, LazyMemory &copy) {
    const auto tokens = static_cast<int64_t>(x.shape(0)), columns = static_cast<int64_t>(x.shape(1));
    if (columns == k) return x.data();
    copy = LazyMemory(static_cast<size_t>(tokens * k) * 4);
    for (int64_t t = 0; t < tokens; ++t)
        std::memcpy(copy.as<float>() + t * k, x.data() + t * columns, static_cast<size_t>(columns) * 4);
    return copy.as<float>();
}

// Each thread works on panels of its own. How they are divided changes no bit of any output.
void multiply(const Runtime &runtime, GemmArgs whole, int bits) {
    const Kernels &kernels = *runtime.kernels;
    const auto type = static_cast<size_t>(whole.weight->type);
    if (!is_float(whole.weight->type))
        runtime.pool->parallel_for(whole.token_end, [&](int64_t begin, int64_t end) {
            for (int64_t t = begin; t < end; ++t)
                (bits == 8 ? kernels.quantize8 : kernels.quantize)(whole.x + t * whole.x_stride, whole.x_stride, whole.act, t);
        });
    const int64_t panels = whole.panel_end;
    runtime.pool->parallel_for(ceil_div(panels, kPanelsTogether), [&](int64_t begin, int64_t end) {
        LazyMemory scratch(kGemmScratch);
        GemmArgs mine = whole;
        mine.panel_begin = begin * kPanelsTogether;
        mine.panel_end = std::min(end * kPanelsTogether, panels);
        mine.scratch = scratch.data();
        const bool bf16 = runtime.bf16_products && kernels.gemm_bf16[type];
        (bits == 8 ? kernels.gemm8 : bf16 ? kernels.gemm_bf16 : kernels.gemm)[type](mine);
    });
}

void matmul(const Runtime &runtime, const Weight &weight, const Rows &x, const OutRows &out) {
    const auto tokens = static_cast<int64_t>(x.shape(0));
    const int64_t k = weight.blocks * kActBlock, padded = weight.panels * kPanelRows;
    if (static_cast<int64_t>(x.shape(1)) != weight.columns || tokens > kMostTokens ||
        static_cast<int64_t>(out.shape(1)) != weight.rows || out.shape(0) != x.shape(0))
        throw std::invalid_argument("shapes do not match");
    nb::gil_scoped_release unlocked;
    const int bits = runtime.activation_bits == 8 && runtime.kernels->gemm8[static_cast<size_t>(weight.type)] ? 8 : 16;
    const bool is_whole = weight.rows == padded;
    LazyMemory copy, result(is_whole ? 0 : static_cast<size_t>(tokens * padded) * 4);
    LazyMemory act(static_cast<size_t>(tokens * Quantized::bytes_per_token(k, bits)));
    GemmArgs g{};
    g.weight = &weight;
    g.panel_end = weight.panels;
    g.token_end = tokens;
    g.act = Quantized::at(act.data(), tokens, k, bits);
    g.x = padded_rows(x, k, copy);
    g.x_stride = k;
    g.out = is_whole ? out.data() : result.as<float>();
    g.out_stride = padded;
    g.scale = 1.0f;
    multiply(runtime, g, bits);
    for (int64_t t = 0; !is_whole && t < tokens; ++t)
        std::memcpy(out.data() + t * weight.rows, result.as<float>() + t * padded, static_cast<size_t>(weight.rows) * 4);
}

void put_rows(const Kernels &kernels, const float *rows, int64_t n, uint16_t *out, int64_t stride) {
    kernels.to_bfloat(rows, n, out, stride);
}
void put_rows(const Kernels &, const float *rows, int64_t n, float *out, int64_t stride) {
    for (int64_t i = 0; i < n; ++i) std::memcpy(out + i * stride, rows + i * kPanelRows, 4 * kPanelRows);
}

// Numbers of panels [begin, begin + out.shape(1) / 16) into out [columns][16 rows each].
template <class Number>
void unpack_panels(const Runtime &runtime, const Weight &weight, int64_t begin,
                   const nb::ndarray<Number, nb::ndim<2>, nb::c_contig> &out) {
    const auto rows = static_cast<int64_t>(out.shape(1));
    const int64_t columns = is_float(weight.type) ? weight.columns : weight.blocks * kActBlock;
    if (rows % kPanelRows || begin < 0 || begin + rows / kPanelRows > weight.panels ||
        static_cast<int64_t>(out.shape(0)) != columns)
        throw std::invalid_argument("out needs a row for each column of the weight, and whole panels of 16 rows");
    const Kernels &kernels = *runtime.kernels;
    nb::gil_scoped_release unlocked;
    runtime.pool->parallel_for(rows / kPanelRows, [&](int64_t first, int64_t end) {
        LazyMemory numbers(static_cast<size_t>(columns) * 4 * kPanelRows);
        for (int64_t p = first; p < end; ++p) {
            kernels.unpack[static_cast<size_t>(weight.type)](weight, begin + p, numbers.as<float>());
            put_rows(kernels, numbers.as<float>(), columns, out.data() + p * kPanelRows, rows);
        }
    });
}

}  // namespace

void bind_products(nb::class_<Runtime> &runtime) {
    runtime.def("matmul", &matmul, "weight"_a, "x"_a, "out"_a)
        .def("unpack", &unpack_panels<float>, "weight"_a, "panel"_a, "out"_a)
        .def("unpack", &unpack_panels<uint16_t>, "weight"_a, "panel"_a, "out"_a);
}

}  // namespace pagoda
