// The stages of a forward pass. A struct is one kind of stage:
//
//   fields    names what it is made of, which is how Python fills it in (`program_module.cpp`); one that is not optional
//             must be given
//   admit     what is checked and prepared when it becomes part of a program; throws std::invalid_argument for what the
//             kernels do not take
//   items     how many items of work it has in a step
//   run       does one item, on any thread, with this thread's scratch memory
//   describe  what it is called, and the bytes of weights and KV and the operations that it costs in a step
#pragma once

#include <string>
#include <variant>

#include "stages_recurrent.h"
#include "stages_streams.h"
#include "workspace.h"

namespace pagoda {

constexpr int64_t kRowChunk = 128;  // rows that an item of a linear stage covers: their activations stay in L2
constexpr size_t kScratch = kGemmScratch > kAttendScratch ? kGemmScratch : kAttendScratch;  // bytes of a thread's

struct Cost {
    std::string label;  // for people
    double bytes = 0, operations = 0;
};

// Adds what one factor, A or B, of the step's adapters costs at a site.
void add_adapters_cost(Cost &cost, const Workspace &w, int32_t site, bool is_a);

// Rows of a tensor as they lie in a file, which `owner` keeps open.
struct FileRows {
    const uint8_t *data = nullptr;
    int64_t bytes = 0;
    std::shared_ptr<void> owner;
};

// out = scale * row `number + offset` of the table, by the token's id, position or type.
struct EmbedStage {
    static constexpr const char *kKind = "embed";
    int out;
    Type type;
    FileRows table;
    int64_t rows, columns;
    float scale = 1;
    EmbedBy by = EmbedBy::Tokens;
    int offset = 0;

    template <class F>
    void fields(F &field) {
        field("out", out);
        field("type", type);
        field("table", table);
        field("rows", rows);
        field("columns", columns);
        field("scale", scale, kOptional);
        field("by", by, kOptional);
        field("offset", offset, kOptional);
    }
    void admit(Workspace &w);
    int64_t items(const Workspace &, const Step &step) const { return step.tokens; }
    void run(Workspace &w, const Step &step, int64_t token, uint8_t *scratch) const;
    Cost describe(const Workspace &, const Step &) const { return {"embed"}; }
};

// For each row: out = [act(gate) * x | act(x) | x], then normalized, then added, stored or quantized.
struct RowwiseStage {
    static constexpr const char *kKind = "rowwise";
    int x, gate = kNone;
    std::optional<Activation> activation;  // of gate, or, where there is none, of x
    std::vector<float> norm;       // weights; empty: none
    std::vector<float> norm_bias;  // of a layer norm; empty: an RMS norm
    float eps = 0;
    int out = kNone;
    bool accumulate = false;  // out += instead of out =
    int quantized = kNone;
    int kept = kNone;  // where tokens with adapters leave the row as floats, besides
    std::vector<int32_t> order;  // quantized column i is column order[i]; empty: as they are
    Rows rows = Rows::Tokens;

    template <class F>
    void fields(F &field) {
        field("x", x);
        field("gate", gate, kOptional);
        field("activation", activation, kOptional);
        field("norm", norm, kOptional);
        field("norm_bias", norm_bias, kOptional);
        field("eps", eps, kOptional);
        field("out", out, kOptional);
        field("accumulate", accumulate, kOptional);
        field("quantized", quantized, kOptional);
        field("kept", kept, kOptional);
        field("order", order, kOptional);
        field("rows", rows, kOptional);
    }
    void admit(Workspace &w);
    int64_t items(const Workspace &w, const Step &step) const { return w.num_rows(rows, step); }
    void run(Workspace &w, const Step &step, int64_t row, uint8_t *scratch) const;
    Cost describe(const Workspace &, const Step &) const {
        return {activation ? "activation" : !norm.empty() ? "norm" : "quantize"};
    }
};

// One weight of a linear stage, or one for each expert: out = scale * (x @ weight.T) + bias, or added to out.
struct LinearPart {
    std::vector<std::shared_ptr<Weight>> weights;
    int out;
    std::vector<float> bias;  // of each weight, padded to panels * 16; or empty
    bool accumulate = false;
    float scale = 1.0f;
    int site = kNone;  // where adapters add to it
    const Weight &weight(int expert = 0) const { return *weights[static_cast<size_t>(expert)]; }
    const float *bias_of(int expert) const { return bias.empty() ? nullptr : bias.data() + expert * weight().panels * kPanelRows; }
};

// Products of one value with several weights; of a routed row, with those of its expert.
struct LinearStage {
    static constexpr const char *kKind = "linear";
    int x = kNone, quantized = kNone;  // one for float weights, one for block types
    std::vector<LinearPart> parts;
    Rows rows = Rows::Tokens;  // Logits: the only part goes to the logits
    float softcap = 0;         // of logits; 0: none

    template <class F>
    void fields(F &field) {
        field("x", x, kOptional);
        field("quantized", quantized, kOptional);
        field("parts", parts);
        field("rows", rows, kOptional);
        field("softcap", softcap, kOptional);
    }
    void admit(Workspace &w);
    int64_t items(const Workspace &w, const Step &step) const;
    void run(Workspace &w, const Step &step, int64_t item, uint8_t *scratch) const;
    Cost describe(const Workspace &w, const Step &step) const;

    struct Item {  // panels of one part's weight, for a chunk of the rows
        const LinearPart *part;
        const Weight *weight;
        const float *bias;
        int64_t panel_begin, panel_end, row_begin, row_end;
    };
    Item item(const Workspace &w, const Step &step, int64_t index) const;
    // Once the chunks of routed rows are known, before items are counted.
    void plan(const Workspace &w);

    // Adapters: after a thread has done items [begin, end), and all threads what of the shrink stage is theirs, it adds
    // B hidden + bias to what these items made.
    bool takes_adapters() const { return parts[0].site != kNone; }
    void finish(Workspace &w, const Step &step, int64_t begin, int64_t end) const;

  private:
    void add_adapters(Workspace &w, size_t part, const Item &at) const;
    static int64_t panels_an_item(const LinearPart &p, int64_t rows);  // how many panels of a part one item covers
    int64_t chunk_items(int64_t rows) const;
    Item chunk_item(int64_t index, int expert, int64_t rows, int64_t row_begin, int64_t row_end) const;
    std::vector<int64_t> chunk_starts_;  // the first item of each chunk of routed rows, and their number
};

// Each head of out = its first `kept` numbers of x, then the rest of it times the matrix of the head.
struct HeadLinearStage {
    static constexpr const char *kKind = "head_linear";
    int x, kept;
    LinearPart part;  // as many weights as heads, of a float type; to part.out

    template <class F>
    void fields(F &field) {
        field("x", x);
        field("part", part);
        field("kept", kept);
    }
    void admit(Workspace &w);
    int64_t items(const Workspace &w, const Step &step) const;
    void run(Workspace &w, const Step &step, int64_t item, uint8_t *scratch) const;
    Cost describe(const Workspace &w, const Step &step) const;
};

// hidden = A x, for the tokens with adapters and the linears at `sites`, which read x. The linear stage that follows
// reads the same value, so nobody waits between the two.
struct LoraShrinkStage {
    static constexpr const char *kKind = "lora_shrink";
    int x;
    std::vector<int32_t> sites;
    std::vector<int32_t> residuals;  // of each site, the buffer that its product is added to, or kNone

    template <class F>
    void fields(F &field) {
        field("x", x);
        field("sites", sites);
        field("residuals", residuals);
    }
    void admit(Workspace &w);
    int64_t items(const Workspace &w, const Step &) const;
    void run(Workspace &w, const Step &step, int64_t item, uint8_t *scratch) const;
    Cost describe(const Workspace &w, const Step &step) const;
};

// Scores of each token's experts are the softmax of what the router says of them all, or its sigmoid. Chooses the top_k by
// score, or by score + correction, equals by number, among the `used_groups` of `groups` groups of neighbours whose `best`
// (1 or 2) highest add up to the most; and weighs them by their scores; `normalize`: divided by the sum of
// those chosen; then times `scale`, and the expert's own where there are any. Says which rows are routed.
struct RouteStage {
    static constexpr const char *kKind = "route";
    int scores, num_experts, top_k;
    bool normalize, sigmoid = false;
    int groups = 1, used_groups = 1, best = 1;
    float scale = 1;
    std::vector<float> scales, corrections;  // of experts; empty: none

    template <class F>
    void fields(F &field) {
        field("scores", scores);
        field("num_experts", num_experts);
        field("top_k", top_k);
        field("normalize", normalize);
        field("sigmoid", sigmoid, kOptional);
        field("groups", groups, kOptional);
        field("used_groups", used_groups, kOptional);
        field("best", best, kOptional);
        field("scale", scale, kOptional);
        field("scales", scales, kOptional);
        field("corrections", corrections, kOptional);
    }
    void admit(Workspace &w);
    int64_t items(const Workspace &, const Step &) const { return 1; }
    void run(Workspace &w, const Step &step, int64_t item, uint8_t *scratch) const;
    Cost describe(const Workspace &, const Step &) const { return {"route"}; }

  private:
    void score_experts(const float *given, std::vector<float> &score, std::vector<float> &rank) const;
    void leave_groups(const std::vector<float> &by, std::vector<float> &rank) const;
};

// out = the weighted sum of a token's routed rows, in the order of their experts.
struct CombineStage {
    static constexpr const char *kKind = "combine";
    int x, out;

    template <class F>
    void fields(F &field) {
        field("x", x);
        field("out", out);
    }
    void admit(Workspace &) {}
    int64_t items(const Workspace &, const Step &step) const { return step.tokens; }
    void run(Workspace &w, const Step &step, int64_t token, uint8_t *scratch) const;
    Cost describe(const Workspace &, const Step &) const { return {"combine experts"}; }
};

// Normalizes and rotates each head of q and k in place, and stores k and v in the layer's KV blocks; of q alone where
// the layer reads what another has stored.
struct RopeAndStoreKVStage {
    static constexpr const char *kKind = "rope_and_store_kv";
    int q, layer, heads;  // heads of queries
    int k = kNone, v = kNone;
    int rope = kNone;
    std::vector<float> q_norm, k_norm;
    float eps = 0;
    float growth = 0;       // queries at position p are multiplied by 1 + growth * ln(1 + p / growth_length)
    int growth_length = 1;  // the quotient is a whole number

    template <class F>
    void fields(F &field) {
        field("q", q);
        field("k", k, kOptional);
        field("v", v, kOptional);
        field("layer", layer);
        field("heads", heads);
        field("rope", rope, kOptional);
        field("q_norm", q_norm, kOptional);
        field("k_norm", k_norm, kOptional);
        field("eps", eps, kOptional);
        field("growth", growth, kOptional);
        field("growth_length", growth_length, kOptional);
    }
    void admit(Workspace &w);
    int64_t items(const Workspace &, const Step &step) const { return step.tokens; }
    void run(Workspace &w, const Step &step, int64_t token, uint8_t *scratch) const;
    Cost describe(const Workspace &, const Step &) const { return {"rope + store KV"}; }
};

// out = x with each head of so many normalized, `centered` as a layer norm does.
struct HeadNormStage {
    static constexpr const char *kKind = "head_norm";
    int x, out, num_heads;
    std::vector<float> weight;  // of one head, or of all
    float eps;
    bool centered = false;

    template <class F>
    void fields(F &field) {
        field("x", x);
        field("out", out);
        field("weight", weight);
        field("eps", eps);
        field("num_heads", num_heads);
        field("centered", centered, kOptional);
    }
    void admit(Workspace &w);
    int64_t items(const Workspace &, const Step &step) const { return step.tokens; }
    void run(Workspace &w, const Step &step, int64_t token, uint8_t *scratch) const;
    Cost describe(const Workspace &, const Step &) const { return {"norm of heads"}; }

  private:
    std::vector<float> no_bias_;
};

// out = x with the first elements of each head turned.
struct RopeStage {
    static constexpr const char *kKind = "rope";
    int x, out, num_heads, spec;  // spec: which rotary table

    template <class F>
    void fields(F &field) {
        field("x", x);
        field("out", out);
        field("num_heads", num_heads);
        field("spec", spec);
    }
    void admit(Workspace &w);
    int64_t items(const Workspace &, const Step &step) const { return step.tokens; }
    void run(Workspace &w, const Step &step, int64_t token, uint8_t *scratch) const;
    Cost describe(const Workspace &, const Step &) const { return {"rope"}; }
};

// out = x * y, number by number.
struct MultiplyStage {
    static constexpr const char *kKind = "multiply";
    int x, y, out;

    template <class F>
    void fields(F &field) {
        field("x", x);
        field("y", y);
        field("out", out);
    }
    void admit(Workspace &w);
    int64_t items(const Workspace &, const Step &step) const { return step.tokens; }
    void run(Workspace &w, const Step &step, int64_t token, uint8_t *scratch) const;
    Cost describe(const Workspace &, const Step &) const { return {"multiply"}; }
};

// out = scale * columns [start, start + count) of each head of x.
struct ColumnsStage {
    static constexpr const char *kKind = "columns";
    int x, out, start, count;
    float scale = 1;
    int heads = 1;

    template <class F>
    void fields(F &field) {
        field("x", x);
        field("out", out);
        field("start", start);
        field("count", count);
        field("scale", scale, kOptional);
        field("heads", heads, kOptional);
    }
    void admit(Workspace &w);
    int64_t items(const Workspace &, const Step &step) const { return step.tokens; }
    void run(Workspace &w, const Step &step, int64_t token, uint8_t *scratch) const;
    Cost describe(const Workspace &, const Step &) const { return {"columns"}; }
};

// Attends from q to the keys and values in the layer's KV blocks.
struct AttendStage {
    static constexpr const char *kKind = "attend";
    int q, out, layer, heads;
    float scale;
    float softcap = 0;   // 0: none
    int window = 0;      // 0: none
    bool causal = true;  // false: queries see all keys of their sequence
    std::vector<float> sinks;  // of each head; empty: none

    template <class F>
    void fields(F &field) {
        field("q", q);
        field("out", out);
        field("layer", layer);
        field("heads", heads);
        field("scale", scale);
        field("softcap", softcap, kOptional);
        field("window", window, kOptional);
        field("causal", causal, kOptional);
        field("sinks", sinks, kOptional);
    }
    void admit(Workspace &w);
    int64_t items(const Workspace &w, const Step &step) const;
    void run(Workspace &w, const Step &step, int64_t item, uint8_t *scratch) const;
    Cost describe(const Workspace &w, const Step &step) const;

  private:
    void look_ahead(AttendArgs &a, const Workspace &w, const Step &step, int64_t item) const;
    int64_t offset_of(const Workspace &w, int64_t group) const;  // of its KV head's keys, in a block

    int groups_ = 1;  // of query heads that go together
};

using Stage = std::variant<EmbedStage, RowwiseStage, LinearStage, LoraShrinkStage, RouteStage, CombineStage,
                           RopeAndStoreKVStage, HeadNormStage, RopeStage, ColumnsStage, MultiplyStage, AttendStage, ShortConvStage,
                           DeltaRuleStage, SelectiveScanStage, ScaleRowsStage, GaussianTopkStage, MixStreamsStage,
                           HeadLinearStage>;

}  // namespace pagoda
