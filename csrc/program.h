// A forward pass, recorded once as a list of stages and then run for any batch. Inside a stage threads take items of
// work from a counter; between stages they meet at a barrier.
#pragma once

#include <memory>
#include <string>

#include "kernels.h"
#include "pool.h"

namespace pagoda {

constexpr int kNone = -1;

// What a step works on; see pagoda.types.Batch.
struct Step {
    int64_t tokens, sequences, logit_rows;
    const int32_t *token_ids, *positions, *seq_starts, *logit_row_ids;
    struct Table {
        const int32_t *blocks;  // [sequences][width], rows `stride` apart
        int64_t stride, width;
    };
    std::vector<Table> tables;  // a KV group each
};

struct EmbedStage {
    int out;
    Type type;
    const uint8_t *data;  // rows as they lie in the file
    int64_t rows, columns;
    float scale;
};

// For each token: out = [act(gate) * x | x], then normalized, then added, stored or quantized.
struct RowStage {
    int x, gate = kNone;
    Activation activation = Activation::Silu;
    std::vector<float> norm;  // empty: none
    float eps = 0;
    int out = kNone;
    bool accumulate = false;  // out += instead of out =
    int quantized = kNone;
    bool gather = false;      // the wanted rows only
    std::vector<int32_t> order;  // quantized column i is column order[i]; empty: as they are
};

struct LinearPart {
    std::shared_ptr<Weight> weight;
    int out;
    std::vector<float> bias;  // padded to panels * 16, or empty
    bool accumulate = false;
    float scale = 1.0f;
};

struct LinearStage {
    int x = kNone, quantized = kNone;  // one for float weights, one for block types
    std::vector<LinearPart> parts;
    bool logits = false;  // rows are the wanted ones, part 0 goes to the logits
    float softcap = 0;
};

// Per head: normalize, rotate, store k and v.
struct PrepareStage {
    int q, k, v, layer, rope = kNone;
    std::vector<float> q_norm, k_norm;
    float eps = 0;
    int heads = 0;  // of queries; known once the layer's AttendStage is added
};

struct AttendStage {
    int q, out, layer;
    int heads;
    float scale, softcap;
    int window;
};

struct Stage {
    enum Kind { Embed, Rows, Linear, Prepare, Attend } kind;
    int index;
};

struct RopeTable {
    std::vector<float> inv_freq;
    float scale;
    bool neox;
};

struct LayerKV {
    int group, kv_heads, head_dim;
};

class Program {
  public:
    Program(std::shared_ptr<Pool> pool, const Kernels *kernels, int64_t max_tokens, int64_t max_logit_rows,
            KVType kv_type, int activation_bits);

    int add_buffer(int64_t columns);
    int add_quantized(int64_t columns);
    int add_rope(RopeTable table);
    void add(EmbedStage s);
    void add(RowStage s);
    void add(LinearStage s);
    void add(PrepareStage s);
    void add(AttendStage s);
    void set_layers(std::vector<LayerKV> layers, int groups);

    int64_t block_bytes(int group) const;
    void allocate_kv(const std::vector<int64_t> &blocks);
    void copy_blocks(int group, const int32_t *pairs, int64_t n);
    int64_t max_tokens() const { return max_tokens_; }
    int64_t max_logit_rows() const { return max_logit_rows_; }
    int64_t vocab() const;
    int64_t logits_stride() const { return logits_stride_; }
    int64_t buffer_bytes() const;
    float *logits() const { return logits_.as<float>(); }

    // One forward pass; logits() then holds the wanted rows. Throws std::invalid_argument for a step that points
    // outside of anything.
    void run(const Step &step);

    // Seconds spent in each stage since the last call, and the bytes of weights and KV it read; when profiling.
    bool profiling = false;
    struct Profile {
        std::string name;
        double seconds = 0, bytes = 0, operations = 0;
    };
    std::vector<Profile> take_profile();

  private:
    struct Buffer {
        LazyMemory memory;
        int64_t stride;  // floats a token
        float *row(int64_t t) const { return memory.as<float>() + t * stride; }
    };
    struct QuantizedBuffer {  // in the codes that the linears reading it take
        int64_t columns;
        LazyMemory memory16, memory8;
        Quantized codes16{}, codes8{};  // q is null where nobody reads them
    };
    struct LinearItem {  // panels of one part of a linear stage, for a chunk of the tokens
        const LinearPart *part;
        int64_t panel_begin, panel_end, token_begin, token_end;
    };
    struct Stretch {  // of memory
        const uint8_t *from, *end;
    };
    struct AttendTile {  // consecutive tokens of one sequence, with all the query heads of one KV head
        int32_t sequence, token, tokens;
    };
    struct AttendPiece {  // one chunk of keys of a tile; chunk kNone: all of them
        int32_t tile, chunk;
    };

    void open(QuantizedBuffer &x, int bits) const;  // memory for codes of so many bits
    int64_t widest_window(size_t group) const;
    void check(const Step &step) const;
    void plan_attention(const Step &step);
    int64_t items(const Stage &stage, const Step &step) const;
    void do_item(const Stage &stage, int64_t item, const Step &step, uint8_t *scratch);
    void embed(const EmbedStage &s, const Step &step, int64_t token) const;
    void rows(const RowStage &s, const Step &step, int64_t row, float *scratch) const;
    void linear(const LinearStage &s, const Step &step, int64_t item, uint8_t *scratch) const;
    void prepare(const PrepareStage &s, const Step &step, int64_t token) const;
    void look_ahead(AttendArgs &a, const AttendStage &s, int64_t item, const Step &step) const;
    void attend(const AttendStage &s, const Step &step, int64_t item, uint8_t *scratch);
    void split_attention(const Step &step);
    void rope_rows(const Step &step, int64_t token);
    LinearItem linear_item(const LinearStage &s, const Step &step, int64_t item) const;
    void plan_reading(size_t stage, const Step &step, std::vector<Stretch> &to) const;
    bool takes_bytes(const LinearPart &p) const {
        return activation_bits_ == 8 && kernels_->gemm8[static_cast<int>(p.weight->type)];
    }
    int64_t panels_an_item(const LinearPart &p, int64_t tokens) const;
    void account(size_t stage, const Step &step, double seconds);

    std::shared_ptr<Pool> pool_;
    const Kernels *kernels_;
    int64_t max_tokens_, max_logit_rows_;
    KVType kv_type_;
    int activation_bits_;
    int64_t logits_stride_ = 0;

    std::vector<Buffer> buffers_;
    std::vector<QuantizedBuffer> quantized_;
    std::vector<RopeTable> ropes_;
    std::vector<LazyMemory> rope_rows_;  // [max_tokens][2 * rotary_dim]: see Kernels::rope
    std::vector<Stage> stages_;
    std::vector<EmbedStage> embeds_;
    std::vector<RowStage> row_stages_;
    std::vector<LinearStage> linears_;
    std::vector<PrepareStage> prepares_;
    std::vector<AttendStage> attends_;
    struct {
        int64_t kv_heads = 1, head_dim = 0, group = 1;  // query heads of a KV head
    } largest_;  // of any attention

    std::vector<LayerKV> layers_;
    std::vector<int64_t> layer_offset_;  // in a block of its group
    std::vector<int64_t> group_bytes_;
    std::vector<int64_t> num_blocks_;
    std::vector<LazyMemory> kv_;

    LazyMemory logits_;
    std::vector<LazyMemory> scratch_;  // a thread each
    std::vector<AttendTile> attend_tiles_;
    std::vector<AttendPiece> attend_pieces_;
    struct Split {  // a tile's chunks are worked on by several threads; the last to finish merges
        int32_t chunks = 0;     // 0: it is not split
        int64_t parts_at = 0;   // floats from the start of attend_parts_, of KV head 0
    };
    std::vector<Split> attend_splits_;       // a tile each
    std::vector<float> attend_parts_;
    std::unique_ptr<std::atomic<int32_t>[]> attend_left_;  // [tiles][largest_.kv_heads]: chunks that are not done, a KV head each
    size_t attend_left_size_ = 0;
    std::vector<int32_t> token_sequence_;  // which sequence a token belongs to
    struct alignas(64) Counter {
        std::atomic<int64_t> next{0};
        int64_t end = 0;
    };
    std::unique_ptr<Counter[]> counters_;  // [stages, and one for rope][threads]
    std::vector<Profile> profile_;
};

}  // namespace pagoda
