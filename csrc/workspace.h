// What the stages of a forward pass work on: the step at hand, buffers, rotary tables and KV blocks.
#pragma once

#include <atomic>
#include <optional>
#include <vector>

#include "adapter.h"
#include "kernels.h"
#include "kernels_latent.h"
#include "kernels_lora.h"
#include "kernels_recurrent.h"
#include "pool.h"

namespace pagoda {

constexpr bool kOptional = true;  // a stage's field that keeps its default where it is not given

constexpr int kNone = -1;  // no such buffer

// One step; see pagoda.types.Batch.
struct Step {
    int64_t tokens, sequences, logit_rows, hidden_rows;
    const int32_t *token_ids, *positions, *seq_starts, *logit_row_ids, *hidden_row_ids;
    const int32_t *token_types;  // null: all 0
    struct Table {
        const int32_t *blocks;  // [sequences][width], rows `stride` apart
        int64_t stride, width;
    };
    std::vector<Table> tables;  // a KV group each
    std::vector<const Adapter *> adapters;
    const int32_t *state_starts = nullptr;  // [sequences] the state that each begins at, kNone: zeros; null: no states
    const int32_t *state_saves = nullptr;   // [tokens] where the state after a token is saved, kNone: nowhere
    const int32_t *adapter_of = nullptr;  // [sequences] which of them, kNone: none; null: no sequence has one
};

// The rows that a stage works on: a token's each, or only those whose logits or hidden states are wanted. Routed rows are a row for each
// expert that works for a token, expert by expert; where they are made, ToRouted, they are read from the tokens' rows.
enum class Rows : int { Tokens, Logits, Hidden, Routed, ToRouted };
constexpr const char *kRowsNames[] = {"tokens", "logits", "hidden", "routed", "to_routed"};

// By which number of a token an embedding table is read.
// KnownTokens: by the token's id, or 0 where the table has no such row.
enum class EmbedBy : int { Tokens, Positions, Types, KnownTokens };
constexpr const char *kEmbedByNames[] = {"tokens", "positions", "types", "known_tokens"};

// Memory for as many tokens as a step may have, of which most steps use little: no page is larger than it need be.
LazyMemory in_small_pages(size_t bytes);

struct RopeTable {
    std::vector<float> inv_freq;
    float scale;
    bool neox;
    LazyMemory turns;  // [max_tokens][2 * rotary_dim]: see Kernels::rope
};

struct LayerKV {
    int group, kv_heads, head_dim;
    int values_from = kNone;  // values are keys' columns from this one on; kNone: they are kept apart
    bool one_vector() const { return values_from != kNone; }
    int value_dim() const { return one_vector() ? head_dim - values_from : head_dim; }
};

struct HeadLayout {
    int64_t k, v, scale;  // bytes of one head's K, V, and of the scales of either, in a block; k 0: V is both
    HeadLayout(const LayerKV &l, KVType t);
    int64_t total() const { return round_up(k + v + (k ? 2 : 1) * scale, 64); }
};

struct Buffer {
    LazyMemory memory;
    int64_t rows, columns, stride;  // floats from one row to the next
    float *row(int64_t r) const { return memory.as<float>() + r * stride; }
};

struct QuantizedBuffer {  // in the codes that the linears reading it take
    int64_t rows, columns;
    LazyMemory memory16, memory8;
    Quantized codes16{}, codes8{};  // q is null where nobody reads them
    void open(int bits);            // memory for codes of so many bits
};

// How a step's attention is cut into pieces of work; all layers cut it alike.
struct AttentionPlan {
    struct Tile {  // consecutive tokens of one sequence, with query heads that share a KV head
        int32_t sequence, token, tokens;
    };
    struct Piece {  // one chunk of keys of a tile; chunk kNone: all of them
        int32_t tile, chunk;
    };
    struct Split {  // a tile's chunks are worked on by several threads; the last to finish merges
        int32_t chunks = 0;     // 0: it is not split
        int64_t parts_at = 0;   // floats from the start of `parts`, of group 0
    };
    // The most of any layer. group: query heads of one KV head that go together; groups: of all KV heads.
    int64_t groups = 1, head_dim = 0, group = 1;
    std::optional<bool> causal;                     // whether queries see no keys after them; the same in all layers
    std::vector<Tile> tiles;
    std::vector<Piece> pieces;
    std::vector<Split> splits;  // a tile each
    std::vector<float> parts;
    std::unique_ptr<std::atomic<int32_t>[]> left;  // [tiles][groups]: chunks that are not done
    size_t left_size = 0;

    void plan(const Step &step, int threads);
    // How many keys the tokens of a tile see, where all sequences begin at position 0.
    int32_t num_keys(const Step &step, const Tile &tile) const;

  private:
    void split(const Step &step, int threads);
};

// Which experts work for a step's tokens in the layer at hand: a token has `top_k` routed rows.
struct Routing {
    struct Chunk {  // routed rows of one expert
        int32_t expert;
        int64_t begin, end;
    };
    int64_t top_k = 0;
    std::vector<int32_t> experts;  // [T][top_k], ascending
    std::vector<float> weights;    // [T][top_k]
    std::vector<int32_t> rows;     // [T][top_k] where the token's routed rows are
    std::vector<int32_t> tokens;   // of each routed row
    std::vector<Chunk> chunks;     // all routed rows

    // Rows and chunks of at most `most` rows, once the experts of `count` tokens are known.
    void group(int64_t count, int64_t num_experts, int64_t most);
    int64_t num_busy() const;  // experts that work for any token
};

struct Workspace {
    std::shared_ptr<Pool> pool;
    const Kernels *kernels;
    const LatentKernels *latent_kernels;
    const LoraKernels *lora_kernels;
    const RecurrentKernels *recurrent_kernels;
    int64_t max_tokens, max_logit_rows;
    KVType kv_type;
    int activation_bits;
    bool bf16_products;  // with 16-bit float weights, where the kernels have them

    std::vector<Buffer> buffers;
    std::vector<QuantizedBuffer> quantized;
    std::vector<RopeTable> ropes;
    int64_t embed_limits[3] = {INT64_MAX, INT64_MAX, INT64_MAX};  // by EmbedBy: the first number that some table lacks
    LazyMemory logits;               // [max_logit_rows][logits_stride]
    int64_t logits_stride = 0, vocab = 0;

    std::vector<LayerKV> layers;
    std::vector<int64_t> layer_offset;  // in a block of its group
    std::vector<int64_t> group_bytes;
    std::vector<int64_t> group_windows;  // how many keys back the group's layers look at most; 0: at all of them
    std::vector<int64_t> num_blocks;
    std::vector<LazyMemory> kv;

    int64_t state_floats = 0, num_states = 0;  // of one state, what ops keep of a sequence besides KV; and how many
    LazyMemory states;

    std::vector<LoraSite> lora_sites;
    int64_t lora_together = 0;  // linears that read one value, at most
    StepAdapters adapters;      // of the step at hand

    AttentionPlan attention;
    Routing routing;
    std::vector<int32_t> token_sequence;  // which sequence a token belongs to

    int64_t num_rows(Rows rows, const Step &step) const;
    int64_t source_row(Rows rows, const Step &step, int64_t row) const;  // from which row of its input `row` is made
    const Buffer &buffer(int index) const { return buffers.at(static_cast<size_t>(index)); }
    const LayerKV &layer(int index) const { return layers.at(static_cast<size_t>(index)); }
    bool takes_bytes(Type type) const { return activation_bits == 8 && kernels->gemm8[static_cast<int>(type)]; }
    bool takes_bf16(Type type) const { return bf16_products && kernels->gemm_bf16[static_cast<int>(type)]; }

    void set_layers(std::vector<LayerKV> layers, int groups);
    void allocate_kv(const std::vector<int64_t> &blocks, int64_t states);
    int64_t add_state(int64_t floats);  // → where a stage's part of a state begins
    float *state(int32_t index) const { return states.as<float>() + index * state_floats; }
    void copy_blocks(int group, const int32_t *pairs, int64_t n);
    int64_t block_bytes(int group) const;  // of a KV block; of a state, which is the group after the last
    // The whole of a group's blocks, or of states, one after the other, out of the pool and into it.
    void read_blocks(int group, const int32_t *blocks, int64_t n, uint8_t *out) const;
    void write_blocks(int group, const int32_t *blocks, int64_t n, const uint8_t *in);
    int64_t buffer_bytes() const;  // without KV

    // Throws std::invalid_argument for a step that points outside of anything.
    void check(const Step &step) const;
    // What all stages need to know of a step before it runs.
    void plan(const Step &step);
    // The turns of one token, for every rotary table.
    void rotate(const Step &step, int64_t token);

  private:
    uint8_t *block(int group, int32_t index) const;
    void plan_adapters(const Step &step);
    void check_tables(const Step &step, int64_t sequence) const;
};

}  // namespace pagoda
