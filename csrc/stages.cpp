#include "stages.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace pagoda {

namespace {

constexpr int64_t kItemBytes = 8 * 1024;  // weights that one item of a small batch streams
constexpr int64_t kFewRows = 8;          // a step of more is bound by arithmetic

const float *reordered(const float *x, const std::vector<int32_t> &order, float *to) {
    for (size_t i = 0; i < order.size(); ++i) to[i] = x[order[i]];
    return to;
}

}  // namespace

// ---- embed ----------------------------------------------------------------------------------------------------

void EmbedStage::admit(Workspace &w) {
    if (columns < 1 || columns % info(type).elements || table.bytes != rows * row_bytes(type, columns))
        throw std::invalid_argument("the data is not as long as its shape says");
    if (offset < 0 || offset >= rows) throw std::invalid_argument("no rows are left after the offset");
    if (by == EmbedBy::KnownTokens) return;
    int64_t &limit = w.embed_limits[static_cast<int>(by)];
    limit = std::min(limit, rows - offset);
}

void EmbedStage::run(Workspace &w, const Step &step, int64_t token, uint8_t *) const {
    float *to = w.buffer(out).row(token);
    const int32_t *numbers = by == EmbedBy::Positions ? step.positions : by == EmbedBy::Types ? step.token_types : step.token_ids;
    const int64_t number = numbers ? numbers[token] : 0, row = offset + (number < rows - offset ? number : 0);
    dequantize_row(type, table.data + row * row_bytes(type, columns), columns, to);
    if (scale != 1.0f)
        for (int64_t i = 0; i < columns; ++i) to[i] *= scale;
}

// ---- rowwise --------------------------------------------------------------------------------------------------

void RowwiseStage::admit(Workspace &) {
    if (!norm_bias.empty() && norm_bias.size() != norm.size())
        throw std::invalid_argument("a layer norm needs as many biases as weights");
    if (gate != kNone && !activation) throw std::invalid_argument("a gate needs an activation");
    if (order.size() * sizeof(float) * 2 > kGemmScratch) throw std::invalid_argument("too many columns to reorder");
    for (const int32_t c : order)
        if (c < 0 || static_cast<size_t>(c) >= order.size()) throw std::invalid_argument("an order must name each column");
}

void RowwiseStage::run(Workspace &w, const Step &step, int64_t row, uint8_t *memory) const {
    float *scratch = reinterpret_cast<float *>(memory);
    const Buffer &source = w.buffer(x);
    const int64_t from = w.source_row(rows, step, row);
    const float *value = source.row(from);
    int64_t n = norm.empty() ? source.stride : static_cast<int64_t>(norm.size());
    if (quantized != kNone) n = w.quantized[static_cast<size_t>(quantized)].columns;
    const bool keep = out != kNone && !accumulate;
    float *to = keep ? w.buffer(out).row(row) : scratch;
    if (gate != kNone) {
        w.kernels->gated(w.buffer(gate).row(from), value, *activation, n, to);
        value = to;
    } else if (activation) {
        w.kernels->activated(value, *activation, n, to);
        value = to;
    }
    if (!norm_bias.empty()) {
        w.kernels->layer_norm(value, norm.data(), norm_bias.data(), eps, static_cast<int64_t>(norm.size()), to);
        value = to;
    } else if (!norm.empty()) {
        w.kernels->rms_norm(value, norm.data(), eps, static_cast<int64_t>(norm.size()), to);
        value = to;
    }
    if (quantized != kNone) {
        const float *codes = order.empty() ? value : reordered(value, order, scratch + kGemmScratch / sizeof(float) / 2);
        const QuantizedBuffer &q = w.quantized[static_cast<size_t>(quantized)];
        if (q.codes16.q) w.kernels->quantize(codes, n, q.codes16, row);
        if (q.codes8.q) w.kernels->quantize8(codes, n, q.codes8, row);
    }
    if (kept != kNone && w.adapters.wants(from)) std::memcpy(w.buffer(kept).row(row), value, static_cast<size_t>(n) * 4);
    if (accumulate)
        w.kernels->add(w.buffer(out).row(row), value, n);
    else if (keep && value != to)
        std::memcpy(to, value, static_cast<size_t>(n) * 4);
}

// ---- multiply -------------------------------------------------------------------------------------------------

void MultiplyStage::admit(Workspace &w) {
    const int64_t columns = w.buffer(x).columns;
    if (w.buffer(y).columns != columns || w.buffer(out).columns != columns)
        throw std::invalid_argument("values of another width are multiplied");
}

void MultiplyStage::run(Workspace &w, const Step &, int64_t token, uint8_t *) const {
    const float *a = w.buffer(x).row(token), *b = w.buffer(y).row(token);
    float *to = w.buffer(out).row(token);
    for (int64_t i = 0; i < w.buffer(x).columns; ++i) to[i] = a[i] * b[i];
}

// ---- columns --------------------------------------------------------------------------------------------------

void ColumnsStage::admit(Workspace &w) {
    const int64_t held = w.buffer(x).columns;
    if (heads < 1 || held % heads || start < 0 || count < 1 || start > held / heads - count ||
        w.buffer(out).columns != heads * count)
        throw std::invalid_argument("columns that the value does not have");
}

void ColumnsStage::run(Workspace &w, const Step &, int64_t token, uint8_t *) const {
    const int64_t size = w.buffer(x).columns / heads;
    const float *from = w.buffer(x).row(token) + start;
    float *to = w.buffer(out).row(token);
    for (int h = 0; h < heads; ++h, from += size, to += count)
        for (int64_t i = 0; i < count; ++i) to[i] = scale * from[i];
}

// ---- linear ---------------------------------------------------------------------------------------------------

void LinearStage::admit(Workspace &w) {
    if (parts.empty() || (x == kNone) == (quantized == kNone))
        throw std::invalid_argument("a linear stage needs weights, and either floats or codes to multiply with them");
    for (const LinearPart &p : parts) {
        for (const auto &other : p.weights)
            if (other->type != p.weight().type || other->rows != p.weight().rows || other->columns != p.weight().columns)
                throw std::invalid_argument("experts must be of one type and shape");
        if ((p.site != kNone) != takes_adapters() || (takes_adapters() && rows != Rows::Tokens))
            throw std::invalid_argument("adapters add to all products of the tokens' rows, or to none");
        if (p.site != kNone && w.lora_sites.at(static_cast<size_t>(p.site)).rows != p.weight().rows)
            throw std::invalid_argument("adapters add to what their linears make");
        if (quantized != kNone)
            w.quantized.at(static_cast<size_t>(quantized)).open(w.takes_bytes(p.weight().type) ? 8 : 16);
    }
    if (rows == Rows::Logits) {
        w.vocab = parts[0].weight().rows;
        w.logits_stride = parts[0].weight().panels * kPanelRows;
        w.logits = in_small_pages(static_cast<size_t>(w.max_logit_rows * w.logits_stride) * 4);
    }
}

int64_t LinearStage::panels_an_item(const LinearPart &p, int64_t n) {
    if (n > kRowChunk / 2) return is_float(p.weight().type) ? 8 : 2;  // rows of floats may be rounded once an item
    const int64_t panel_bytes = static_cast<int64_t>(p.weight().bytes()) / p.weight().panels;
    return std::max<int64_t>(n > kFewRows ? 2 : 1, kItemBytes / panel_bytes);
}

int64_t LinearStage::chunk_items(int64_t n) const {
    int64_t items = 0;
    for (const LinearPart &p : parts) items += ceil_div(p.weight().panels, panels_an_item(p, n));
    return items;
}

void LinearStage::plan(const Workspace &w) {
    if (rows != Rows::Routed) return;
    chunk_starts_.assign(1, 0);
    for (const Routing::Chunk &c : w.routing.chunks) chunk_starts_.push_back(chunk_starts_.back() + chunk_items(c.end - c.begin));
}

int64_t LinearStage::items(const Workspace &w, const Step &step) const {
    if (rows == Rows::Routed) return w.routing.chunks.empty() ? 0 : chunk_starts_.back();
    const int64_t n = w.num_rows(rows, step);
    return chunk_items(n) * ceil_div(n, kRowChunk);
}

LinearStage::Item LinearStage::item(const Workspace &w, const Step &step, int64_t index) const {
    if (rows == Rows::Routed) {
        const auto after = std::upper_bound(chunk_starts_.begin(), chunk_starts_.end(), index);
        const Routing::Chunk &c = w.routing.chunks[static_cast<size_t>(after - chunk_starts_.begin() - 1)];
        return chunk_item(index - *(after - 1), c.expert, c.end - c.begin, c.begin, c.end);
    }
    const int64_t n = w.num_rows(rows, step), each_chunk = chunk_items(n), begin = index / each_chunk * kRowChunk;
    return chunk_item(index % each_chunk, 0, n, begin, std::min(begin + kRowChunk, n));
}

// Item `index` of one chunk; `rows` decides how large items are.
LinearStage::Item LinearStage::chunk_item(int64_t index, int expert, int64_t n, int64_t begin, int64_t end) const {
    for (const LinearPart &p : parts) {
        const Weight &weight = p.weight(expert);
        const int64_t each = panels_an_item(p, n), here = ceil_div(weight.panels, each);
        if (index < here)
            return {&p, &weight, p.bias_of(expert), index * each, std::min((index + 1) * each, weight.panels), begin, end};
        index -= here;
    }
    return {};
}

void LinearStage::run(Workspace &w, const Step &step, int64_t index, uint8_t *scratch) const {
    const Item at = item(w, step, index);
    const LinearPart &p = *at.part;
    const auto type = static_cast<size_t>(at.weight->type);
    const bool bytes = w.takes_bytes(at.weight->type);
    GemmArgs g{};
    g.weight = at.weight;
    g.panel_begin = at.panel_begin;
    g.panel_end = at.panel_end;
    g.token_begin = at.row_begin;
    g.token_end = at.row_end;
    if (quantized != kNone) {
        const QuantizedBuffer &q = w.quantized[static_cast<size_t>(quantized)];
        g.act = bytes ? q.codes8 : q.codes16;
    } else {
        g.x = w.buffer(x).row(0);
        g.x_stride = w.buffer(x).stride;
    }
    const bool logits = rows == Rows::Logits;
    g.out = logits ? w.logits.as<float>() : w.buffer(p.out).row(0);
    g.out_stride = logits ? w.logits_stride : w.buffer(p.out).stride;
    g.bias = at.bias;
    g.accumulate = p.accumulate;
    g.scale = p.scale;
    g.scratch = scratch;
    (bytes ? w.kernels->gemm8 : w.takes_bf16(at.weight->type) ? w.kernels->gemm_bf16 : w.kernels->gemm)[type](g);
    if (softcap <= 0) return;
    for (int64_t t = g.token_begin; t < g.token_end; ++t)
        for (int64_t i = g.panel_begin * kPanelRows; i < g.panel_end * kPanelRows; ++i) {
            float &value = g.out[t * g.out_stride + i];
            value = softcap * std::tanh(value / softcap);
        }
}

Cost LinearStage::describe(const Workspace &w, const Step &step) const {
    const int64_t n = w.num_rows(rows, step);
    Cost cost{rows == Rows::Logits ? "output head" : rows == Rows::Routed ? "experts" : "linear"};
    const int64_t experts = rows == Rows::Routed ? w.routing.num_busy() : 1;
    for (const LinearPart &p : parts) {
        const Weight &weight = p.weight();
        if (rows != Rows::Logits) cost.label.append(" ").append(std::to_string(weight.rows)).append("x").append(std::to_string(weight.columns));
        cost.bytes += static_cast<double>(weight.bytes()) * static_cast<double>(experts);
        cost.operations += 2.0 * static_cast<double>(n * weight.rows * weight.columns);
        if (p.site != kNone) add_adapters_cost(cost, w, p.site, false);
    }
    return cost;
}

}  // namespace pagoda
