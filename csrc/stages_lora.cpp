#include <algorithm>
#include <stdexcept>
#include <string_view>

#include "stages.h"

namespace pagoda {

namespace {

constexpr int64_t kLoraItemTokens = 64;  // of an item at most
constexpr int64_t kLoraItemPanels = 32;

// The tokens of one adapter that an item works on.
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

Cost cost_of(const Workspace &w, const std::vector<int32_t> &sites, bool is_a) {
    Cost cost{"adapters"};
    for (const StepAdapters::Group &g : w.adapters.groups)
        for (const int32_t site : sites) {
            const Adapter::Delta &d = g.adapter->deltas[static_cast<size_t>(site)];
            const LoraSite &at = w.lora_sites[static_cast<size_t>(site)];
            const int64_t width = is_a ? at.columns : at.rows;
            cost.bytes += static_cast<double>(d.rank * width * lora_element_bytes(g.adapter->type));
            cost.operations += 2.0 * static_cast<double>(d.rank * width * (g.end - g.begin));
        }
    return cost;
}

}  // namespace

void LoraReading::clear() {
    pieces.clear();
    lines = 0;
}

void LoraReading::add(const uint8_t *from, int64_t bytes) {
    if (bytes == 0) return;
    pieces.emplace_back(from, bytes);
    lines += ceil_div(bytes, 64);
}

void LoraReading::read_ahead(int64_t part, int64_t parts) const {
    int64_t begin = lines * part / parts;
    const int64_t end = lines * (part + 1) / parts;
    int64_t at = 0;
    for (size_t i = 0; begin < end && i < pieces.size(); ++i) {
        const auto &[from, bytes] = pieces[i];
        const int64_t here = ceil_div(bytes, 64);
        for (; begin < std::min(end, at + here); ++begin) __builtin_prefetch(from + (begin - at) * 64, 0, 2);
        at += here;
    }
}

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

void LoraShrinkStage::plan(const Workspace &w) {
    reading.clear();
    for (const StepAdapters::Group &g : w.adapters.groups)
        for (const int32_t site : sites) {
            const Adapter::Delta &d = g.adapter->deltas[static_cast<size_t>(site)];
            reading.add(d.a, g.adapter->a_bytes(d));
        }
}

int64_t LoraShrinkStage::items(const Workspace &w, const Step &) const {
    return num_chunks(w.adapters) * static_cast<int64_t>(sites.size()) * ceil_div(w.adapters.rank, kLoraRanks);
}

// Items go by adapter, then its tokens, then sites, then ranks.
void LoraShrinkStage::run(Workspace &w, const Step &, int64_t index, uint8_t *) const {
    const int64_t pieces = ceil_div(w.adapters.rank, kLoraRanks), each = static_cast<int64_t>(sites.size()) * pieces;
    const LoraTokens tokens = chunk_at(w.adapters, index / each);
    const int64_t place = index % each / pieces, first = index % pieces * kLoraRanks;
    const Adapter::Delta &d = delta_of(tokens, sites[static_cast<size_t>(place)]);
    if (first >= d.rank) return;
    LoraArgs a = args_of(w.adapters, tokens, d);
    a.weights = d.a;
    a.scales = d.a_scales.data();
    a.begin = first;
    a.end = std::min(first + kLoraRanks, d.rank);
    a.x = w.buffer(x).row(0);
    a.x_stride = w.buffer(x).stride;
    a.hidden = w.adapters.hidden.data() + place * w.adapters.rank;
    w.lora_kernels->shrink(a);
}

Cost LoraShrinkStage::describe(const Workspace &w, const Step &) const { return cost_of(w, sites, true); }

// ---- lora expand ----------------------------------------------------------------------------------------------

void LoraExpandStage::admit(Workspace &w) {
    if (sites.size() != outs.size()) throw std::invalid_argument("an output for each linear that adapters add to is needed");
    for (size_t i = 0; i < sites.size(); ++i) {
        const LoraSite &at = w.lora_sites.at(static_cast<size_t>(sites[i]));
        panels_.push_back(ceil_div(at.rows, kPanelRows));
        chunks_ += ceil_div(panels_.back(), kLoraItemPanels);
        if (w.buffer(outs[i]).stride < panels_.back() * kPanelRows)
            throw std::invalid_argument("adapters add to what their linears make");
    }
}

void LoraExpandStage::plan(const Workspace &w) {
    reading.clear();
    for (const StepAdapters::Group &g : w.adapters.groups)
        for (size_t i = 0; i < sites.size(); ++i) {
            const Adapter::Delta &d = g.adapter->deltas[static_cast<size_t>(sites[i])];
            reading.add(d.b, panels_[i] * g.adapter->panel_bytes(d));
        }
}

int64_t LoraExpandStage::items(const Workspace &w, const Step &) const { return num_chunks(w.adapters) * chunks_; }

// Items go by adapter, then its tokens, then sites, then panels.
void LoraExpandStage::run(Workspace &w, const Step &, int64_t index, uint8_t *) const {
    const LoraTokens tokens = chunk_at(w.adapters, index / chunks_);
    int64_t chunk = index % chunks_;
    size_t place = 0;
    for (int64_t here; chunk >= (here = ceil_div(panels_[place], kLoraItemPanels)); ++place) chunk -= here;
    const Adapter::Delta &d = delta_of(tokens, sites[place]);
    if (d.empty()) return;
    const int64_t parts = ceil_div(panels_[place], kLoraItemPanels);
    LoraArgs a = args_of(w.adapters, tokens, d);
    a.weights = d.b;
    a.scales = d.b_scales.data();
    a.begin = panels_[place] * chunk / parts;
    a.end = panels_[place] * (chunk + 1) / parts;
    a.hidden = w.adapters.hidden.data() + static_cast<int64_t>(place) * w.adapters.rank;
    a.out = w.buffer(outs[place]).row(0);
    a.out_stride = w.buffer(outs[place]).stride;
    a.bias = d.bias.empty() ? nullptr : d.bias.data();
    w.lora_kernels->expand(a);
}

Cost LoraExpandStage::describe(const Workspace &w, const Step &) const { return cost_of(w, sites, false); }

}  // namespace pagoda
