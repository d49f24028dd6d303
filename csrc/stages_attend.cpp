#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string_view>

#include "stages.h"

namespace pagoda {

const LatentKernels &latent_kernels(const char *isa) {
    [[maybe_unused]] const std::string_view name = isa;
#if defined(PAGODA_AVX)
    if (name == "avx2") return *latent_kernels_avx2();
    if (name == "avx512") return *latent_kernels_avx512();
#elif defined(PAGODA_NEON)
    if (name == "neon") return *latent_kernels_neon();
#endif
    return *latent_kernels_generic();
}

// ---- rope_and_store_kv ----------------------------------------------------------------------------------------

void RopeAndStoreKVStage::admit(Workspace &w) {
    (void)w.layer(layer);
    if (growth_length < 1) throw std::invalid_argument("a length of less than a token");
    if ((k != kNone && !w.layer(layer).one_vector()) != (v != kNone))
        throw std::invalid_argument("keys without values, or values without keys");
}

void RopeAndStoreKVStage::run(Workspace &w, const Step &step, int64_t token, uint8_t *) const {
    const LayerKV &l = w.layer(layer);
    const auto g = static_cast<size_t>(l.group);
    float *queries = w.buffer(q).row(token);
    const float *turn = nullptr;
    int rotary = 0;
    bool neox = false;
    if (rope != kNone) {
        const RopeTable &table = w.ropes[static_cast<size_t>(rope)];
        rotary = static_cast<int>(2 * table.inv_freq.size());
        neox = table.neox;
        turn = table.turns.as<float>() + token * 2 * rotary;
    }
    const auto finish = [&](float *head, const std::vector<float> &norm) {
        if (!norm.empty()) w.kernels->rms_norm(head, norm.data(), eps, l.head_dim, head);
        if (turn) w.kernels->rope(head, turn, rotary, neox);
    };
    for (int h = 0; h < heads; ++h) finish(queries + h * l.head_dim, q_norm);
    if (growth != 0.0f) {
        const double factor = 1.0 + growth * std::log1p(static_cast<double>(step.positions[token] / growth_length));
        for (int i = 0; i < heads * l.head_dim; ++i) queries[i] *= static_cast<float>(factor);
    }
    if (k == kNone) return;
    float *keys = w.buffer(k).row(token);
    for (int h = 0; h < l.kv_heads; ++h) finish(keys + h * l.head_dim, k_norm);

    const HeadLayout layout(l, w.kv_type);
    const int32_t position = step.positions[token];
    const int64_t sequence = w.token_sequence[static_cast<size_t>(token)];
    const int32_t block = step.tables[g].blocks[sequence * step.tables[g].stride + position / kBlockTokens];
    uint8_t *at = w.kv[g].data() + block * w.group_bytes[g] + w.layer_offset[static_cast<size_t>(layer)];
    const float *values = l.one_vector() ? nullptr : w.buffer(v).row(token);
    for (int h = 0; h < l.kv_heads; ++h, at += layout.total()) {
        float *scales = reinterpret_cast<float *>(at + layout.k + layout.v);
        if (l.one_vector())
            w.latent_kernels->store(keys + h * l.head_dim, l.head_dim, position % kBlockTokens, w.kv_type, at, scales);
        else w.kernels->store_kv(keys + h * l.head_dim, values + h * l.head_dim, l.head_dim, position % kBlockTokens,
                            w.kv_type, at, at + layout.k, scales, scales + kBlockTokens);
    }
}

// ---- heads ----------------------------------------------------------------------------------------------------

void HeadNormStage::admit(Workspace &w) {
    const auto size = static_cast<int64_t>(weight.size()), columns = w.buffer(x).columns;
    const bool fits = num_heads > 0 && columns % num_heads == 0 && (size == columns / num_heads || size == columns);
    if (!fits || w.buffer(out).columns != columns)
        throw std::invalid_argument("heads of another size than their norm");
    if (centered) no_bias_.assign(static_cast<size_t>(columns / num_heads), 0.0f);
}

void HeadNormStage::run(Workspace &w, const Step &, int64_t token, uint8_t *) const {
    const float *from = w.buffer(x).row(token);
    float *to = w.buffer(out).row(token);
    const int64_t columns = w.buffer(x).columns, size = columns / num_heads;
    const bool own = static_cast<int64_t>(weight.size()) == columns;
    for (int64_t at = 0; at < columns; at += size) {
        const float *factors = weight.data() + (own ? at : 0);
        if (centered) w.kernels->layer_norm(from + at, factors, no_bias_.data(), eps, size, to + at);
        else w.kernels->rms_norm(from + at, factors, eps, size, to + at);
    }
}

void RopeStage::admit(Workspace &w) {
    const int64_t columns = w.buffer(x).columns;
    if (num_heads < 1 || columns % num_heads || w.buffer(out).columns != columns)
        throw std::invalid_argument("columns that do not divide into heads");
    const auto rotary = static_cast<int64_t>(2 * w.ropes.at(static_cast<size_t>(spec)).inv_freq.size());
    if (rotary > columns / num_heads) throw std::invalid_argument("more is turned than a head has");
}

void RopeStage::run(Workspace &w, const Step &, int64_t token, uint8_t *) const {
    const RopeTable &table = w.ropes[static_cast<size_t>(spec)];
    const auto rotary = static_cast<int64_t>(2 * table.inv_freq.size());
    const int64_t columns = w.buffer(x).columns;
    float *to = w.buffer(out).row(token);
    std::copy_n(w.buffer(x).row(token), columns, to);
    const float *turn = table.turns.as<float>() + token * 2 * rotary;
    for (int64_t at = 0; at < columns; at += columns / num_heads)
        w.kernels->rope(to + at, turn, static_cast<int>(rotary), table.neox);
}

// ---- attend ---------------------------------------------------------------------------------------------------

void AttendStage::admit(Workspace &w) {
    const LayerKV &l = w.layer(layer);
    if (heads % l.kv_heads || l.head_dim > kMaxHeadDim)
        throw std::invalid_argument("query heads that do not divide among KV heads, or too large a head");
    for (groups_ = l.kv_heads; heads % groups_ || heads / groups_ > kAttendRows;) groups_ += l.kv_heads;
    AttentionPlan &plan = w.attention;
    if (plan.causal.value_or(causal) != causal) throw std::invalid_argument("layers that attend to the past next to layers that attend to all");
    if (!sinks.empty() && sinks.size() != static_cast<size_t>(heads)) throw std::invalid_argument("there must be a sink for each head");
    if (!causal && window) throw std::invalid_argument("a window of attention to all tokens");
    plan.causal = causal;
    plan.groups = std::max<int64_t>(plan.groups, groups_);
    plan.head_dim = std::max<int64_t>(plan.head_dim, l.head_dim);
    plan.group = std::max<int64_t>(plan.group, heads / groups_);
    int64_t &widest = w.group_windows[static_cast<size_t>(l.group)];
    widest = window == 0 || widest == 0 ? 0 : std::max<int64_t>(widest, window);
}

int64_t AttendStage::items(const Workspace &w, const Step &) const {
    return static_cast<int64_t>(w.attention.pieces.size()) * groups_;
}

int64_t AttendStage::offset_of(const Workspace &w, int64_t group) const {
    const LayerKV &l = w.layer(layer);
    const int64_t kv_head = group / (groups_ / l.kv_heads);
    return w.layer_offset[static_cast<size_t>(layer)] + kv_head * HeadLayout(l, w.kv_type).total();
}

// Tells of the keys that `item`, the next of this stage, starts with.
void AttendStage::look_ahead(AttendArgs &a, const Workspace &w, const Step &step, int64_t item) const {
    const LayerKV &l = w.layer(layer);
    const auto index = static_cast<size_t>(item / groups_);
    if (index >= w.attention.pieces.size()) return;
    const AttentionPlan::Piece &piece = w.attention.pieces[index];
    const AttentionPlan::Tile &tile = w.attention.tiles[static_cast<size_t>(piece.tile)];
    const Step::Table &table = step.tables[static_cast<size_t>(l.group)];
    AttendArgs next{};
    next.position = step.positions[tile.token];
    next.tokens = tile.tokens;
    next.window = window;
    next.keys = w.attention.num_keys(step, tile);
    const int chunk = piece.chunk == kNone ? next.first_chunk() : piece.chunk;
    const int blocks = (next.keys - 1) / kBlockTokens + 1, first = chunk * (kAttendChunk / kBlockTokens);
    a.next_keys = a.kv + offset_of(w, item % groups_);
    a.next_table = table.blocks + tile.sequence * table.stride + first;
    a.next_blocks = std::min(blocks - first, kAttendChunk / kBlockTokens);
}

void AttendStage::run(Workspace &w, const Step &step, int64_t item, uint8_t *scratch) const {
    const LayerKV &l = w.layer(layer);
    const auto g = static_cast<size_t>(l.group);
    AttentionPlan &plan = w.attention;
    const AttentionPlan::Piece &piece = plan.pieces[static_cast<size_t>(item / groups_)];
    const AttentionPlan::Tile &tile = plan.tiles[static_cast<size_t>(piece.tile)];
    const int64_t together = item % groups_;
    const HeadLayout layout(l, w.kv_type);
    LatentArgs a{};
    a.values_from = l.values_from;
    a.group = heads / groups_;
    a.head_dim = l.head_dim;
    const Buffer &queries = w.buffer(q), &to = w.buffer(out);
    a.q = queries.row(tile.token) + together * a.group * l.head_dim;
    a.q_stride = queries.stride;
    a.out = to.row(tile.token) + together * a.group * l.value_dim();
    a.out_stride = to.stride;
    a.tokens = tile.tokens;
    a.position = step.positions[tile.token];
    a.scale = scale;
    a.softcap = softcap;
    a.sinks = sinks.empty() ? nullptr : sinks.data() + together * a.group;
    a.window = window;
    a.causal = causal;
    a.keys = plan.num_keys(step, tile);
    a.kv = w.kv[g].data();
    a.table = step.tables[g].blocks + tile.sequence * step.tables[g].stride;
    a.block_stride = w.group_bytes[g];
    a.k_offset = offset_of(w, together);
    a.v_offset = a.k_offset + layout.k;
    a.k_scale_offset = a.v_offset + layout.v;
    a.v_scale_offset = a.k_scale_offset + (l.one_vector() ? 0 : layout.scale);
    a.type = w.kv_type;
    a.scratch = scratch;
    look_ahead(a, w, step, item + 1);
    const auto attend = [&] { l.one_vector() ? w.latent_kernels->attend(a) : w.kernels->attend(a); };
    if (piece.chunk == kNone) return attend();
    const AttentionPlan::Split &split = plan.splits[static_cast<size_t>(piece.tile)];
    const int64_t each = attend_part_floats(a.tokens * a.group, l.head_dim);
    float *parts = plan.parts.data() + split.parts_at + together * split.chunks * each;
    if (piece.chunk >= a.first_chunk()) {
        a.chunk = piece.chunk;
        a.part = parts + piece.chunk * each;
        attend();
    }
    std::atomic<int32_t> &left = plan.left[static_cast<size_t>(piece.tile * plan.groups + together)];
    if (left.fetch_sub(1, std::memory_order_acq_rel) > 1) return;
    left.store(split.chunks, std::memory_order_relaxed);  // for the next layer
    l.one_vector() ? w.latent_kernels->merge_attended(a, parts) : w.kernels->merge_attended(a, parts);
}

Cost AttendStage::describe(const Workspace &w, const Step &step) const {
    const LayerKV &l = w.layer(layer);
    Cost cost{"attention"};
    for (int64_t b = 0; b < step.sequences; ++b) {
        const double context = step.positions[step.seq_starts[b + 1] - 1] + 1;
        const double queries = step.seq_starts[b + 1] - step.seq_starts[b];
        cost.bytes += context * static_cast<double>(HeadLayout(l, w.kv_type).total() * l.kv_heads) / kBlockTokens;
        const double pairs = queries * (causal ? context - (queries - 1) / 2 : context);
        cost.operations += 2.0 * pairs * heads * (l.head_dim + l.value_dim());
    }
    return cost;
}

}  // namespace pagoda
