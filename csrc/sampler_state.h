// What sampling knows of one sequence: its parameters, what it has produced, and the adjustments that follow.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <unordered_map>
#include <utility>
#include <vector>

namespace pagoda::sampling {

// 53 random bits in [0, 1) from Philox4x32-10: key seed, counter (position, choice, stream, 0).
double uniform(uint64_t seed, uint32_t choice, uint32_t position, uint32_t stream);

struct Params {
    float temperature = 1.0f;  // 0: greedy
    int64_t top_k = 0;         // 0: all
    double top_p = 1.0;
    double min_p = 0.0;
    float repetition_penalty = 1.0f;
    float presence_penalty = 0.0f;
    float frequency_penalty = 0.0f;
    int64_t min_tokens = 0;
    std::optional<int64_t> num_logprobs;

    // llama.cpp's samplers; each is off by default.
    double top_n_sigma = 0.0;  // 0: off
    double typical_p = 1.0;
    double xtc_probability = 0.0;
    double xtc_threshold = 0.1;
    double dynatemp_range = 0.0;
    double dynatemp_exponent = 1.0;
    int mirostat = 0;  // 1 and 2: its versions, in place of every other cut
    double mirostat_tau = 5.0;
    double mirostat_eta = 0.1;
    bool temperature_last = false;  // cuts see the model's own probabilities

    bool truncates() const { return top_k > 0 || top_p < 1.0 || min_p > 0.0 || reshapes(); }
    // Whether candidates are chosen or weighed in ways that a row of logits alone does not tell.
    bool reshapes() const {
        return top_n_sigma > 0.0 || typical_p < 1.0 || xtc_probability > 0.0 || dynatemp_range > 0.0 || mirostat != 0 ||
               temperature_last;
    }
    // The temperature at which candidates are cut.
    float cut_temperature() const { return temperature_last || dynatemp_range > 0.0 ? 1.0f : temperature; }
    bool penalises() const {
        return repetition_penalty != 1.0f || presence_penalty != 0.0f || frequency_penalty != 0.0f;
    }
};

// Don't repeat yourself: a token that would go on repeating an earlier passage is penalised, the longer the worse.
struct Dry {
    float multiplier = 0.0f;  // 0: off
    float base = 1.75f;
    int64_t allowed_length = 2;
    int64_t last_n = -1;                         // tokens that are looked at; -1: all
    std::vector<std::vector<int32_t>> breakers;  // token sequences across which nothing repeats; none empty

    bool on() const { return multiplier != 0.0f && base >= 1.0f && last_n != 0; }
};

// Token lists that adjust logits. All ids are below vocab_size.
struct Rules {
    std::optional<std::vector<int32_t>> allowed_ids;
    std::vector<int32_t> stop_ids;  // held back until min_tokens
    std::vector<std::pair<int32_t, float>> bias;
    std::vector<std::vector<int32_t>> bad_words;  // none empty
    Dry dry;
};

class State {
  public:
    // Throws std::invalid_argument for a token id out of range.
    State(int64_t vocab_size, Params params, Rules rules, const std::vector<int32_t> &prompt_ids, uint64_t seed,
          uint32_t choice);

    void accept(int64_t token);
    void rewind(int64_t num_outputs);

    int64_t vocab_size() const { return vocab_size_; }
    int64_t num_outputs() const { return static_cast<int64_t>(outputs_.size()); }
    const Params &params() const { return params_; }

    // The random number of the next token; streams other than 0 are for other draws at the same position.
    double draw(uint32_t stream = 0) const;

    // Mirostat's target of surprise, in bits, for the next token, and what the one sampled last had of it.
    double mu() const { return mus_.back(); }
    void note_surprise(int32_t token, double surprise) const { sampled_ = {token, surprise}; }

    // Whether the next token's logits differ from the model's.
    bool adjusts(const uint32_t *mask) const;

    // out[V] = the model's logits with bans (-inf), bias and penalties. mask: packed allowed bits, or null.
    void adjust(const float *logits, const uint32_t *mask, float *out) const;

  private:
    struct Seen {
        int32_t token;
        bool in_prompt;
        int32_t num_outputs;
    };

    int32_t checked(int64_t token) const;
    Seen &seen(int32_t token);
    bool completes(const std::vector<int32_t> &word) const;
    void ban(float *logits) const;
    void penalise(float *logits) const;
    void penalise_repetition(float *logits) const;
    std::vector<int32_t> recent() const;
    size_t unbroken(const std::vector<int32_t> &recent) const;

    int64_t vocab_size_;
    Params params_;
    Rules rules_;
    uint64_t seed_;
    uint32_t choice_;
    std::vector<int32_t> outputs_;
    std::vector<int32_t> prompt_;  // kept where repetition is looked for
    std::vector<double> mus_;      // mirostat's, after each number of outputs; one alone where it is off
    mutable std::pair<int32_t, double> sampled_{-1, 0.0};
    std::vector<Seen> seen_;  // kept up only where the parameters penalise
    std::unordered_map<int32_t, size_t> seen_index_;
};

}  // namespace pagoda::sampling
