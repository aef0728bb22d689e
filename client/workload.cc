#include "client/workload.h"

#include <cmath>
#include <random>

#include "absl/strings/str_format.h"
#include "common/check.h"

namespace bough::client {
namespace {

// The standard's distributions differ between libraries; its engines do not.
uint64_t Below(uint64_t bound, std::mt19937_64& engine) { return engine() % bound; }

void AppendTokens(int count, const v1::Model& model, std::mt19937_64& engine,
                  google::protobuf::RepeatedField<int32_t>* ids) {
  while (count > 0) {
    const int32_t id = static_cast<int32_t>(Below(model.vocab_size(), engine));
    if (id == model.bos_token_id() || id == model.eos_token_id()) continue;
    ids->Add(id);
    --count;
  }
}

// 64-bit: the flags may be near the largest int.
int64_t PromptLen(const WorkloadConfig& c) { return int64_t{c.prefix_len} + c.input_len; }

}  // namespace

absl::Status Validate(const WorkloadConfig& c, const v1::Model& model) {
  const auto bad = [](std::string why) { return absl::InvalidArgumentError(std::move(why)); };
  const std::pair<const char*, int> at_least_one[] = {{"num-requests", c.num_requests},
                                                      {"input-len", c.input_len},
                                                      {"output-len", c.output_len},
                                                      {"n", c.n}};
  for (const auto& [name, value] : at_least_one) {
    if (value < 1) return bad(absl::StrFormat("--%s must be at least 1, is %d", name, value));
  }
  const bool any_prefix = c.num_prefixes != 0 || c.prefix_len != 0;
  if (any_prefix && (c.num_prefixes < 1 || c.prefix_len < 1)) {
    return bad(absl::StrFormat(
        "--num-prefixes and --prefix-len must both be 0 or both at least 1, are %d and %d",
        c.num_prefixes, c.prefix_len));
  }
  const int64_t prompt = PromptLen(c);
  if (prompt + c.output_len > model.max_model_len()) {
    return bad(
        absl::StrFormat("prompt (%d) and --output-len (%d) must fit the context of %d tokens",
                        prompt, c.output_len, model.max_model_len()));
  }
  if (c.n > model.max_n()) {
    return bad(absl::StrFormat("--n must be at most %d, is %d", model.max_n(), c.n));
  }
  if (model.vocab_size() < 3) return bad("the model's vocabulary is too small for random prompts");
  return absl::OkStatus();
}

std::vector<v1::GenerateRequest> MakeRequests(const WorkloadConfig& config,
                                              const v1::Model& model) {
  std::mt19937_64 engine(config.seed);
  std::vector<v1::TokenIds> prefixes(config.num_prefixes);
  for (v1::TokenIds& prefix : prefixes) {
    prefix.add_ids(model.bos_token_id());
    AppendTokens(config.prefix_len - 1, model, engine, prefix.mutable_ids());
  }
  std::vector<v1::GenerateRequest> requests(config.num_requests);
  for (size_t i = 0; i < requests.size(); ++i) {
    v1::TokenIds* prompt = requests[i].mutable_token_ids();
    if (prefixes.empty()) {
      prompt->add_ids(model.bos_token_id());
    } else {
      *prompt = prefixes[Below(prefixes.size(), engine)];
    }
    AppendTokens(static_cast<int>(PromptLen(config)) - prompt->ids_size(), model, engine,
                 prompt->mutable_ids());
    requests[i].mutable_sampling()->set_n(config.n);
    requests[i].mutable_sampling()->set_temperature(config.temperature);
    requests[i].mutable_sampling()->set_seed(config.seed + i);
    requests[i].mutable_stop()->set_max_tokens(config.output_len);
    requests[i].mutable_stop()->set_ignore_eos(true);
    requests[i].mutable_output()->set_return_token_ids(true);  // one delta per token to time
  }
  return requests;
}

std::vector<double> PoissonArrivals(double rate, int count, uint64_t seed) {
  CHECK_GT(rate, 0);
  std::mt19937_64 engine(seed ^ 0x9e3779b97f4a7c15);  // not the stream that makes the prompts
  std::vector<double> arrivals(count);
  double now = 0;
  for (double& arrival : arrivals) {
    const double uniform = static_cast<double>(engine() >> 11) * 0x1p-53;  // [0, 1)
    now += -std::log1p(-uniform) / rate;
    arrival = now;
  }
  return arrivals;
}

}  // namespace bough::client
