// Encoding whole tensors: rows shared out among threads; the binding.
#include "quantize.h"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <atomic>
#include <optional>
#include <stdexcept>
#include <string>

#include "kernels.h"
#include "pool.h"

namespace nb = nanobind;

namespace pagoda {
namespace {

constexpr int64_t kChunk = 1 << 15;  // numbers that a thread takes at a time

EncodeFn encoder(const std::optional<std::string> &isa) {
    for (const Kernels *kernels : available_kernels()) {
        const std::string name = kernels->name;
        if (isa && *isa != name) continue;
#if defined(__x86_64__) && defined(PAGODA_AVX)
        if (name == "avx512") return encode_avx512();
        if (name == "avx2") return encode_avx2();
#elif defined(__aarch64__) && defined(PAGODA_NEON)
        if (name == "neon") return encode_neon();
#endif
        return encode_generic();
    }
    throw std::invalid_argument("that instruction set is not available");
}

// Numbers beyond it have no f16 scale or minimum; NaN and infinity have no code at all.
uint32_t largest_bits(Type type) { return float_to_bits(type == Type::F32 || type == Type::BF16 ? 3.3e38f : 65504.0f); }

int64_t first_beyond(uint32_t limit, const float *x, int64_t count) {
    uint32_t largest = 0;
    for (int64_t i = 0; i < count; ++i) largest = std::max(largest, float_to_bits(x[i]) & 0x7fffffffu);
    if (largest <= limit) return -1;
    for (int64_t i = 0;; ++i)
        if ((float_to_bits(x[i]) & 0x7fffffffu) > limit) return i;
}

using Rows = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Column = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Out = nb::ndarray<uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

// → the index of a number that is not finite or too large for the type, or -1
int64_t quantize(const Rows &x, const std::string &type_name, const Out &out, const std::optional<Column> &importance,
                 int threads, const std::optional<std::string> &isa) {
    const Type type = type_from_name(type_name.c_str());
    if (type > Type::IQ4_XS)  // those after it are read, and not written
        throw std::invalid_argument("no tensor is written as " + type_name);
    const int64_t rows = static_cast<int64_t>(x.shape(0)), columns = static_cast<int64_t>(x.shape(1));
    if (columns % info(type).elements || static_cast<int64_t>(out.shape(0)) != rows ||
        static_cast<int64_t>(out.shape(1)) != row_bytes(type, columns))
        throw std::invalid_argument("shapes do not match");
    if (importance && static_cast<int64_t>(importance->shape(0)) != columns)
        throw std::invalid_argument("importance must have a number for each column");
    const EncodeFn encode = encoder(isa);
    const float *from = x.data(), *weights = importance ? importance->data() : nullptr;
    uint8_t *to = out.data();
    const int64_t step = std::max<int64_t>(1, kChunk / std::max<int64_t>(columns, 1)), bytes = row_bytes(type, columns);
    const uint32_t limit = largest_bits(type);
    nb::gil_scoped_release release;
    std::atomic<int64_t> next{0}, bad{-1};
    Pool pool(std::max(threads, 1));
    pool.run([&](int) {
        for (int64_t row; (row = next.fetch_add(step)) < rows && bad.load(std::memory_order_relaxed) < 0;) {
            const int64_t count = std::min(step, rows - row);
            const int64_t at = first_beyond(limit, from + row * columns, count * columns);
            if (at < 0)
                encode(type, from + row * columns, weights, count, columns, to + row * bytes);
            else
                bad.store(row * columns + at);
        }
    });
    return bad.load();
}

}  // namespace

void bind_quantize(nb::module_ &m) {
    using namespace nb::literals;
    m.def("quantize", &quantize, "x"_a, "type"_a, "out"_a, "importance"_a = nb::none(), "threads"_a = 1,
          "isa"_a = nb::none());
}

}  // namespace pagoda
