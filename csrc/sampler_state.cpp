#include "sampler_state.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>

namespace pagoda::sampling {

// Salmon et al., 'Parallel random numbers: as easy as 1, 2, 3', SC 2011.
double uniform(uint64_t seed, uint32_t choice, uint32_t position, uint32_t stream) {
    std::array<uint32_t, 4> c = {position, choice, stream, 0};
    uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < 10; ++round) {
        const uint64_t p0 = uint64_t{0xD2511F53u} * c[0], p1 = uint64_t{0xCD9E8D57u} * c[2];
        c = {static_cast<uint32_t>(p1 >> 32) ^ c[1] ^ k0, static_cast<uint32_t>(p1),
             static_cast<uint32_t>(p0 >> 32) ^ c[3] ^ k1, static_cast<uint32_t>(p0)};
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return static_cast<double>(uint64_t{c[0] >> 5} << 26 | c[1] >> 6) * 0x1p-53;
}

State::State(int64_t vocab_size, Params params, Rules rules, const std::vector<int32_t> &prompt_ids, uint64_t seed,
             uint32_t choice)
    : vocab_size_(vocab_size), params_(params), rules_(std::move(rules)), seed_(seed), choice_(choice) {
    if (rules_.allowed_ids)
        for (int32_t id : *rules_.allowed_ids) checked(id);
    for (int32_t id : rules_.stop_ids) checked(id);
    for (const auto &[id, bias] : rules_.bias) checked(id);
    for (const auto &word : rules_.bad_words) {
        if (word.empty()) throw std::invalid_argument("a bad word has no tokens");
        for (int32_t id : word) checked(id);
    }
    for (const auto &breaker : rules_.dry.breakers) {
        if (breaker.empty()) throw std::invalid_argument("a sequence breaker has no tokens");
        for (int32_t id : breaker) checked(id);
    }
    if (params_.repetition_penalty != 1.0f)
        for (int32_t id : prompt_ids) seen(checked(id)).in_prompt = true;
    if (rules_.dry.on())
        for (int32_t id : prompt_ids) prompt_.push_back(checked(id));
    mus_.push_back(2.0 * params_.mirostat_tau);
}

int32_t State::checked(int64_t token) const {
    if (token < 0 || token >= vocab_size_)
        throw std::invalid_argument("token id " + std::to_string(token) + " is not in [0, " +
                                    std::to_string(vocab_size_) + ")");
    return static_cast<int32_t>(token);
}

State::Seen &State::seen(int32_t token) {
    const auto [place, is_new] = seen_index_.try_emplace(token, seen_.size());
    if (is_new) seen_.push_back({token, false, 0});
    return seen_[place->second];
}

void State::accept(int64_t token) {
    outputs_.push_back(checked(token));
    if (params_.penalises()) ++seen(outputs_.back()).num_outputs;
    if (params_.mirostat == 0) return;
    const bool was_sampled = sampled_.first == outputs_.back();  // otherwise nothing is known of its surprise
    mus_.push_back(mu() - (was_sampled ? params_.mirostat_eta * (sampled_.second - params_.mirostat_tau) : 0.0));
    sampled_.first = -1;
}

void State::rewind(int64_t count) {
    if (count < 0 || count > num_outputs())
        throw std::invalid_argument("cannot rewind " + std::to_string(num_outputs()) + " outputs to " +
                                    std::to_string(count));
    for (; num_outputs() > count; outputs_.pop_back())
        if (params_.penalises()) --seen(outputs_.back()).num_outputs;
    if (params_.mirostat != 0) mus_.resize(static_cast<size_t>(count) + 1);
    sampled_.first = -1;
}

double State::draw(uint32_t stream) const {
    return uniform(seed_, choice_, static_cast<uint32_t>(outputs_.size()), stream);
}

bool State::completes(const std::vector<int32_t> &word) const {
    const size_t prefix = word.size() - 1;
    return prefix <= outputs_.size() && std::equal(word.begin(), word.end() - 1, outputs_.end() - prefix);
}

bool State::adjusts(const uint32_t *mask) const {
    return mask || rules_.allowed_ids || !rules_.bias.empty() || !rules_.bad_words.empty() || !seen_.empty() ||
           (num_outputs() < params_.min_tokens && !rules_.stop_ids.empty()) || rules_.dry.on();
}

namespace {

void apply_mask(const uint32_t *mask, float *logits, int64_t n) {
    for (int64_t begin = 0; begin < n; begin += 32) {
        const uint32_t word = mask[begin / 32];
        if (word == ~uint32_t{0}) continue;
        const int64_t end = std::min(n, begin + 32);
        for (int64_t i = begin; i < end; ++i)
            if (!(word >> (i - begin) & 1)) logits[i] = -INFINITY;
    }
}

}  // namespace

void State::adjust(const float *logits, const uint32_t *mask, float *out) const {
    const size_t n = static_cast<size_t>(vocab_size_);
    if (rules_.allowed_ids) {
        std::fill(out, out + n, -INFINITY);
        for (int32_t id : *rules_.allowed_ids) out[id] = logits[id];
    } else {
        std::memcpy(out, logits, n * sizeof(float));
    }
    if (mask) apply_mask(mask, out, vocab_size_);
    ban(out);
    for (const auto &[id, bias] : rules_.bias) out[id] += bias;
    penalise(out);
    if (rules_.dry.on()) penalise_repetition(out);
}

void State::ban(float *logits) const {
    for (const auto &word : rules_.bad_words)
        if (completes(word)) logits[word.back()] = -INFINITY;
    if (num_outputs() < params_.min_tokens)
        for (int32_t id : rules_.stop_ids) logits[id] = -INFINITY;
}

void State::penalise(float *logits) const {
    for (const Seen &token : seen_) {
        float &logit = logits[token.token];
        if (token.in_prompt || token.num_outputs > 0)
            logit = logit > 0.0f ? logit / params_.repetition_penalty : logit * params_.repetition_penalty;
        if (token.num_outputs > 0) {
            logit -= params_.frequency_penalty * static_cast<float>(token.num_outputs);
            logit -= params_.presence_penalty;
        }
    }
}

}  // namespace pagoda::sampling
