// Sampling over a batch of logits, as Python sees it: State for each sequence, BatchSampler for each step.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>

#include "sampler_worker.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace pagoda::sampling {
namespace {

template <class T, int Dimensions>
using Array = nb::ndarray<T, nb::ndim<Dimensions>, nb::c_contig, nb::device::cpu>;

void require(bool condition, const char *what) {
    if (!condition) throw std::invalid_argument(what);
}

const Passes &find_passes(const std::optional<std::string> &isa) {
    size_t count;
    const Passes *const *all = available_passes(count);
    if (!isa) return *all[count - 1];
    for (size_t i = 0; i < count; ++i)
        if (*isa == all[i]->name) return *all[i];
    throw std::invalid_argument("this machine has no sampling kernels for " + *isa);
}

nb::tuple to_python(const Logprobs &l) { return nb::make_tuple(l.chosen, l.rank, nb::cast(l.top_ids), nb::cast(l.top)); }

class BatchSampler {
  public:
    BatchSampler(int64_t vocab_size, const std::optional<std::string> &isa)
        : vocab_size_(vocab_size), passes_(find_passes(isa)), worker_(passes_) {}

    // Fills token_ids[N]; returns (errors: [(n, message)], logprobs: [(n, chosen, rank, top ids, top logprobs)]).
    nb::object sample(Array<const float, 2> logits, nb::tuple states, Array<int32_t, 1> token_ids,
                      std::optional<Array<const int32_t, 1>> rows, std::optional<Array<const int32_t, 1>> mask_rows,
                      std::optional<Array<const uint32_t, 2>> masks) {
        require(static_cast<int64_t>(logits.shape(1)) == vocab_size_, "logits are not [R, vocab_size]");
        require(token_ids.shape(0) == states.size(), "token_ids must have an entry for each state");
        std::vector<Job> jobs = collect(logits, states, rows);
        if (mask_rows) attach_masks(jobs, *mask_rows, masks);
        outcomes_.assign(jobs.size(), {});
        {
            nb::gil_scoped_release unlocked;
            sample_rows(jobs, 0, jobs.size(), worker_);
        }
        for (size_t n = 0; n < jobs.size(); ++n) token_ids.data()[n] = outcomes_[n].token;
        return details();
    }

    nb::object distribution(Array<const float, 1> logits, const State &state,
                            std::optional<Array<const uint32_t, 1>> mask) {
        require(static_cast<int64_t>(logits.shape(0)) == vocab_size_, "logits are not [vocab_size]");
        require(state.vocab_size() == vocab_size_, "the state is of another vocabulary");
        if (mask) require(static_cast<int64_t>(mask->shape(0)) * 32 >= vocab_size_, "the mask is too short");
        std::vector<int32_t> ids;
        std::vector<double> probs;
        const Status status = worker_.support({logits.data(), &state, mask ? mask->data() : nullptr}, ids, probs);
        if (status != Status::ok) throw std::invalid_argument(message(status));
        return nb::make_tuple(nb::cast(ids), nb::cast(probs));
    }

    nb::list prompt_logprobs(Array<const float, 2> logits, Array<const int32_t, 1> targets, int64_t num_top) {
        require(static_cast<int64_t>(logits.shape(1)) == vocab_size_, "logits are not [R, vocab_size]");
        require(targets.shape(0) == logits.shape(0), "targets must have an entry for each row of logits");
        std::vector<Logprobs> found(logits.shape(0));
        for (size_t r = 0; r < found.size(); ++r)
            require(targets.data()[r] >= 0 && targets.data()[r] < vocab_size_, "a target is not in the vocabulary");
        {
            nb::gil_scoped_release unlocked;
            for (size_t r = 0; r < found.size(); ++r) {
                const Row row = worker_.scan(logits.data() + r * logits.shape(1), logits.shape(1));
                if (Worker::status_of(row) != Status::ok) throw std::invalid_argument(message(Status::not_finite));
                found[r] = worker_.logprobs(row, targets.data()[r], num_top);
            }
        }
        nb::list result;
        for (const Logprobs &l : found) result.append(to_python(l));
        return result;
    }

    const char *isa() const { return passes_.name; }

  private:
    std::vector<Job> collect(const Array<const float, 2> &logits, const nb::tuple &states,
                             const std::optional<Array<const int32_t, 1>> &rows) const {
        require(!rows || rows->shape(0) == states.size(), "rows must have an entry for each state");
        std::vector<Job> jobs;
        jobs.reserve(states.size());
        for (nb::handle handle : states) {
            const State &state = nb::cast<const State &>(handle);
            const size_t n = jobs.size();
            const int64_t row = rows ? rows->data()[n] : static_cast<int64_t>(n);
            require(state.vocab_size() == vocab_size_, "a state is of another vocabulary");
            require(row >= 0 && row < static_cast<int64_t>(logits.shape(0)), "a state has no row of logits");
            jobs.push_back({logits.data() + row * vocab_size_, &state, nullptr});
        }
        return jobs;
    }

    void attach_masks(std::vector<Job> &jobs, const Array<const int32_t, 1> &mask_rows,
                      const std::optional<Array<const uint32_t, 2>> &masks) const {
        require(masks && masks->shape(0) == mask_rows.shape(0), "masks must have an entry for each of their rows");
        require(static_cast<int64_t>(masks->shape(1)) * 32 >= vocab_size_, "masks are too short");
        for (size_t m = 0; m < mask_rows.shape(0); ++m) {
            const int32_t n = mask_rows.data()[m];
            require(n >= 0 && n < static_cast<int64_t>(jobs.size()), "a mask belongs to no sampled row");
            jobs[n].mask = masks->data() + m * masks->shape(1);
        }
    }

    // Rows [begin, end): what one thread would do.
    void sample_rows(const std::vector<Job> &jobs, size_t begin, size_t end, Worker &worker) {
        for (size_t n = begin; n < end; ++n) outcomes_[n] = worker.sample(jobs[n]);
    }

    nb::object details() const {
        nb::object errors, logprobs;
        for (size_t n = 0; n < outcomes_.size(); ++n) {
            const Outcome &o = outcomes_[n];
            if (o.status != Status::ok) {
                if (!errors) errors = nb::list();
                nb::cast<nb::list>(errors).append(nb::make_tuple(n, message(o.status)));
            } else if (o.logprobs) {
                if (!logprobs) logprobs = nb::list();
                nb::cast<nb::list>(logprobs).append(nb::make_tuple(n, to_python(*o.logprobs)));
            }
        }
        if (!errors && !logprobs) return nb::none();
        return nb::make_tuple(errors ? errors : nb::list(), logprobs ? logprobs : nb::list());
    }

    int64_t vocab_size_;
    const Passes &passes_;
    Worker worker_;
    std::vector<Outcome> outcomes_;
};

}  // namespace
}  // namespace pagoda::sampling

namespace pagoda {

void bind_sampler(nb::module_ &m) {
    using namespace sampling;
    nb::class_<State>(m, "SamplerState")
        .def(
            "__init__",
            [](State *self, int64_t vocab_size, const std::vector<int32_t> &prompt_ids, uint64_t seed, uint32_t choice,
               float temperature, int64_t top_k, double top_p, double min_p, float repetition_penalty,
               float presence_penalty, float frequency_penalty, int64_t min_tokens, std::optional<int64_t> num_logprobs,
               std::optional<std::vector<int32_t>> allowed_ids, std::vector<int32_t> stop_ids,
               std::vector<std::pair<int32_t, float>> bias, std::vector<std::vector<int32_t>> bad_words,
               double top_n_sigma, double typical_p, double xtc_probability, double xtc_threshold,
               double dynatemp_range, double dynatemp_exponent, int mirostat, double mirostat_tau, double mirostat_eta,
               bool temperature_last, float dry_multiplier, float dry_base, int64_t dry_allowed_length,
               int64_t dry_last_n, std::vector<std::vector<int32_t>> dry_breakers) {
                const Params params{temperature,       top_k,         top_p,           min_p,
                                    repetition_penalty, presence_penalty, frequency_penalty, min_tokens,
                                    num_logprobs,      top_n_sigma,   typical_p,       xtc_probability,
                                    xtc_threshold,     dynatemp_range, dynatemp_exponent, mirostat,
                                    mirostat_tau,      mirostat_eta,  temperature_last};
                Dry dry{dry_multiplier, dry_base, dry_allowed_length, dry_last_n, std::move(dry_breakers)};
                Rules rules{std::move(allowed_ids), std::move(stop_ids), std::move(bias), std::move(bad_words),
                            std::move(dry)};
                new (self) State(vocab_size, params, std::move(rules), prompt_ids, seed, choice);
            },
            nb::kw_only(), "vocab_size"_a, "prompt_ids"_a, "seed"_a, "choice"_a, "temperature"_a, "top_k"_a, "top_p"_a,
            "min_p"_a, "repetition_penalty"_a, "presence_penalty"_a, "frequency_penalty"_a, "min_tokens"_a,
            "num_logprobs"_a.none(), "allowed_ids"_a.none(), "stop_ids"_a, "bias"_a, "bad_words"_a, "top_n_sigma"_a,
            "typical_p"_a, "xtc_probability"_a, "xtc_threshold"_a, "dynatemp_range"_a, "dynatemp_exponent"_a,
            "mirostat"_a, "mirostat_tau"_a, "mirostat_eta"_a, "temperature_last"_a, "dry_multiplier"_a, "dry_base"_a,
            "dry_allowed_length"_a, "dry_last_n"_a, "dry_breakers"_a)
        .def("accept", &State::accept, "token_id"_a)
        .def("rewind", &State::rewind, "num_outputs"_a)
        .def_prop_ro("num_outputs", &State::num_outputs);

    nb::class_<BatchSampler>(m, "BatchSampler")
        .def(nb::init<int64_t, const std::optional<std::string> &>(), "vocab_size"_a, "isa"_a.none() = nb::none())
        .def("sample", &BatchSampler::sample, "logits"_a, "states"_a, "token_ids"_a, "rows"_a.none(),
             "mask_rows"_a.none(), "masks"_a.none())
        .def("distribution", &BatchSampler::distribution, "logits"_a, "state"_a, "mask"_a.none() = nb::none())
        .def("prompt_logprobs", &BatchSampler::prompt_logprobs, "logits"_a, "targets"_a, "num_top"_a)
        .def_prop_ro("isa", &BatchSampler::isa);

    m.def("sampler_isas", [] {
        size_t count;
        const Passes *const *all = available_passes(count);
        std::vector<std::string> names;
        for (size_t i = 0; i < count; ++i) names.emplace_back(all[i]->name);
        return names;
    });
}

}  // namespace pagoda
