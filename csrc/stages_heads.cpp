#include <algorithm>
#include <stdexcept>

#include "stages.h"

namespace pagoda {

// Rows of weights come in panels of 16, and columns in blocks of 32: heads that are no multiples would reach into the next.
void HeadLinearStage::admit(Workspace &w) {
    const int64_t heads = static_cast<int64_t>(part.weights.size());
    if (heads < 1 || kept < 0) throw std::invalid_argument("each head needs a matrix");
    const Weight &first = part.weight();
    for (const auto &other : part.weights)
        if (!is_float(other->type) || other->type != first.type || other->rows != first.rows || other->columns != first.columns)
            throw std::invalid_argument("matrices of heads must be floats of one type and shape");
    if (first.rows % kPanelRows || first.columns % kActBlock)
        throw std::invalid_argument("heads must make a multiple of 16 numbers of a multiple of 32");
    if (w.buffer(x).columns != heads * (kept + first.columns) || w.buffer(part.out).columns != heads * (kept + first.rows))
        throw std::invalid_argument("heads of another width");
}

int64_t HeadLinearStage::items(const Workspace &, const Step &step) const {
    return static_cast<int64_t>(part.weights.size()) * ceil_div(step.tokens, kRowChunk);
}

void HeadLinearStage::run(Workspace &w, const Step &step, int64_t item, uint8_t *scratch) const {
    const int64_t heads = static_cast<int64_t>(part.weights.size()), head = item % heads, begin = item / heads * kRowChunk;
    const Weight &weight = part.weight(static_cast<int>(head));
    GemmArgs g{};
    g.weight = &weight;
    g.panel_end = weight.panels;
    g.token_begin = begin;
    g.token_end = std::min<int64_t>(begin + kRowChunk, step.tokens);
    g.x = w.buffer(x).row(0) + head * (kept + weight.columns) + kept;
    g.x_stride = w.buffer(x).stride;
    g.out = w.buffer(part.out).row(0) + head * (kept + weight.rows) + kept;
    g.out_stride = w.buffer(part.out).stride;
    g.scale = 1.0f;
    g.scratch = scratch;
    for (int64_t t = g.token_begin; t < g.token_end; ++t)
        std::copy_n(g.x - kept + t * g.x_stride, kept, g.out - kept + t * g.out_stride);
    const auto type = static_cast<size_t>(weight.type);
    (w.takes_bf16(weight.type) ? w.kernels->gemm_bf16 : w.kernels->gemm)[type](g);
}

Cost HeadLinearStage::describe(const Workspace &, const Step &step) const {
    Cost cost{"linear of heads"};
    const double heads = static_cast<double>(part.weights.size());
    cost.bytes = static_cast<double>(part.weight().bytes()) * heads;
    cost.operations = 2.0 * static_cast<double>(step.tokens * part.weight().rows * part.weight().columns) * heads;
    return cost;
}

}  // namespace pagoda
