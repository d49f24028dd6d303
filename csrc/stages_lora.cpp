#include <algorithm>
#include <stdexcept>
#include <string_view>

#include "stages.h"

namespace pagoda {

namespace {

constexpr int64_t kLoraItemTokens = 64;  // of an item at most

// Some tokens of one adapter.
struct LoraTokens {
    const StepAdapters::Group *group;
    int64_t begin, count;
};

int64_t num_chunks(const StepAdapters &step) {
    int64_t chunks = 0;
    for (const StepAdapters::Group &g : step.groups) chunks += ceil_div(g.end - g.begin, kLoraItemTokens);
    return chunks;
}

LoraTokens chunk_at(const StepAdapters &step, int64_t chunk) {
    const StepAdapters::Group *group = step.groups.data();
    for (int64_t here; chunk >= (here = ceil_div(group->end - group->begin, kLoraItemTokens)); ++group) chunk -= here;
    const int64_t begin = group->begin + chunk * kLoraItemTokens;
    return {group, begin, std::min(kLoraItemTokens, group->end - begin)};
}

const Adapter::Delta &delta_of(const LoraTokens &tokens, int32_t site) {
    return tokens.group->adapter->deltas[static_cast<size_t>(site)];
}

LoraArgs args_of(const StepAdapters &step, const LoraTokens &tokens, const Adapter::Delta &d) {
    LoraArgs a{};
    a.type = tokens.group->adapter->type;
    a.rank = d.rank;
    a.columns = d.columns;
    a.tokens = step.tokens.data() + tokens.begin;
    a.count = tokens.count;
    a.hidden_stride = step.hidden_stride;
    return a;
}

// The tokens of a group in rows [begin, end) of the step.
LoraTokens tokens_within(const StepAdapters &step, const StepAdapters::Group &group, int64_t begin, int64_t end) {
    const int32_t *first = step.tokens.data() + group.begin, *last = step.tokens.data() + group.end;
    const int32_t *from = std::lower_bound(first, last, begin), *to = std::lower_bound(from, last, end);
    return {&group, group.begin + (from - first), to - from};
}

}  // namespace

const LoraKernels &lora_kernels(const char *isa) {
    const std::string_view name(isa);
#ifdef PAGODA_AVX
    if (name == "avx2") return *lora_kernels_avx2();
    if (name == "avx512") return *lora_kernels_avx512();
#endif
#ifdef PAGODA_NEON
    if (name == "neon") return *lora_kernels_neon();
#endif
    return *lora_kernels_generic();
}

void add_adapters_cost(Cost &cost, const Workspace &w, int32_t site, bool is_a) {
    for (const StepAdapters::Group &g : w.adapters.groups) {
        const Adapter::Delta &d = g.adapter->deltas[static_cast<size_t>(site)];
        const LoraSite &at = w.lora_sites[static_cast<size_t>(site)];
        const int64_t width = is_a ? at.columns : at.rows;
        cost.bytes += static_cast<double>(d.rank * width * lora_element_bytes(g.adapter->type));
        cost.operations += 2.0 * static_cast<double>(d.rank * width * (g.end - g.begin));
    }
}

// ---- lora shrink ----------------------------------------------------------------------------------------------

void LoraShrinkStage::admit(Workspace &w) {
    if (residuals.size() != sites.size()) throw std::invalid_argument("what each product is added to must be said");
    int64_t before = 0;
    for (size_t i = 0; i < sites.size(); ++i) {
        if (sites[i] < 0 || w.buffer(x).columns < w.lora_sites.at(static_cast<size_t>(sites[i])).columns)
            throw std::invalid_argument("adapters read what their linears read");
        if (residuals[i] != kNone) w.lora_sites[static_cast<size_t>(sites[i])].before = before, before += w.buffer(residuals[i]).stride;
    }
    w.lora_together = std::max(w.lora_together, static_cast<int64_t>(sites.size()));
    w.adapters.before_stride = std::max(w.adapters.before_stride, before);
}

int64_t LoraShrinkStage::items(const Workspace &w, const Step &) const {
    return num_chunks(w.adapters) * static_cast<int64_t>(sites.size()) * ceil_div(w.adapters.rank, kLoraRanks);
}

// Items go by adapter, then its tokens, then sites, then ranks.
void LoraShrinkStage::run(Workspace &w, const Step &, int64_t index, uint8_t *) const {
    const int64_t pieces = ceil_div(w.adapters.rank, kLoraRanks), each = static_cast<int64_t>(sites.size()) * pieces;
    const LoraTokens tokens = chunk_at(w.adapters, index / each);
    const int64_t place = index % each / pieces, first = index % pieces * kLoraRanks;
    const int32_t site = sites[static_cast<size_t>(place)], residual = residuals[static_cast<size_t>(place)];
    const Adapter::Delta &d = delta_of(tokens, site);
    LoraArgs a = args_of(w.adapters, tokens, d);
    if (first == 0 && residual != kNone && !d.row_scale.empty())
        for (int64_t t = 0; t < tokens.count; ++t) {
            const Buffer &buffer = w.buffer(residual);
            float *to = w.adapters.before.data() + a.tokens[t] * w.adapters.before_stride;
            std::copy_n(buffer.row(a.tokens[t]), buffer.stride, to + w.lora_sites[static_cast<size_t>(site)].before);
        }
    if (first >= d.rank) return;
    a.weights = d.a;
    a.scales = d.a_scales.data();
    a.begin = first;
    a.end = std::min(first + kLoraRanks, d.rank);
    a.x = w.buffer(x).row(0);
    a.x_stride = w.buffer(x).stride;
    a.hidden = w.adapters.hidden.data() + place * w.adapters.rank;
    w.lora_kernels->shrink(a);
}

Cost LoraShrinkStage::describe(const Workspace &w, const Step &) const {
    Cost cost{"adapters"};
    for (const int32_t site : sites) add_adapters_cost(cost, w, site, true);
    return cost;
}

// ---- what linear stages do with adapters ----------------------------------------------------------------------

void LinearStage::finish(Workspace &w, const Step &step, int64_t begin, int64_t end) const {
    const int64_t n = w.num_rows(rows, step);
    while (begin < end) {
        Item at = item(w, step, begin);
        const int64_t each = panels_an_item(*at.part, n);
        at.panel_end = std::min(at.panel_begin + (end - begin) * each, at.weight->panels);
        begin += ceil_div(at.panel_end - at.panel_begin, each);
        add_adapters(w, static_cast<size_t>(at.part - parts.data()), at);
    }
}

// To neighbouring panels of one part, for a chunk of the rows.
void LinearStage::add_adapters(Workspace &w, size_t part, const Item &at) const {
    const Buffer &out = w.buffer(at.part->out);
    const int64_t before = w.lora_sites[static_cast<size_t>(at.part->site)].before;
    for (const StepAdapters::Group &group : w.adapters.groups) {
        const LoraTokens tokens = tokens_within(w.adapters, group, at.row_begin, at.row_end);
        const Adapter::Delta &d = delta_of(tokens, at.part->site);
        if (tokens.count == 0 || d.empty()) continue;
        LoraArgs a = args_of(w.adapters, tokens, d);
        a.weights = d.b;
        a.scales = d.b_scales.data();
        a.begin = at.panel_begin;
        a.end = at.panel_end;
        a.hidden = w.adapters.hidden.data() + static_cast<int64_t>(part) * w.adapters.rank;
        a.out = out.row(0);
        a.out_stride = out.stride;
        a.bias = d.bias.empty() ? nullptr : d.bias.data();
        a.row_scale = d.row_scale.empty() ? nullptr : d.row_scale.data();
        a.before = at.part->accumulate ? w.adapters.before.data() + before : nullptr;
        a.before_stride = w.adapters.before_stride;
            w.lora_kernels->expand(a);
    }
}

}  // namespace pagoda
