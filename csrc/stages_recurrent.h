// Stages of ops with a state, and of what stands around them; as those of `stages.h`, which includes this.
#pragma once

#include <string>
#include <vector>

#include "kernels_recurrent.h"
#include "workspace.h"

namespace pagoda {

struct Cost;

// out = causal convolution of each column of x by itself, through SiLU where it says so; the state is the last rows of x.
struct ShortConvStage {
    static constexpr const char *kKind = "short_conv";
    int x, out, taps;
    bool silu;
    std::vector<float> weight;  // [columns][taps]; once admitted, [taps][columns]
    std::vector<float> bias;    // [columns], or empty

    template <class F>
    void fields(F &field) {
        field("x", x);
        field("out", out);
        field("taps", taps);
        field("silu", silu);
        field("weight", weight);
        field("bias", bias, kOptional);
    }
    void admit(Workspace &w);
    int64_t items(const Workspace &w, const Step &step) const;
    void run(Workspace &w, const Step &step, int64_t item, uint8_t *scratch) const;
    Cost describe(const Workspace &w, const Step &step) const;

  private:
    int64_t columns_ = 0, state_at_ = 0;
};

// The state of an op with heads: of each a matrix [rows][columns], of which kStateColumns columns lie together. An item of
// work is some of one head's columns, or all, of one sequence.
class HeadStates {
  public:
    struct Item {
        int64_t sequence, head, begin, end;  // columns [begin, end)
        float *state;                        // those columns
        float *free;                         // scratch behind them
    };
    struct Columns {  // that a kernel takes at once
        int64_t first, count;
        float *state;
    };

    // free: floats that an item needs besides the state. std::invalid_argument where kernels do not take such heads.
    void admit(Workspace &w, int64_t heads, int64_t rows, int64_t columns, int64_t free, const char *what);
    int64_t items(const Workspace &w, const Step &step) const;
    // Calls prepare(item, token, count) for kHeadTokens tokens at a time, and take(item, columns, token, from, count) for
    // tokens [token, token + count), which are the prepared ones from `from` on; saves the state where the step says so.
    template <class Prepare, class Take>
    void run(Workspace &w, const Step &step, int64_t item, uint8_t *scratch, Prepare &&prepare, Take &&take) const;
    Cost cost(const char *label, double operations, const Step &step) const;  // operations: a number and token

  private:
    int64_t parts(const Workspace &w, const Step &step) const;  // that a head's columns are shared out in
    Item item(const Workspace &w, const Step &step, int64_t index, uint8_t *scratch) const;
    int64_t heads_ = 0, rows_ = 0, columns_ = 0, at_ = 0;
};

// The gated delta rule of each value head: see `Ops.delta_rule`. A head's state is [k_dim][v_dim].
struct DeltaRuleStage {
    static constexpr const char *kKind = "delta_rule";
    int qkv, alpha, beta, out;
    std::vector<float> decay, dt_bias;  // [v_heads]
    int k_heads, v_heads, k_dim, v_dim;
    bool tiled = false;

    template <class F>
    void fields(F &field) {
        field("qkv", qkv);
        field("alpha", alpha);
        field("beta", beta);
        field("out", out);
        field("decay", decay);
        field("dt_bias", dt_bias);
        field("k_heads", k_heads);
        field("v_heads", v_heads);
        field("k_dim", k_dim);
        field("v_dim", v_dim);
        field("tiled", tiled);
    }
    void admit(Workspace &w);
    int64_t items(const Workspace &w, const Step &step) const { return states_.items(w, step); }
    void run(Workspace &w, const Step &step, int64_t item, uint8_t *scratch) const;
    Cost describe(const Workspace &w, const Step &step) const;

  private:
    struct Prepared;
    Prepared prepared(float *free) const;
    void prepare(const Workspace &w, const HeadStates::Item &item, int64_t token, int64_t count) const;
    HeadStates states_;
};

// The selective scan of each head: see `Ops.selective_scan`. A head's state is [state_dim][head_dim].
struct SelectiveScanStage {
    static constexpr const char *kKind = "selective_scan";
    int xbc, dt, out;
    std::vector<float> decay, dt_bias, skip;  // [heads]
    int heads, head_dim, groups, state_dim;

    template <class F>
    void fields(F &field) {
        field("xbc", xbc);
        field("dt", dt);
        field("out", out);
        field("decay", decay);
        field("dt_bias", dt_bias);
        field("skip", skip);
        field("heads", heads);
        field("head_dim", head_dim);
        field("groups", groups);
        field("state_dim", state_dim);
    }
    void admit(Workspace &w);
    int64_t items(const Workspace &w, const Step &step) const { return states_.items(w, step); }
    void run(Workspace &w, const Step &step, int64_t item, uint8_t *scratch) const;
    Cost describe(const Workspace &w, const Step &step) const;

  private:
    HeadStates states_;
};

// out = each row of x times the activation of the row's one number.
struct ScaleRowsStage {
    static constexpr const char *kKind = "scale_rows";
    int x, gate, out;
    std::optional<Activation> activation;

    template <class F>
    void fields(F &field) {
        field("x", x);
        field("gate", gate);
        field("out", out);
        field("activation", activation);
    }
    void admit(Workspace &) {}
    int64_t items(const Workspace &, const Step &step) const { return step.tokens; }
    void run(Workspace &w, const Step &step, int64_t token, uint8_t *scratch) const;
    Cost describe(const Workspace &w, const Step &step) const;
};

}  // namespace pagoda
