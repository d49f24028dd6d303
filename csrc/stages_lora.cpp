#include <algorithm>
#include <stdexcept>
#include <string_view>

#include "stages.h"

namespace pagoda {

namespace {

constexpr int64_t kLoraItemTokens = 64;  // of an item at most

void read_ahead_bytes(const uint8_t *from, int64_t bytes) {
    for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(from + at, 0, 2);
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

// ---- lora shrink ----------------------------------------------------------------------------------------------

void LoraShrinkStage::admit(Workspace &w) {
    for (const int32_t site : sites)
        if (site < 0 || w.buffer(x).columns < w.lora_sites.at(static_cast<size_t>(site)).columns)
            throw std::invalid_argument("adapters read what their linears read");
    w.lora_together = std::max(w.lora_together, static_cast<int64_t>(sites.size()));
}

int64_t LoraShrinkStage::items(const Workspace &w, const Step &) const {
    int64_t chunks = 0;
    for (const StepAdapters::Group &g : w.adapters.groups) chunks += ceil_div(g.end - g.begin, kLoraItemTokens);
    return chunks * static_cast<int64_t>(sites.size()) * ceil_div(w.adapters.rank, kLoraRanks);
}

// Items go by adapter, then its tokens, then sites, then ranks.
void LoraShrinkStage::run(Workspace &w, const Step &, int64_t index, uint8_t *) const {
    StepAdapters &step = w.adapters;
    const int64_t pieces = ceil_div(step.rank, kLoraRanks), each = static_cast<int64_t>(sites.size()) * pieces;
    int64_t chunk = index / each;
    auto group = step.groups.begin();
    for (int64_t here; chunk >= (here = ceil_div(group->end - group->begin, kLoraItemTokens)); ++group) chunk -= here;
    const int64_t place = index % each / pieces, first = index % pieces * kLoraRanks;
    const Adapter::Delta &d = group->adapter->deltas[static_cast<size_t>(sites[static_cast<size_t>(place)])];
    if (first >= d.rank) return;
    const int64_t begin = group->begin + chunk * kLoraItemTokens;
    LoraArgs a{};
    a.weights = d.a;
    a.scales = d.a_scales.data();
    a.type = group->adapter->type;
    a.rank = d.rank;
    a.columns = d.columns;
    a.begin = first;
    a.end = std::min(first + kLoraRanks, d.rank);
    a.tokens = step.tokens.data() + begin;
    a.count = std::min(kLoraItemTokens, group->end - begin);
    a.x = w.buffer(x).row(0);
    a.x_stride = w.buffer(x).stride;
    a.hidden = step.hidden.data() + place * step.rank;
    a.hidden_stride = step.hidden_stride;
    w.lora_kernels->shrink(a);
}

// Of what the stage will read, the `part`th of `parts` stretches of bytes.
void LoraShrinkStage::read_ahead(const Workspace &w, int64_t part, int64_t parts) const {
    const auto each = [&](auto visit) {
        for (const StepAdapters::Group &g : w.adapters.groups)
            for (const int32_t site : sites) {
                const Adapter::Delta &d = g.adapter->deltas[static_cast<size_t>(site)];
                visit(d.a, g.adapter->a_bytes(d));
            }
    };
    int64_t total = 0, at = 0;
    each([&](const uint8_t *, int64_t bytes) { total += bytes; });
    const int64_t begin = total * part / parts, end = total * (part + 1) / parts;
    each([&](const uint8_t *from, int64_t bytes) {
        const int64_t first = std::max(begin, at), last = std::min(end, at + bytes);
        if (first < last) read_ahead_bytes(from + (first - at), last - first);
        at += bytes;
    });
}

Cost LoraShrinkStage::describe(const Workspace &w, const Step &) const {
    Cost cost{"adapters"};
    for (const StepAdapters::Group &g : w.adapters.groups)
        for (const int32_t site : sites) {
            const Adapter::Delta &d = g.adapter->deltas[static_cast<size_t>(site)];
            cost.bytes += static_cast<double>(g.adapter->a_bytes(d));
            cost.operations += 2.0 * static_cast<double>(d.rank * d.columns * (g.end - g.begin));
        }
    return cost;
}

// ---- what adapters add to a linear ------------------------------------------------------------------------------

// While the base's product is computed, what the adapters have of the same panels comes into the cache.
void LinearStage::read_ahead_adapters(const Workspace &w, const Item &at) const {
    for (const StepAdapters::Group &g : w.adapters.groups) {
        const Adapter::Delta &d = g.adapter->deltas[static_cast<size_t>(at.part->site)];
        const int64_t each = g.adapter->panel_bytes(d);
        if (d.rank) read_ahead_bytes(d.b + at.panel_begin * each, (at.panel_end - at.panel_begin) * each);
    }
}

void LinearStage::add_adapters(Workspace &w, const Item &at) const {
    const LinearPart &part = *at.part;
    const StepAdapters &step = w.adapters;
    for (const StepAdapters::Group &g : step.groups) {
        const Adapter::Delta &d = g.adapter->deltas[static_cast<size_t>(part.site)];
        if (d.empty()) continue;
        const int32_t *all = step.tokens.data();
        const int32_t *begin = std::lower_bound(all + g.begin, all + g.end, static_cast<int32_t>(at.row_begin));
        const int32_t *end = std::lower_bound(begin, all + g.end, static_cast<int32_t>(at.row_end));
        if (begin == end) continue;
        LoraArgs a{};
        a.weights = d.b;
        a.scales = d.b_scales.data();
        a.type = g.adapter->type;
        a.rank = d.rank;
        a.begin = at.panel_begin;
        a.end = at.panel_end;
        a.tokens = begin;
        a.count = end - begin;
        a.hidden = w.adapters.hidden.data() + (&part - parts.data()) * step.rank;
        a.hidden_stride = step.hidden_stride;
        a.out = w.buffer(part.out).row(0);
        a.out_stride = w.buffer(part.out).stride;
        a.bias = d.bias.empty() ? nullptr : d.bias.data();
        w.lora_kernels->expand(a);
    }
}

}  // namespace pagoda
