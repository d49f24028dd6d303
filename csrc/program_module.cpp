// Python's view of the CPU backend: Runtime (threads and kernels), Weight, Program.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstdlib>
#include <stdexcept>

#include "grids.h"
#include "runtime.h"
#include "stage_fields.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace pagoda {
namespace {

void check_block_bytes(const Program &p, int group, size_t blocks, size_t rows, size_t bytes) {
    if (rows != blocks || static_cast<int64_t>(bytes) != p.workspace.block_bytes(group))
        throw std::invalid_argument("a row of block_bytes for each KV block is needed");
}

// Weights of one type and shape, which all threads pack together.
std::vector<std::shared_ptr<Weight>> pack_all(const Runtime &runtime, const std::vector<Bytes> &data, const std::string &type,
                                              int64_t rows, int64_t columns) {
    const Type t = file_type_from_name(type.c_str());
    std::vector<std::shared_ptr<Weight>> weights;
    std::vector<const uint8_t *> from;
    for (const Bytes &bytes : data) {
        weights.push_back(std::make_shared<Weight>(t, rows, columns));
        from.push_back(bytes.data());
        if (static_cast<int64_t>(bytes.shape(0)) != rows * row_bytes(t, columns))
            throw std::invalid_argument("the data is not as long as its shape says");
    }
    if (weights.empty()) return weights;
    const int64_t panels = weights[0]->panels;
    nb::gil_scoped_release unlocked;
    runtime.pool->parallel_for(panels * static_cast<int64_t>(weights.size()), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end;) {
            const int64_t w = i / panels, first = i % panels, last = std::min(panels, first + end - i);
            weights[static_cast<size_t>(w)]->pack_panels(from[static_cast<size_t>(w)], first, last);
            i += last - first;
        }
    });
    return weights;
}

std::shared_ptr<Weight> pack(const Runtime &runtime, const Bytes &data, const std::string &type, int64_t rows,
                             int64_t columns) {
    return pack_all(runtime, {data}, type, rows, columns)[0];
}

// Memory for such a weight, which costs nothing until somebody touches it.
std::shared_ptr<Weight> empty_weight(const Runtime &, const std::string &type, int64_t rows, int64_t columns) {
    return std::make_shared<Weight>(file_type_from_name(type.c_str()), rows, columns);
}

std::vector<int32_t> to_order(const std::optional<Ints> &order, size_t columns) {
    std::vector<int32_t> v;
    if (!order) return v;
    v.assign(order->data(), order->data() + order->shape(0));
    for (const int32_t c : v)
        if (c < 0 || static_cast<size_t>(c) >= columns || v.size() != columns)
            throw std::invalid_argument("an order must name each column");
    return v;
}

std::shared_ptr<Weight> pack_grouped(const Runtime &runtime, const std::string &type, const ByteTable &codes,
                                     const FloatTable &scales, const std::optional<FloatTable> &mins, int group_shift,
                                     const std::optional<Ints> &order, const std::optional<Codes> &codebook) {
    const Type t = type_from_name(type.c_str());
    const auto rows = static_cast<int64_t>(codes.shape(0)), columns = static_cast<int64_t>(codes.shape(1));
    if (!is_grouped(t) || group_shift < 0 || group_shift > 40) throw std::invalid_argument("not a grouped type");
    auto weight = std::make_shared<Weight>(t, rows, columns, group_shift);
    const auto fits = [&](const FloatTable &a) {
        return static_cast<int64_t>(a.shape(0)) == rows && static_cast<int64_t>(a.shape(1)) == weight->num_scales();
    };
    if (!fits(scales) || mins.has_value() != traits(t).has_mins || (mins && !fits(*mins)) ||
        codebook.has_value() != (t == Type::Codebook4))
        throw std::invalid_argument("scales, minima or codebook are not what the type and the groups need");
    for (int code = 0; codebook && code < 16; ++code) {
        if (std::abs(codebook->data()[code]) > Codebook::kLargest) throw std::invalid_argument("codebook beyond 12 bits");
        weight->codebook.set(code, codebook->data()[code]);
    }
    const std::vector<int32_t> checked = to_order(order, static_cast<size_t>(columns));
    const GroupedSource from{codes.data(), scales.data(), mins ? mins->data() : nullptr,
                             checked.empty() ? nullptr : checked.data()};
    nb::gil_scoped_release unlocked;
    runtime.pool->parallel_for(weight->panels,
                               [&](int64_t begin, int64_t end) { weight->pack_panels(from, begin, end); });
    return weight;
}

// The biases [weights][rows] of a part, each padded to whole panels; empty where there are none.
std::vector<float> padded_biases(const std::optional<Floats> &given, const std::vector<std::shared_ptr<Weight>> &weights) {
    std::vector<float> v;
    if (!given) return v;
    const size_t rows = static_cast<size_t>(weights[0]->rows), padded = static_cast<size_t>(weights[0]->panels * kPanelRows);
    if (given->shape(0) != rows * weights.size()) throw std::invalid_argument("a bias for each row of each weight is needed");
    v.resize(padded * weights.size(), 0.0f);
    for (size_t i = 0; i < weights.size(); ++i) std::copy_n(given->data() + i * rows, rows, v.begin() + static_cast<int64_t>(i * padded));
    return v;
}

KVType kv_type_from_name(const std::string &name) {
    if (name == "f32") return KVType::F32;
    if (name == "f16") return KVType::F16;
    if (name == "bf16") return KVType::BF16;
    if (name == "int16") return KVType::Int16;
    if (name == "int8") return KVType::Int8;
    throw std::invalid_argument("no such KV type: " + name);
}

void forward(Program &program, const Ints &tokens, const Ints &positions, const Ints &seq_starts,
             const std::vector<IntTable> &tables, const Ints &logit_rows, const Ints &hidden_rows,
             const std::optional<Ints> &token_types, const std::vector<std::shared_ptr<Adapter>> &adapters,
             const std::optional<Ints> &adapter_of, const std::optional<Ints> &state_starts,
             const std::optional<Ints> &state_saves) {
    Step step{};
    step.tokens = static_cast<int64_t>(tokens.shape(0));
    step.sequences = static_cast<int64_t>(seq_starts.shape(0)) - 1;
    step.logit_rows = static_cast<int64_t>(logit_rows.shape(0));
    step.token_ids = tokens.data();
    step.positions = positions.data();
    step.seq_starts = seq_starts.data();
    step.logit_row_ids = logit_rows.data();
    step.hidden_rows = static_cast<int64_t>(hidden_rows.shape(0));
    step.hidden_row_ids = hidden_rows.data();
    if (token_types && token_types->shape(0) != 0) {
        if (token_types->shape(0) != tokens.shape(0))
            throw std::invalid_argument("a type for each token is needed, or none");
        step.token_types = token_types->data();
    }
    for (const auto &adapter : adapters) step.adapters.push_back(adapter.get());
    if (adapter_of) {
        if (static_cast<int64_t>(adapter_of->shape(0)) != step.sequences)
            throw std::invalid_argument("for each sequence it must be known which adapter it has");
        step.adapter_of = adapter_of->data();
    }
    if (state_starts && state_saves) {
        if (static_cast<int64_t>(state_starts->shape(0)) != step.sequences || state_saves->shape(0) != tokens.shape(0))
            throw std::invalid_argument("a state for each sequence and each token is needed, or none");
        step.state_starts = state_starts->data();
        step.state_saves = state_saves->data();
    }
    if (positions.shape(0) != tokens.shape(0)) throw std::invalid_argument("a position for each token is needed");
    if (step.sequences < 1) throw std::invalid_argument("a step needs a sequence");
    for (const IntTable &t : tables) {
        if (static_cast<int64_t>(t.shape(0)) < step.sequences || t.stride(1) != 1)
            throw std::invalid_argument("a block table needs a contiguous row for each sequence");
        const auto width = static_cast<int64_t>(t.shape(1));
        step.tables.push_back({t.data(), t.shape(0) > 1 ? static_cast<int64_t>(t.stride(0)) : width, width});
    }
    nb::gil_scoped_release unlocked;
    program.run(step);
}

// Of each delta: the site, a [rank, columns], b [rows, rank], bias [rows], row_scale [rows].
std::shared_ptr<Adapter> make_adapter(
    const Program &program,
    const std::vector<std::tuple<size_t, FloatTable, FloatTable, std::optional<Floats>, std::optional<Floats>>> &deltas,
    const std::string &type) {
    static constexpr const char *kNames[] = {"f32", "bf16", "int8"};
    const auto found = std::find(std::begin(kNames), std::end(kNames), type);
    if (found == std::end(kNames)) throw std::invalid_argument("no such type of adapters: " + type);
    const std::vector<LoraSite> &sites = program.workspace.lora_sites;
    std::vector<LoraFactors> factors;
    for (const auto &[site, a, b, bias, row_scale] : deltas) {
        const auto is = [](const FloatTable &m, int64_t rows, int64_t columns) {
            return static_cast<int64_t>(m.shape(0)) == rows && static_cast<int64_t>(m.shape(1)) == columns;
        };
        const auto fits = [&, rows = site < sites.size() ? sites[site].rows : 0](const std::optional<Floats> &v) {
            return !v || static_cast<int64_t>(v->shape(0)) == rows;
        };
        const auto data = [](const std::optional<Floats> &v) { return v ? v->data() : nullptr; };
        const auto rank = static_cast<int64_t>(a.shape(0));
        if (site >= sites.size()) throw std::invalid_argument("no such linear");
        if (!is(a, rank, sites[site].columns) || !is(b, sites[site].rows, rank) || !fits(bias) || !fits(row_scale))
            throw std::invalid_argument("the factors are not of the linear's shape");
        factors.push_back({site, rank, a.data(), b.data(), data(bias), data(row_scale)});
    }
    nb::gil_scoped_release unlocked;
    return std::make_shared<Adapter>(&program.workspace, sites, factors, static_cast<LoraType>(found - kNames));
}

}  // namespace

void bind_program(nb::module_ &m) {
    m.def("available_isas", [] {
        std::vector<std::string> names;
        for (const Kernels *k : available_kernels()) names.emplace_back(k->name);
        return names;
    });
    m.def("dequantize", [](const Bytes &data, const std::string &type, int64_t columns,
                           nb::ndarray<float, nb::ndim<2>, nb::c_contig> out) {
        const Type t = file_type_from_name(type.c_str());
        if (columns < 1 || columns % info(t).elements || static_cast<int64_t>(out.shape(1)) != columns ||
            static_cast<int64_t>(data.shape(0)) != static_cast<int64_t>(out.shape(0)) * row_bytes(t, columns))
            throw std::invalid_argument("shapes do not match");
        const int64_t rows = static_cast<int64_t>(out.shape(0));
        const uint8_t *from = data.data();
        float *to = out.data();
        nb::gil_scoped_release release;
        for (int64_t r = 0; r < rows; ++r) dequantize_row(t, from + r * row_bytes(t, columns), columns, to + r * columns);
    });
    m.def("grid", &grid_points, "name"_a);
    nb::class_<Weight>(m, "Weight")
        .def_ro("rows", &Weight::rows)
        .def_ro("columns", &Weight::columns)
        .def_prop_ro("bytes", [](const Weight &w) { return w.bytes(); })
        .def_prop_ro("is_float", [](const Weight &w) { return is_float(w.type); });
    nb::class_<Runtime> runtime(m, "Runtime");
    bind_products(runtime);
    runtime.def(nb::init<int, std::optional<std::string>, int, bool>(), "threads"_a, "isa"_a = nb::none(),
             "activation_bits"_a = 16, "bf16_products"_a = false)
        .def_prop_ro("threads", [](const Runtime &r) { return r.pool->size(); })
        .def_ro("activation_bits", &Runtime::activation_bits)
        .def_ro("bf16_products", &Runtime::bf16_products)
        .def_prop_ro("isa", [](const Runtime &r) { return std::string(r.kernels->name); })
        .def("pack", &pack, "data"_a, "type"_a, "rows"_a, "columns"_a)
        .def("pack_all", &pack_all, "data"_a, "type"_a, "rows"_a, "columns"_a)
        .def("empty_weight", &empty_weight, "type"_a, "rows"_a, "columns"_a)
        .def("pack_grouped", &pack_grouped, "type"_a, "codes"_a, "scales"_a, "mins"_a.none(), "group_shift"_a,
             "order"_a = nb::none(), "codebook"_a = nb::none())
        .def("program",
             [](const Runtime &r, int64_t max_tokens, int64_t max_logit_rows, const std::string &kv_type) {
                 return std::make_unique<Program>(r.pool, r.kernels, max_tokens, max_logit_rows,
                                                  kv_type_from_name(kv_type), r.activation_bits, r.bf16_products);
             },
             "max_tokens"_a, "max_logit_rows"_a, "kv_type"_a);
    nb::class_<LinearPart>(m, "LinearPart")
        .def("__init__",
             [](LinearPart *self, std::vector<std::shared_ptr<Weight>> weights, std::optional<int> out,
                std::optional<Floats> bias, bool accumulate, float scale, std::optional<int> site) {
                 if (weights.empty()) throw std::invalid_argument("a part of a linear stage needs a weight");
                 std::vector<float> biases = padded_biases(bias, weights);
                 new (self) LinearPart{std::move(weights), out.value_or(kNone), std::move(biases), accumulate, scale,
                                       site.value_or(kNone)};
             },
             "weights"_a, "out"_a.none(), "bias"_a = nb::none(), "accumulate"_a = false, "scale"_a = 1.0f,
             "site"_a = nb::none());
    nb::class_<Adapter>(m, "Adapter").def_prop_ro("bytes", &Adapter::bytes);
    nb::class_<Program>(m, "Program")
        .def("add_buffer", &Program::add_buffer, "columns"_a, "rows"_a = 1)
        .def("add_quantized", &Program::add_quantized, "columns"_a, "rows"_a = 1)
        .def("add_rope",
             [](Program &p, const Floats &inv_freq, float scale, bool neox) {
                 return p.add_rope(to_vector(inv_freq), scale, neox);
             },
             "inv_freq"_a, "scale"_a, "neox"_a)
        .def("add_lora_site", &Program::add_lora_site, "rows"_a, "columns"_a)
        .def("make_adapter", &make_adapter, "deltas"_a, "type"_a)
        .def("set_layers",
             [](Program &p, const std::vector<std::tuple<int, int, int, std::optional<int>>> &layers, int groups) {
                 std::vector<LayerKV> kv;
                 for (const auto &[group, heads, dim, from] : layers) kv.push_back({group, heads, dim, from.value_or(kNone)});
                 p.workspace.set_layers(std::move(kv), groups);
             },
             "layers"_a, "groups"_a)
        .def("add", [](Program &p, const std::string &kind, const nb::kwargs &fields) { add_stage(p, kind, fields); },
             "kind"_a, "fields"_a)
        .def("block_bytes", [](const Program &p, int group) { return p.workspace.block_bytes(group); },
             "group"_a)
        .def_prop_ro("state_bytes", [](const Program &p) { return 4 * p.workspace.state_floats; })
        .def("allocate_kv",
             [](Program &p, const std::vector<int64_t> &blocks, int64_t states) { p.workspace.allocate_kv(blocks, states); },
             "num_blocks"_a, "num_states"_a = 0)
        .def("copy_blocks",
             [](Program &p, int group, nb::ndarray<const int32_t, nb::shape<-1, 2>, nb::c_contig> pairs) {
                 p.workspace.copy_blocks(group, pairs.data(), static_cast<int64_t>(pairs.shape(0)));
             },
             "group"_a, "pairs"_a)
        .def("read_blocks",
             [](const Program &p, int group, nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig> blocks,
                nb::ndarray<uint8_t, nb::ndim<2>, nb::c_contig> out) {
                 check_block_bytes(p, group, blocks.shape(0), out.shape(0), out.shape(1));
                 p.workspace.read_blocks(group, blocks.data(), static_cast<int64_t>(blocks.shape(0)), out.data());
             },
             "group"_a, "blocks"_a, "out"_a)
        .def("write_blocks",
             [](Program &p, int group, nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig> blocks,
                nb::ndarray<const uint8_t, nb::ndim<2>, nb::c_contig> data) {
                 check_block_bytes(p, group, blocks.shape(0), data.shape(0), data.shape(1));
                 p.workspace.write_blocks(group, blocks.data(), static_cast<int64_t>(blocks.shape(0)), data.data());
             },
             "group"_a, "blocks"_a, "data"_a)
        .def("forward", &forward, "tokens"_a, "positions"_a, "seq_starts"_a, "block_tables"_a, "logit_rows"_a,
             "hidden_rows"_a, "token_types"_a = nb::none(), "adapters"_a = std::vector<std::shared_ptr<Adapter>>{},
             "adapter_of"_a = nb::none(), "state_starts"_a = nb::none(), "state_saves"_a = nb::none())
        .def("buffer",
             [](Program &p, int index) {
                 const Buffer &b = p.workspace.buffer(index);
                 const size_t shape[2] = {static_cast<size_t>(b.rows), static_cast<size_t>(b.columns)};
                 const int64_t strides[2] = {b.stride, 1};
                 return nb::ndarray<nb::numpy, float, nb::ndim<2>>(b.memory.data(), 2, shape, nb::find(p), strides);
             },
             "index"_a)
        .def("logits",
             [](Program &p) {
                 const Workspace &w = p.workspace;
                 const size_t shape[2] = {static_cast<size_t>(w.max_logit_rows), static_cast<size_t>(w.vocab)};
                 const int64_t strides[2] = {w.logits_stride, 1};
                 return nb::ndarray<nb::numpy, float, nb::ndim<2>>(w.logits.data(), 2, shape, nb::find(p), strides);
             },
             "A view of all logit rows, [max_logit_rows, vocab].")
        .def_prop_ro("buffer_bytes", &Program::buffer_bytes)
        .def_rw("profiling", &Program::profiling)
        .def("take_profile", [](Program &p) {
            std::vector<std::tuple<std::string, std::string, double, double, double>> rows;
            for (const auto &r : p.take_profile())
                rows.emplace_back(r.kind, r.cost.label, r.seconds, r.cost.bytes, r.cost.operations);
            return rows;
        });
}

}  // namespace pagoda
