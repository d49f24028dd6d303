#include "workspace.h"

#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace pagoda {

namespace {

constexpr int64_t kAttendItems = 8;  // fewer attention tiles a thread are split by keys

int64_t element_bytes(KVType t) { return t == KVType::F32 ? 4 : t == KVType::Int8 ? 1 : 2; }
bool has_scales(KVType t) { return t == KVType::Int16 || t == KVType::Int8; }

void require(bool ok, const char *what) {
    if (!ok) throw std::invalid_argument(what);
}

}  // namespace

LazyMemory in_small_pages(size_t bytes) {
    LazyMemory memory(bytes);
#ifdef MADV_NOHUGEPAGE
    madvise(memory.data(), memory.bytes(), MADV_NOHUGEPAGE);
#endif
    return memory;
}

HeadLayout::HeadLayout(const LayerKV &l, KVType t)
    : k(l.one_vector() ? 0 : round_up(l.head_dim, 2) * kBlockTokens * element_bytes(t)),
      v(round_up(l.head_dim, 16) * kBlockTokens * element_bytes(t)),
      scale(has_scales(t) ? kBlockTokens * 4 : 0) {}

void QuantizedBuffer::open(int bits) {
    Quantized &codes = bits == 8 ? codes8 : codes16;
    if (codes.q) return;
    LazyMemory &memory = bits == 8 ? memory8 : memory16;
    memory = in_small_pages(static_cast<size_t>(rows * Quantized::bytes_per_token(columns, bits)));
    codes = Quantized::at(memory.data(), rows, columns, bits);
}

void Workspace::set_layers(std::vector<LayerKV> given, int groups) {
    layers = std::move(given);
    group_bytes.assign(static_cast<size_t>(groups), 0);
    group_windows.assign(static_cast<size_t>(groups), 1);
    num_blocks.assign(static_cast<size_t>(groups), 0);
    for (const LayerKV &l : layers) {
        require(!l.one_vector() || (l.values_from >= 0 && l.values_from < l.head_dim && l.head_dim % 16 == 0),
                "a vector that is key and value has a multiple of 16 numbers, and some are its value");
        int64_t &bytes = group_bytes.at(static_cast<size_t>(l.group));
        layer_offset.push_back(bytes);
        bytes += HeadLayout(l, kv_type).total() * l.kv_heads;
    }
}

int64_t Workspace::add_state(int64_t floats) {
    const int64_t at = state_floats;
    state_floats += round_up(floats, 16);
    return at;
}

void Workspace::allocate_kv(const std::vector<int64_t> &blocks, int64_t count) {
    if (blocks.size() != group_bytes.size()) throw std::invalid_argument("a block count for each KV group is needed");
    kv.clear();
    for (size_t g = 0; g < blocks.size(); ++g) kv.emplace_back(static_cast<size_t>(blocks[g] * group_bytes[g]));
    num_blocks = blocks;
    states = LazyMemory(static_cast<size_t>(count * state_floats) * 4);
    num_states = count;
}

void Workspace::copy_blocks(int group, const int32_t *pairs, int64_t n) {
    const auto g = static_cast<size_t>(group);
    const int64_t bytes = group_bytes.at(g);
    for (int64_t i = 0; i < 2 * n; ++i) require(pairs[i] >= 0 && pairs[i] < num_blocks[g], "no such KV block");
    for (int64_t i = 0; i < n; ++i)
        std::memcpy(kv[g].data() + pairs[2 * i + 1] * bytes, kv[g].data() + pairs[2 * i] * bytes,
                    static_cast<size_t>(bytes));
}

int64_t Workspace::block_bytes(int group) const {
    const auto g = static_cast<size_t>(group);
    return g == group_bytes.size() && state_floats > 0 ? 4 * state_floats : group_bytes.at(g);
}

uint8_t *Workspace::block(int group, int32_t index) const {
    const auto g = static_cast<size_t>(group);
    const bool is_state = g == group_bytes.size();
    require(index >= 0 && index < (is_state ? num_states : num_blocks.at(g)), "no such KV block or state");
    return (is_state ? states : kv.at(g)).data() + index * block_bytes(group);
}

void Workspace::read_blocks(int group, const int32_t *blocks, int64_t n, uint8_t *out) const {
    const auto bytes = static_cast<size_t>(block_bytes(group));
    for (int64_t i = 0; i < n; ++i) std::memcpy(out + static_cast<size_t>(i) * bytes, block(group, blocks[i]), bytes);
}

void Workspace::write_blocks(int group, const int32_t *blocks, int64_t n, const uint8_t *in) {
    const auto bytes = static_cast<size_t>(block_bytes(group));
    for (int64_t i = 0; i < n; ++i) std::memcpy(block(group, blocks[i]), in + static_cast<size_t>(i) * bytes, bytes);
}

int64_t Workspace::buffer_bytes() const {
    size_t total = logits.bytes();
    for (const Buffer &b : buffers) total += b.memory.bytes();
    for (const QuantizedBuffer &b : quantized) total += b.memory16.bytes() + b.memory8.bytes();
    for (const RopeTable &r : ropes) total += r.turns.bytes();
    return static_cast<int64_t>(total);
}

int64_t Workspace::num_rows(Rows rows, const Step &step) const {
    switch (rows) {
        case Rows::Tokens: return step.tokens;
        case Rows::Logits: return step.logit_rows;
        case Rows::Hidden: return step.hidden_rows;
        case Rows::Routed:
        case Rows::ToRouted: return step.tokens * routing.top_k;
    }
    return 0;
}

int64_t Workspace::source_row(Rows rows, const Step &step, int64_t row) const {
    switch (rows) {
        case Rows::Logits: return step.logit_row_ids[row];
        case Rows::Hidden: return step.hidden_row_ids[row];
        case Rows::ToRouted: return routing.tokens[static_cast<size_t>(row)];
        case Rows::Tokens:
        case Rows::Routed: break;
    }
    return row;
}

// ---- a step -------------------------------------------------------------------------------------------------

void Workspace::check(const Step &s) const {
    require(s.tokens >= 1 && s.tokens <= max_tokens, "more tokens than the program was made for, or none");
    require(s.logit_rows <= max_logit_rows && s.logit_rows <= max_tokens, "more logit rows than the program was made for");
    require(s.tables.size() == kv.size() && !kv.empty(), "a block table for each KV group is needed");
    require(s.seq_starts[0] == 0 && s.seq_starts[s.sequences] == s.tokens, "sequences must cover the tokens");
    for (int64_t t = 0; t < s.tokens; ++t)
        require(s.token_ids[t] >= 0 && s.token_ids[t] < embed_limits[0], "token id outside of the vocabulary");
    for (int64_t t = 0; t < s.tokens; ++t)
        require(s.positions[t] < embed_limits[1], "position beyond the table of positions");
    for (int64_t t = 0; s.token_types && t < s.tokens; ++t)
        require(s.token_types[t] >= 0 && s.token_types[t] < embed_limits[2], "no such token type");
    for (int64_t r = 0; r < s.logit_rows; ++r)
        require(s.logit_row_ids[r] >= 0 && s.logit_row_ids[r] < s.tokens, "logit row outside of the tokens");
    require(s.hidden_rows <= max_tokens, "more rows of hidden states than the program was made for");
    for (int64_t r = 0; r < s.hidden_rows; ++r)
        require(s.hidden_row_ids[r] >= 0 && s.hidden_row_ids[r] < s.tokens, "row of hidden states outside of the tokens");
    for (const Adapter *adapter : s.adapters)
        require(adapter->owner == this && adapter->deltas.size() == lora_sites.size(), "an adapter of another program");
    for (int64_t b = 0; s.adapter_of && b < s.sequences; ++b)
        require(s.adapter_of[b] >= kNone && s.adapter_of[b] < static_cast<int64_t>(s.adapters.size()), "no such adapter");
    if (state_floats > 0) {
        require(s.state_starts && s.state_saves, "a model with states needs to know where they are");
        for (int64_t b = 0; b < s.sequences; ++b)
            require(s.state_starts[b] >= kNone && s.state_starts[b] < num_states, "no such state");
        for (int64_t t = 0; t < s.tokens; ++t)
            require(s.state_saves[t] >= kNone && s.state_saves[t] < num_states, "no such state");
    }
    for (int64_t b = 0; b < s.sequences; ++b) {
        const int64_t begin = s.seq_starts[b], end = s.seq_starts[b + 1];
        require(begin < end && end <= s.tokens, "every sequence needs a token, and sequences must cover the tokens");
        for (int64_t t = begin; t < end; ++t)
            require(s.positions[t] == s.positions[begin] + (t - begin) && s.positions[t] >= 0,
                    "positions of a sequence must be consecutive");
        check_tables(s, b);
    }
}

void Workspace::check_tables(const Step &s, int64_t sequence) const {
    const int64_t start = s.positions[s.seq_starts[sequence]];
    const int64_t first = start / kBlockTokens, last = s.positions[s.seq_starts[sequence + 1] - 1] / kBlockTokens;
    for (size_t g = 0; g < kv.size(); ++g) {
        require(last < s.tables[g].width, "block table is too short");
        const int32_t *row = s.tables[g].blocks + sequence * s.tables[g].stride;
        const int64_t window = group_windows[g];
        const int64_t oldest = window == 0 ? 0 : start - window + 1;  // key that is looked at
        for (int64_t i = 0; i <= last; ++i) {
            require(row[i] >= -1 && row[i] < num_blocks[g], "no such KV block");
            require(i < first || row[i] >= 0, "the block that a token is stored in is missing");
            require(i < oldest / kBlockTokens || row[i] >= 0, "a block that attention reads is missing");
        }
    }
}

void Workspace::plan(const Step &step) {
    token_sequence.resize(static_cast<size_t>(step.tokens));
    for (int64_t b = 0; b < step.sequences; ++b)
        std::fill(token_sequence.begin() + step.seq_starts[b], token_sequence.begin() + step.seq_starts[b + 1],
                  static_cast<int32_t>(b));
    attention.plan(step, pool->size());
    plan_adapters(step);
    routing.chunks.clear();
}

void Workspace::plan_adapters(const Step &step) {
    adapters.groups.clear();
    adapters.tokens.clear();
    adapters.asks.clear();
    adapters.rank = 0;
    adapters.scales_rows = false;
    if (!step.adapter_of) return;
    for (size_t i = 0; i < step.adapters.size(); ++i) {
        const auto begin = static_cast<int64_t>(adapters.tokens.size());
        for (int64_t b = 0; b < step.sequences; ++b)
            if (step.adapter_of[b] == static_cast<int32_t>(i))
                for (int32_t t = step.seq_starts[b]; t < step.seq_starts[b + 1]; ++t) adapters.tokens.push_back(t);
        const auto end = static_cast<int64_t>(adapters.tokens.size());
        if (begin == end) continue;
        adapters.groups.push_back({step.adapters[i], begin, end});
        adapters.rank = std::max(adapters.rank, step.adapters[i]->rank);
        adapters.scales_rows |= step.adapters[i]->scales_rows;
    }
    if (adapters.empty()) return;
    adapters.asks.assign(static_cast<size_t>(step.tokens), 0);
    for (const int32_t t : adapters.tokens) adapters.asks[static_cast<size_t>(t)] = 1;
    adapters.hidden_stride = lora_together * adapters.rank;
    const auto floats = static_cast<size_t>(step.tokens * adapters.hidden_stride);
    if (adapters.hidden.size() < floats) adapters.hidden.resize(floats);
    const auto kept = static_cast<size_t>(adapters.scales_rows ? step.tokens * adapters.before_stride : 0);
    if (adapters.before.size() < kept) adapters.before.resize(kept);
}

int64_t Routing::num_busy() const {
    int64_t busy = 0;
    for (size_t i = 0; i < chunks.size(); ++i) busy += i == 0 || chunks[i].expert != chunks[i - 1].expert;
    return busy;
}

void Routing::group(int64_t count, int64_t num_experts, int64_t most) {
    const auto each = static_cast<size_t>(top_k), total = static_cast<size_t>(count) * each;
    std::vector<int64_t> next(static_cast<size_t>(num_experts) + 1, 0);  // the next free row of each expert
    for (size_t i = 0; i < total; ++i) ++next[static_cast<size_t>(experts[i]) + 1];
    chunks.clear();
    for (size_t e = 0; e < static_cast<size_t>(num_experts); ++e) {
        const int64_t begin = next[e], end = begin + next[e + 1];
        for (int64_t at = begin; at < end; at += most)
            chunks.push_back({static_cast<int32_t>(e), at, std::min(at + most, end)});
        next[e + 1] = end;
    }
    rows.resize(total);
    tokens.resize(total);
    for (size_t i = 0; i < total; ++i) {
        const int64_t row = next[static_cast<size_t>(experts[i])]++;
        rows[i] = static_cast<int32_t>(row);
        tokens[static_cast<size_t>(row)] = static_cast<int32_t>(i / each);
    }
}

// Query tiles of every sequence; the costliest, those with the longest contexts, first.
void AttentionPlan::plan(const Step &s, int threads) {
    tiles.clear();
    const int32_t tile = kAttendRows / static_cast<int32_t>(group);
    for (int64_t b = 0; b < s.sequences; ++b) {
        const int32_t begin = s.seq_starts[b], end = s.seq_starts[b + 1];
        for (int32_t t = begin + (end - 1 - begin) / tile * tile; t >= begin; t -= tile)
            tiles.push_back({static_cast<int32_t>(b), t, end - t < tile ? end - t : tile});
    }
    split(s, threads);
}

int32_t AttentionPlan::num_keys(const Step &step, const Tile &t) const {
    const int32_t last = causal.value_or(true) ? t.token + t.tokens - 1 : step.seq_starts[t.sequence + 1] - 1;
    return step.positions[last] + 1;
}

// Few tiles would leave threads without work, and long contexts make uneven ones: their chunks of keys become items.
void AttentionPlan::split(const Step &step, int threads) {
    const bool few = static_cast<int64_t>(tiles.size()) * groups < kAttendItems * threads && threads > 1;
    pieces.clear();
    splits.assign(tiles.size(), {});
    int64_t floats = 0;
    for (size_t i = 0; i < tiles.size(); ++i) {
        const Tile &t = tiles[i];
        const int32_t chunks = (num_keys(step, t) - 1) / kAttendChunk + 1;
        if (!few || chunks == 1) {
            pieces.push_back({static_cast<int32_t>(i), kNone});
            continue;
        }
        splits[i] = {chunks, floats};
        floats += groups * chunks * attend_part_floats(t.tokens * group, head_dim);
        for (int32_t c = 0; c < chunks; ++c) pieces.push_back({static_cast<int32_t>(i), c});
    }
    if (floats == 0) return;
    if (parts.size() < static_cast<size_t>(floats)) parts.resize(static_cast<size_t>(floats));
    const size_t counts = tiles.size() * static_cast<size_t>(groups);
    if (left_size < counts) {
        left = std::make_unique<std::atomic<int32_t>[]>(counts);
        left_size = counts;
    }
    for (size_t i = 0; i < counts; ++i)
        left[i].store(splits[i / static_cast<size_t>(groups)].chunks, std::memory_order_relaxed);
}

void Workspace::rotate(const Step &step, int64_t token) {
    for (const RopeTable &rope : ropes) {
        const auto half = static_cast<int64_t>(rope.inv_freq.size());
        float *cosines = rope.turns.as<float>() + token * 4 * half, *sines = cosines + 2 * half;
        for (int64_t i = 0; i < half; ++i) {
            const double angle =
                static_cast<double>(step.positions[token]) * static_cast<double>(rope.inv_freq[static_cast<size_t>(i)]);
            const int64_t first = rope.neox ? i : 2 * i, second = rope.neox ? i + half : 2 * i + 1;
            cosines[first] = cosines[second] = static_cast<float>(std::cos(angle)) * rope.scale;
            sines[second] = static_cast<float>(std::sin(angle)) * rope.scale;
            sines[first] = -sines[second];
        }
    }
}

}  // namespace pagoda
