#include "program.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <stdexcept>

namespace pagoda {

namespace {

constexpr int64_t kTokenChunk = 128;        // tokens that a linear item covers: their activations stay in L2
constexpr int64_t kItemBytes = 8 * 1024;    // weights that one item of a small batch streams
constexpr int64_t kReadAheadTokens = 8;     // a step of more is bound by arithmetic
constexpr int64_t kReadAheadItems = 6;      // of each thread's, while it waits
constexpr int64_t kAttendItems = 8;         // fewer attention tiles a thread are split by keys

int64_t element_bytes(KVType t) { return t == KVType::F32 ? 4 : t == KVType::Int8 ? 1 : 2; }

struct HeadLayout {
    int64_t k, v, scale;  // bytes of one head's K, V, and of the scales of either

    HeadLayout(const LayerKV &l, KVType t)
        : k(l.head_dim * kBlockTokens * element_bytes(t)),
          v(round_up(l.head_dim, 16) * kBlockTokens * element_bytes(t)),
          scale(t == KVType::Int8 ? kBlockTokens * 4 : 0) {}
    int64_t total() const { return round_up(k + v + 2 * scale, 64); }
};

const float *reordered(const float *x, const std::vector<int32_t> &order, float *to) {
    for (size_t i = 0; i < order.size(); ++i) to[i] = x[order[i]];
    return to;
}

double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

Program::Program(std::shared_ptr<Pool> pool, const Kernels *kernels, int64_t max_tokens, int64_t max_logit_rows,
                 KVType kv_type, int activation_bits)
    : pool_(std::move(pool)), kernels_(kernels), max_tokens_(max_tokens), max_logit_rows_(max_logit_rows),
      kv_type_(kv_type), activation_bits_(activation_bits) {
    constexpr size_t scratch = kGemmScratch > kAttendScratch ? kGemmScratch : kAttendScratch;
    for (int t = 0; t < pool_->size(); ++t) scratch_.emplace_back(scratch);
}

int Program::add_buffer(int64_t columns) {
    const int64_t stride = round_up(columns, 32);
    buffers_.push_back({LazyMemory(static_cast<size_t>(max_tokens_ * stride) * 4), stride});
    return static_cast<int>(buffers_.size()) - 1;
}

int Program::add_quantized(int64_t columns) {
    quantized_.push_back({columns, {}, {}});
    if (activation_bits_ == 16) open(quantized_.back(), 16);
    return static_cast<int>(quantized_.size()) - 1;
}

void Program::open(QuantizedBuffer &x, int bits) const {
    Quantized &codes = bits == 8 ? x.codes8 : x.codes16;
    if (codes.q) return;
    LazyMemory &memory = bits == 8 ? x.memory8 : x.memory16;
    memory = LazyMemory(static_cast<size_t>(max_tokens_ * Quantized::bytes_per_token(x.columns, bits)));
    codes = Quantized::at(memory.data(), max_tokens_, x.columns, bits);
}

int Program::add_rope(RopeTable table) {
    rope_rows_.emplace_back(static_cast<size_t>(max_tokens_) * table.inv_freq.size() * 16);
    ropes_.push_back(std::move(table));
    return static_cast<int>(ropes_.size()) - 1;
}

void Program::add(EmbedStage s) {
    stages_.push_back({Stage::Embed, static_cast<int>(embeds_.size())});
    embeds_.push_back(std::move(s));
}
void Program::add(RowStage s) {
    if (s.order.size() * sizeof(float) * 2 > kGemmScratch) throw std::invalid_argument("too many columns to reorder");
    stages_.push_back({Stage::Rows, static_cast<int>(row_stages_.size())});
    row_stages_.push_back(std::move(s));
}
void Program::add(LinearStage s) {
    if (s.logits) {
        const Weight &w = *s.parts[0].weight;
        logits_stride_ = w.panels * kPanelRows;
        logits_ = LazyMemory(static_cast<size_t>(max_logit_rows_ * logits_stride_) * 4);
    }
    if (s.quantized != kNone)
        for (const LinearPart &p : s.parts) open(quantized_.at(static_cast<size_t>(s.quantized)), takes_bytes(p) ? 8 : 16);
    stages_.push_back({Stage::Linear, static_cast<int>(linears_.size())});
    linears_.push_back(std::move(s));
}
void Program::add(PrepareStage s) {
    stages_.push_back({Stage::Prepare, static_cast<int>(prepares_.size())});
    prepares_.push_back(std::move(s));
}
void Program::add(AttendStage s) {
    const LayerKV &l = layers_.at(static_cast<size_t>(s.layer));
    if (s.heads / l.kv_heads > kAttendRows || l.head_dim > kMaxHeadDim)
        throw std::invalid_argument("too many query heads share a KV head, or the head is too large");
    for (PrepareStage &p : prepares_)
        if (p.layer == s.layer) p.heads = s.heads;
    largest_.kv_heads = std::max<int64_t>(largest_.kv_heads, l.kv_heads);
    largest_.head_dim = std::max<int64_t>(largest_.head_dim, l.head_dim);
    largest_.group = std::max<int64_t>(largest_.group, s.heads / l.kv_heads);
    stages_.push_back({Stage::Attend, static_cast<int>(attends_.size())});
    attends_.push_back(s);
}

void Program::set_layers(std::vector<LayerKV> layers, int groups) {
    layers_ = std::move(layers);
    group_bytes_.assign(static_cast<size_t>(groups), 0);
    num_blocks_.assign(static_cast<size_t>(groups), 0);
    for (const LayerKV &l : layers_) {
        int64_t &bytes = group_bytes_.at(static_cast<size_t>(l.group));
        layer_offset_.push_back(bytes);
        bytes += HeadLayout(l, kv_type_).total() * l.kv_heads;
    }
}

int64_t Program::block_bytes(int group) const { return group_bytes_.at(static_cast<size_t>(group)); }

void Program::allocate_kv(const std::vector<int64_t> &blocks) {
    if (blocks.size() != group_bytes_.size()) throw std::invalid_argument("a block count for each KV group is needed");
    kv_.clear();
    for (size_t g = 0; g < blocks.size(); ++g) kv_.emplace_back(static_cast<size_t>(blocks[g] * group_bytes_[g]));
    num_blocks_ = blocks;
}

void Program::copy_blocks(int group, const int32_t *pairs, int64_t n) {
    const auto g = static_cast<size_t>(group);
    const int64_t bytes = group_bytes_.at(g);
    for (int64_t i = 0; i < 2 * n; ++i)
        if (pairs[i] < 0 || pairs[i] >= num_blocks_[g]) throw std::invalid_argument("no such KV block");
    for (int64_t i = 0; i < n; ++i)
        std::memcpy(kv_[g].data() + pairs[2 * i + 1] * bytes, kv_[g].data() + pairs[2 * i] * bytes,
                    static_cast<size_t>(bytes));
}

int64_t Program::vocab() const {
    for (const LinearStage &s : linears_)
        if (s.logits) return s.parts[0].weight->rows;
    return 0;
}

int64_t Program::buffer_bytes() const {
    int64_t total = static_cast<int64_t>(logits_.bytes());
    for (const auto &b : buffers_) total += static_cast<int64_t>(b.memory.bytes());
    for (const auto &b : quantized_) total += static_cast<int64_t>(b.memory16.bytes() + b.memory8.bytes());
    for (const auto &b : scratch_) total += static_cast<int64_t>(b.bytes());
    for (const auto &b : rope_rows_) total += static_cast<int64_t>(b.bytes());
    return total;
}

// ---- a step -------------------------------------------------------------------------------------------------

// How many keys back the group's layers look at most; 0: at all of them.
int64_t Program::widest_window(size_t group) const {
    int64_t widest = 1;
    for (const AttendStage &a : attends_) {
        if (static_cast<size_t>(layers_[static_cast<size_t>(a.layer)].group) != group) continue;
        if (a.window == 0) return 0;
        if (a.window > widest) widest = a.window;
    }
    return widest;
}

void Program::check(const Step &s) const {
    const auto require = [](bool ok, const char *what) {
        if (!ok) throw std::invalid_argument(what);
    };
    require(s.tokens >= 1 && s.tokens <= max_tokens_, "more tokens than the program was made for, or none");
    require(s.logit_rows <= max_logit_rows_ && s.logit_rows <= max_tokens_, "more logit rows than the program was made for");
    require(s.tables.size() == kv_.size() && !kv_.empty(), "a block table for each KV group is needed");
    require(s.seq_starts[0] == 0 && s.seq_starts[s.sequences] == s.tokens, "sequences must cover the tokens");
    for (const EmbedStage &e : embeds_)
        for (int64_t t = 0; t < s.tokens; ++t)
            require(s.token_ids[t] >= 0 && s.token_ids[t] < e.rows, "token id outside of the vocabulary");
    for (int64_t r = 0; r < s.logit_rows; ++r)
        require(s.logit_row_ids[r] >= 0 && s.logit_row_ids[r] < s.tokens, "logit row outside of the tokens");
    for (int64_t b = 0; b < s.sequences; ++b) {
        const int64_t begin = s.seq_starts[b], end = s.seq_starts[b + 1];
        require(begin < end && end <= s.tokens, "every sequence needs a token, and sequences must cover the tokens");
        for (int64_t t = begin; t < end; ++t)
            require(s.positions[t] == s.positions[begin] + (t - begin) && s.positions[t] >= 0,
                    "positions of a sequence must be consecutive");
        const int64_t first = s.positions[begin] / kBlockTokens, last = s.positions[end - 1] / kBlockTokens;
        for (size_t g = 0; g < kv_.size(); ++g) {
            require(last < s.tables[g].width, "block table is too short");
            const int32_t *row = s.tables[g].blocks + b * s.tables[g].stride;
            const int64_t window = widest_window(g);
            const int64_t oldest = window == 0 ? 0 : s.positions[begin] - window + 1;  // key that is looked at
            for (int64_t i = 0; i <= last; ++i) {
                require(row[i] >= -1 && row[i] < num_blocks_[g], "no such KV block");
                require(i < first || row[i] >= 0, "the block that a token is stored in is missing");
                require(i < oldest / kBlockTokens || row[i] >= 0, "a block that attention reads is missing");
            }
        }
    }
}

// Query tiles of every sequence; the costliest, those with the longest contexts, first.
void Program::plan_attention(const Step &s) {
    token_sequence_.resize(static_cast<size_t>(s.tokens));
    attend_tiles_.clear();
    const int32_t tile = kAttendRows / static_cast<int32_t>(largest_.group);
    for (int64_t b = 0; b < s.sequences; ++b) {
        const int32_t begin = s.seq_starts[b], end = s.seq_starts[b + 1];
        for (int32_t t = begin; t < end; ++t) token_sequence_[static_cast<size_t>(t)] = static_cast<int32_t>(b);
        for (int32_t t = begin + (end - 1 - begin) / tile * tile; t >= begin; t -= tile)
            attend_tiles_.push_back({static_cast<int32_t>(b), t, end - t < tile ? end - t : tile});
    }
    split_attention(s);
}

// Few tiles would leave threads without work, and long contexts make uneven ones: their chunks of keys become items.
void Program::split_attention(const Step &step) {
    const auto [kv_heads, head_dim, group] = largest_;
    const bool few = static_cast<int64_t>(attend_tiles_.size()) * kv_heads < kAttendItems * pool_->size() && pool_->size() > 1;
    attend_pieces_.clear();
    attend_splits_.assign(attend_tiles_.size(), {});
    int64_t floats = 0;
    for (size_t i = 0; i < attend_tiles_.size(); ++i) {
        const AttendTile &t = attend_tiles_[i];
        const int32_t chunks = (step.positions[t.token] + t.tokens - 1) / kAttendChunk + 1;
        if (!few || chunks == 1) {
            attend_pieces_.push_back({static_cast<int32_t>(i), kNone});
            continue;
        }
        attend_splits_[i] = {chunks, floats};
        floats += kv_heads * chunks * attend_part_floats(t.tokens * group, head_dim);
        for (int32_t c = 0; c < chunks; ++c) attend_pieces_.push_back({static_cast<int32_t>(i), c});
    }
    if (floats == 0) return;
    if (attend_parts_.size() < static_cast<size_t>(floats)) attend_parts_.resize(static_cast<size_t>(floats));
    const size_t counts = attend_tiles_.size() * static_cast<size_t>(kv_heads);
    if (attend_left_size_ < counts) {
        attend_left_ = std::make_unique<std::atomic<int32_t>[]>(counts);
        attend_left_size_ = counts;
    }
    for (size_t i = 0; i < counts; ++i)
        attend_left_[i].store(attend_splits_[i / static_cast<size_t>(kv_heads)].chunks, std::memory_order_relaxed);
}

int64_t Program::panels_an_item(const LinearPart &p, int64_t tokens) const {
    const Weight &w = *p.weight;
    if (tokens > kTokenChunk / 2) return 2;
    const int64_t panel_bytes = static_cast<int64_t>(w.bytes()) / w.panels;
    return std::max<int64_t>(tokens > kReadAheadTokens ? 2 : 1, kItemBytes / panel_bytes);
}

int64_t Program::items(const Stage &stage, const Step &step) const {
    const auto index = static_cast<size_t>(stage.index);
    switch (stage.kind) {
        case Stage::Embed:
        case Stage::Prepare: return step.tokens;
        case Stage::Rows: return row_stages_[index].gather ? step.logit_rows : step.tokens;
        case Stage::Attend:
            return static_cast<int64_t>(attend_pieces_.size()) *
                   layers_[static_cast<size_t>(attends_[index].layer)].kv_heads;
        case Stage::Linear: {
            const LinearStage &s = linears_[index];
            const int64_t tokens = s.logits ? step.logit_rows : step.tokens;
            int64_t n = 0;
            for (const LinearPart &p : s.parts) n += ceil_div(p.weight->panels, panels_an_item(p, tokens));
            return n * ceil_div(tokens, kTokenChunk);
        }
    }
    return 0;
}

void Program::embed(const EmbedStage &s, const Step &step, int64_t token) const {
    float *to = buffers_[static_cast<size_t>(s.out)].row(token);
    dequantize_row(s.type, s.data + step.token_ids[token] * row_bytes(s.type, s.columns), s.columns, to);
    if (s.scale != 1.0f)
        for (int64_t i = 0; i < s.columns; ++i) to[i] *= s.scale;
}

void Program::rows(const RowStage &s, const Step &step, int64_t row, float *scratch) const {
    const Buffer &source = buffers_[static_cast<size_t>(s.x)];
    const int64_t from = s.gather ? step.logit_row_ids[row] : row;
    const float *x = source.row(from);
    int64_t n = s.norm.empty() ? source.stride : static_cast<int64_t>(s.norm.size());
    if (s.quantized != kNone) n = quantized_[static_cast<size_t>(s.quantized)].columns;
    const bool keep = s.out != kNone && !s.accumulate;
    float *to = keep ? buffers_[static_cast<size_t>(s.out)].row(row) : scratch;
    if (s.gate != kNone) {
        kernels_->gated(buffers_[static_cast<size_t>(s.gate)].row(from), x, s.activation, n, to);
        x = to;
    }
    if (!s.norm.empty()) {
        kernels_->rms_norm(x, s.norm.data(), s.eps, static_cast<int64_t>(s.norm.size()), to);
        x = to;
    }
    if (s.quantized != kNone) {
        const float *values = s.order.empty() ? x : reordered(x, s.order, scratch + kGemmScratch / sizeof(float) / 2);
        const QuantizedBuffer &x = quantized_[static_cast<size_t>(s.quantized)];
        if (x.codes16.q) kernels_->quantize(values, n, x.codes16, row);
        if (x.codes8.q) kernels_->quantize8(values, n, x.codes8, row);
    }
    if (s.accumulate)
        kernels_->add(buffers_[static_cast<size_t>(s.out)].row(row), x, n);
    else if (keep && x != to)
        std::memcpy(to, x, static_cast<size_t>(n) * 4);
}

Program::LinearItem Program::linear_item(const LinearStage &s, const Step &step, int64_t item) const {
    const int64_t tokens = s.logits ? step.logit_rows : step.tokens;
    int64_t per_chunk = 0;
    for (const LinearPart &p : s.parts) per_chunk += ceil_div(p.weight->panels, panels_an_item(p, tokens));
    const int64_t chunk = item / per_chunk, token_begin = chunk * kTokenChunk;
    item %= per_chunk;
    for (const LinearPart &p : s.parts) {
        const int64_t each = panels_an_item(p, tokens), here = ceil_div(p.weight->panels, each);
        if (item < here)
            return {&p, item * each, std::min((item + 1) * each, p.weight->panels), token_begin,
                    std::min(token_begin + kTokenChunk, tokens)};
        item -= here;
    }
    return {};
}

void Program::linear(const LinearStage &s, const Step &step, int64_t item, uint8_t *scratch) const {
    const LinearItem at = linear_item(s, step, item);
    const LinearPart &p = *at.part;
    GemmArgs g{};
    g.weight = p.weight.get();
    g.panel_begin = at.panel_begin;
    g.panel_end = at.panel_end;
    g.token_begin = at.token_begin;
    g.token_end = at.token_end;
    const bool bytes = takes_bytes(p);
    if (s.quantized != kNone) {
        const QuantizedBuffer &x = quantized_[static_cast<size_t>(s.quantized)];
        g.act = bytes ? x.codes8 : x.codes16;
    }
    if (s.x != kNone) {
        g.x = buffers_[static_cast<size_t>(s.x)].row(0);
        g.x_stride = buffers_[static_cast<size_t>(s.x)].stride;
    }
    g.out = s.logits ? logits() : buffers_[static_cast<size_t>(p.out)].row(0);
    g.out_stride = s.logits ? logits_stride_ : buffers_[static_cast<size_t>(p.out)].stride;
    g.bias = p.bias.empty() ? nullptr : p.bias.data();
    g.accumulate = p.accumulate;
    g.scale = p.scale;
    g.scratch = scratch;
    (bytes ? kernels_->gemm8 : kernels_->gemm)[static_cast<int>(p.weight->type)](g);
    if (s.softcap <= 0) return;
    for (int64_t t = g.token_begin; t < g.token_end; ++t)
        for (int64_t i = g.panel_begin * kPanelRows; i < g.panel_end * kPanelRows; ++i) {
            float &x = g.out[t * g.out_stride + i];
            x = s.softcap * std::tanh(x / s.softcap);
        }
}

// What the threads will read first of the weights of the next linear stage after `stage`.
void Program::plan_reading(size_t stage, const Step &step, std::vector<Stretch> &to) const {
    to.clear();
    if (step.tokens > kReadAheadTokens) return;
    while (++stage < stages_.size())
        if (stages_[stage].kind == Stage::Linear) break;
    if (stage == stages_.size()) return;
    const LinearStage &s = linears_[static_cast<size_t>(stages_[stage].index)];
    const int64_t n = items(stages_[stage], step);
    for (int64_t ahead = 0; ahead < kReadAheadItems; ++ahead)
        for (int t = 0; t < pool_->size(); ++t) {
            const int64_t item = n * t / pool_->size() + ahead;
            if (item >= n) continue;
            const LinearItem i = linear_item(s, step, item);
            const Weight &w = *i.part->weight;
            to.push_back({w.codes(i.panel_begin), w.codes(i.panel_end)});
            to.push_back({w.scales(i.panel_begin), w.scales(i.panel_end)});
        }
}

void Program::rope_rows(const Step &step, int64_t token) {
    for (size_t r = 0; r < ropes_.size(); ++r) {
        const RopeTable &rope = ropes_[r];
        const auto half = static_cast<int64_t>(rope.inv_freq.size());
        float *cosines = rope_rows_[r].as<float>() + token * 4 * half, *sines = cosines + 2 * half;
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

void Program::prepare(const PrepareStage &s, const Step &step, int64_t token) const {
    const LayerKV &l = layers_[static_cast<size_t>(s.layer)];
    const auto g = static_cast<size_t>(l.group);
    float *q = buffers_[static_cast<size_t>(s.q)].row(token), *k = buffers_[static_cast<size_t>(s.k)].row(token);
    const float *v = buffers_[static_cast<size_t>(s.v)].row(token);
    const float *turn = nullptr;
    int rotary = 0;
    bool neox = false;
    if (s.rope != kNone) {
        const RopeTable &rope = ropes_[static_cast<size_t>(s.rope)];
        rotary = static_cast<int>(2 * rope.inv_freq.size());
        neox = rope.neox;
        turn = rope_rows_[static_cast<size_t>(s.rope)].as<float>() + token * 2 * rotary;
    }
    const auto finish = [&](float *head, const std::vector<float> &norm) {
        if (!norm.empty()) kernels_->rms_norm(head, norm.data(), s.eps, l.head_dim, head);
        if (turn) kernels_->rope(head, turn, rotary, neox);
    };
    for (int h = 0; h < s.heads; ++h) finish(q + h * l.head_dim, s.q_norm);
    for (int h = 0; h < l.kv_heads; ++h) finish(k + h * l.head_dim, s.k_norm);

    const HeadLayout layout(l, kv_type_);
    const int32_t position = step.positions[token];
    const int64_t sequence = token_sequence_[static_cast<size_t>(token)];
    const int32_t block = step.tables[g].blocks[sequence * step.tables[g].stride + position / kBlockTokens];
    uint8_t *at = kv_[g].data() + block * group_bytes_[g] + layer_offset_[static_cast<size_t>(s.layer)];
    for (int h = 0; h < l.kv_heads; ++h, at += layout.total()) {
        float *scales = reinterpret_cast<float *>(at + layout.k + layout.v);
        kernels_->store_kv(k + h * l.head_dim, v + h * l.head_dim, l.head_dim, position % kBlockTokens, kv_type_, at,
                           at + layout.k, scales, scales + kBlockTokens);
    }
}

// Tells of the keys that `item`, the next of this stage, starts with.
void Program::look_ahead(AttendArgs &a, const AttendStage &s, int64_t item, const Step &step) const {
    const LayerKV &l = layers_[static_cast<size_t>(s.layer)];
    const auto index = static_cast<size_t>(item / l.kv_heads);
    if (index >= attend_pieces_.size()) return;
    const AttendPiece &piece = attend_pieces_[index];
    const AttendTile &tile = attend_tiles_[static_cast<size_t>(piece.tile)];
    const Step::Table &table = step.tables[static_cast<size_t>(l.group)];
    AttendArgs next{};
    next.position = step.positions[tile.token];
    next.tokens = tile.tokens;
    next.window = s.window;
    const int chunk = piece.chunk == kNone ? next.first_chunk() : piece.chunk;
    const int blocks = (next.position + next.tokens - 1) / kBlockTokens + 1, first = chunk * (kAttendChunk / kBlockTokens);
    a.next_keys = a.kv + layer_offset_[static_cast<size_t>(s.layer)] + item % l.kv_heads * HeadLayout(l, kv_type_).total();
    a.next_table = table.blocks + tile.sequence * table.stride + first;
    a.next_blocks = std::min(blocks - first, kAttendChunk / kBlockTokens);
}

void Program::attend(const AttendStage &s, const Step &step, int64_t item, uint8_t *scratch) {
    const LayerKV &l = layers_[static_cast<size_t>(s.layer)];
    const auto g = static_cast<size_t>(l.group);
    const AttendPiece &piece = attend_pieces_[static_cast<size_t>(item / l.kv_heads)];
    const AttendTile &tile = attend_tiles_[static_cast<size_t>(piece.tile)];
    const int64_t head = item % l.kv_heads;
    const HeadLayout layout(l, kv_type_);
    AttendArgs a{};
    a.group = s.heads / l.kv_heads;
    a.head_dim = l.head_dim;
    const Buffer &q = buffers_[static_cast<size_t>(s.q)], &out = buffers_[static_cast<size_t>(s.out)];
    a.q = q.row(tile.token) + head * a.group * l.head_dim;
    a.q_stride = q.stride;
    a.out = out.row(tile.token) + head * a.group * l.head_dim;
    a.out_stride = out.stride;
    a.tokens = tile.tokens;
    a.position = step.positions[tile.token];
    a.scale = s.scale;
    a.softcap = s.softcap;
    a.window = s.window;
    a.kv = kv_[g].data();
    a.table = step.tables[g].blocks + tile.sequence * step.tables[g].stride;
    a.block_stride = group_bytes_[g];
    a.k_offset = layer_offset_[static_cast<size_t>(s.layer)] + head * layout.total();
    a.v_offset = a.k_offset + layout.k;
    a.k_scale_offset = a.v_offset + layout.v;
    a.v_scale_offset = a.k_scale_offset + layout.scale;
    a.type = kv_type_;
    a.scratch = scratch;
    look_ahead(a, s, item + 1, step);
    if (piece.chunk == kNone) return kernels_->attend(a);
    const Split &split = attend_splits_[static_cast<size_t>(piece.tile)];
    const int64_t each = attend_part_floats(a.tokens * a.group, l.head_dim);
    float *parts = attend_parts_.data() + split.parts_at + head * split.chunks * each;
    if (piece.chunk >= a.first_chunk()) {
        a.chunk = piece.chunk;
        a.part = parts + piece.chunk * each;
        kernels_->attend(a);
    }
    std::atomic<int32_t> &left = attend_left_[static_cast<size_t>(piece.tile * largest_.kv_heads + head)];
    if (left.fetch_sub(1, std::memory_order_acq_rel) > 1) return;
    left.store(split.chunks, std::memory_order_relaxed);  // for the next layer
    kernels_->merge_attended(a, parts);
}

void Program::do_item(const Stage &stage, int64_t item, const Step &step, uint8_t *scratch) {
    const auto i = static_cast<size_t>(stage.index);
    switch (stage.kind) {
        case Stage::Embed: embed(embeds_[i], step, item); break;
        case Stage::Rows: rows(row_stages_[i], step, item, reinterpret_cast<float *>(scratch)); break;
        case Stage::Linear: linear(linears_[i], step, item, scratch); break;
        case Stage::Prepare: prepare(prepares_[i], step, item); break;
        case Stage::Attend: attend(attends_[i], step, item, scratch); break;
    }
}

void Program::run(const Step &step) {
    check(step);
    plan_attention(step);
    const int threads = pool_->size();
    if (!counters_) counters_ = std::make_unique<Counter[]>((stages_.size() + 1) * static_cast<size_t>(threads));
    for (size_t i = 0; i <= stages_.size(); ++i) {
        const int64_t n = i < stages_.size() ? items(stages_[i], step) : step.tokens;
        for (int t = 0; t < threads; ++t) {
            Counter &c = counters_[i * static_cast<size_t>(threads) + static_cast<size_t>(t)];
            c.next.store(n * t / threads, std::memory_order_relaxed);
            c.end = n * (t + 1) / threads;
        }
    }
    if (profiling && profile_.empty()) profile_.resize(stages_.size());
    pool_->run([&](int thread) {
        uint8_t *scratch = scratch_[static_cast<size_t>(thread)].data();
        // A thread streams through its own stretch of the items, then helps the others with theirs.
        const auto for_items = [&](size_t stage, auto work) {
            for (int v = 0; v < threads; ++v) {
                Counter &c = counters_[stage * static_cast<size_t>(threads) + static_cast<size_t>((thread + v) % threads)];
                for (int64_t i; (i = c.next.fetch_add(1, std::memory_order_relaxed)) < c.end;) work(i);
            }
        };
        for_items(stages_.size(), [&](int64_t token) { rope_rows(step, token); });
        std::vector<Stretch> ahead;
        double since = profiling && thread == 0 ? now() : 0.0;
        for (size_t i = 0; i < stages_.size(); ++i) {
            for_items(i, [&](int64_t item) { do_item(stages_[i], item, step, scratch); });
            bool planned = false;
            size_t reading = 0;
            pool_->barrier([&] {  // while others work, memory is read ahead
                if (!planned) {
                    plan_reading(i, step, ahead);
                    planned = true;
                }
                if (reading == ahead.size()) return;
                Stretch &s = ahead[reading];
                for (int line = 0; line < 4 && s.from < s.end; ++line, s.from += 64) __builtin_prefetch(s.from);
                if (s.from >= s.end) ++reading;
            });
            if (profiling && thread == 0) {
                const double at = now();
                account(i, step, at - since);
                since = at;
            }
        }
    });
}

void Program::account(size_t i, const Step &step, double seconds) {
    Profile &p = profile_[i];
    p.seconds += seconds;
    const Stage &stage = stages_[i];
    const auto index = static_cast<size_t>(stage.index);
    switch (stage.kind) {
        case Stage::Embed: p.name = "embed"; break;
        case Stage::Prepare: p.name = "rope + store KV"; break;
        case Stage::Rows: {
            const RowStage &s = row_stages_[index];
            p.name = s.gate != kNone ? "gated activation" : !s.norm.empty() ? "norm" : "quantize";
            break;
        }
        case Stage::Linear: {
            const LinearStage &s = linears_[index];
            const int64_t tokens = s.logits ? step.logit_rows : step.tokens;
            p.name = s.logits ? "output head" : "linear";
            for (const LinearPart &part : s.parts) {
                p.name += s.logits ? "" : " " + std::to_string(part.weight->rows) + "x" + std::to_string(part.weight->columns);
                p.bytes += static_cast<double>(part.weight->bytes());
                p.operations += 2.0 * static_cast<double>(tokens * part.weight->rows * part.weight->columns);
            }
            break;
        }
        case Stage::Attend: {
            const AttendStage &s = attends_[index];
            const LayerKV &l = layers_[static_cast<size_t>(s.layer)];
            p.name = "attention";
            for (int64_t b = 0; b < step.sequences; ++b) {
                const double context = step.positions[step.seq_starts[b + 1] - 1] + 1;
                const double queries = step.seq_starts[b + 1] - step.seq_starts[b];
                p.bytes += context * static_cast<double>(HeadLayout(l, kv_type_).total() * l.kv_heads) / kBlockTokens;
                p.operations += 4.0 * queries * (context - (queries - 1) / 2) * s.heads * l.head_dim;
            }
            break;
        }
    }
}

std::vector<Program::Profile> Program::take_profile() {
    std::vector<Profile> taken;
    taken.swap(profile_);
    return taken;
}

}  // namespace pagoda
