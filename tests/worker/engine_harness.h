// An engine on a fake model and a fake clock, and what it should have said.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tests/worker/fake_model.h"
#include "worker/engine.h"

namespace bough::testing {

inline ModelLimits TestLimits() {
  ModelLimits limits;
  limits.vocab_size = kVocabSize;
  limits.max_model_len = 1024;
  return limits;
}

inline EngineConfig TestConfig(int num_blocks, int max_num_seqs = 8, int max_tokens = 128) {
  EngineConfig config;
  config.model_key = "fake";
  config.limits = TestLimits();
  config.num_blocks = num_blocks;
  config.max_num_seqs = max_num_seqs;
  config.max_num_batched_tokens = max_tokens;
  return config;
}

// `num` tokens that depend on `seed`; the same seed gives the same beginning.
inline std::vector<int32_t> Tokens(int num, int seed = 0) {
  std::vector<int32_t> ids(num);
  for (int i = 0; i < num; ++i) ids[i] = static_cast<int32_t>(Mix(Mix(seed, i), 5) % kVocabSize);
  return ids;
}

inline Request MakeRequest(uint64_t handle, std::vector<int32_t> prompt, int n, int max_tokens) {
  Request r;
  r.key = {1, handle};
  r.request_id = "r" + std::to_string(handle);
  r.prompt_ids = std::move(prompt);
  r.sampling.max_tokens = max_tokens;
  r.sampling.ignore_eos = true;
  r.sampling.seed = handle;
  for (int i = 0; i < n; ++i) r.choices.push_back({i, {}});
  return r;
}

struct Answer {
  std::vector<int32_t> tokens;
  Finish finish = Finish::kNone;
};

// The prompt's tokens and how often the answer used each, as penalties see them.
class ExpectedSeen {
 public:
  explicit ExpectedSeen(const Request& r)
      : enabled_(r.sampling.repetition_penalty != 1 || r.sampling.presence_penalty != 0 ||
                 r.sampling.frequency_penalty != 0) {
    for (int32_t token : r.prompt_ids) count_[token] = 0;
  }
  void Add(int32_t token) { ++count_[token]; }
  uint64_t Hash() const {
    if (!enabled_) return 0;
    std::vector<int32_t> ids, counts;
    for (const auto& [token, count] : count_) ids.push_back(token), counts.push_back(count);
    return SeenHash(ids, counts);
  }

 private:
  const bool enabled_;
  std::map<int32_t, int32_t> count_;
};

// What an undisturbed run of one choice gives, by definition.
inline Answer ExpectedAnswer(const Request& r, const ChoiceStart& choice,
                             const ModelLimits& limits) {
  const SamplingParams& p = r.sampling;
  Answer answer{choice.emitted, Finish::kNone};
  std::vector<int32_t> history = r.prompt_ids;
  history.insert(history.end(), choice.emitted.begin(), choice.emitted.end());
  ExpectedSeen seen(r);
  for (int32_t token : answer.tokens) seen.Add(token);
  std::vector<int32_t> stops = p.stop_token_ids;
  if (!p.ignore_eos) stops.push_back(limits.eos_token_id);
  while (answer.finish == Finish::kNone) {
    const auto position = static_cast<int32_t>(answer.tokens.size());
    const bool may_stop = position >= p.min_tokens;
    const int32_t token =
        NextToken(history, p.seed, choice.index, position, seen.Hash(),
                  may_stop ? std::span<const int32_t>() : std::span<const int32_t>(stops));
    answer.tokens.push_back(token);
    history.push_back(token);
    seen.Add(token);
    if (std::find(stops.begin(), stops.end(), token) != stops.end()) {
      const bool is_eos = !p.ignore_eos && token == limits.eos_token_id;
      answer.finish = is_eos ? Finish::kEos : Finish::kStopToken;
    } else if (static_cast<int>(answer.tokens.size()) == p.max_tokens) {
      answer.finish = Finish::kLength;
    }
  }
  return answer;
}

class Harness {
 public:
  explicit Harness(EngineConfig config, int max_in_flight = 1)
      : config_(std::move(config)),
        model(config_.num_blocks, config_.max_num_seqs, config_.max_num_batched_tokens,
              max_in_flight) {
    config_.clock = [this] { return now; };
    model.on_wait = [this] { now += absl::Milliseconds(10); };
    engine = std::make_unique<Engine>(config_, &model);
  }

  // One step; checks order of indices and the engine's integrity.
  std::optional<StepEvents> Step() {
    auto events = engine->Step(now);
    engine->CheckIntegrity();
    if (!events) return events;
    for (const AckEvent& ack : events->acks) {
      EXPECT_TRUE(acks.emplace(ack.key.handle, ack).second) << "acknowledged twice";
    }
    for (const TokenEvent& t : events->tokens) {
      EXPECT_FALSE(dones.contains(t.key.handle)) << "token after Done";
      Answer& answer = answers[{t.key.handle, t.choice}];
      EXPECT_EQ(answer.finish, Finish::kNone) << "token after the choice's end";
      const auto start = starts.find({t.key.handle, t.choice});
      const size_t base = start == starts.end() ? 0 : start->second;
      EXPECT_EQ(static_cast<size_t>(t.index), base + answer.tokens.size());
      answer.tokens.push_back(t.token);
      answer.finish = t.finish;
    }
    for (const DoneEvent& done : events->dones) {
      EXPECT_TRUE(dones.emplace(done.key.handle, done).second) << "done twice";
    }
    for (const BlockHash& h : events->cache.removed) EXPECT_EQ(cached.erase({h.lo, h.hi}), 1u);
    for (const BlockHash& h : events->cache.stored) EXPECT_TRUE(cached.insert({h.lo, h.hi}).second);
    return events;
  }

  void Submit(const Request& request) {
    for (const ChoiceStart& c : request.choices) {
      starts[{request.key.handle, c.index}] = c.emitted.size();
    }
    engine->Submit(request);
  }

  // Steps until idle.
  void Drain() {
    for (int i = 0; Step().has_value(); ++i) ASSERT_LT(i, 100000) << "no end";
    EXPECT_EQ(model.num_in_flight(), 0);
    const LoadReport load = engine->Load();
    EXPECT_EQ(load.used_blocks, 0);
    EXPECT_EQ(load.free_blocks + load.cached_blocks, load.total_blocks);
    EXPECT_EQ(load.running + load.waiting, 0);
  }

  // The request ended well and every choice's tokens are those of an undisturbed run.
  void ExpectUndisturbed(const Request& request) {
    const auto done = dones.find(request.key.handle);
    ASSERT_NE(done, dones.end()) << "request " << request.key.handle;
    EXPECT_TRUE(done->second.status.ok()) << done->second.status;
    for (const ChoiceStart& choice : request.choices) {
      const Answer expected = ExpectedAnswer(request, choice, config_.limits);
      const Answer& got = answers[{request.key.handle, choice.index}];
      const std::vector<int32_t> rest(expected.tokens.begin() + choice.emitted.size(),
                                      expected.tokens.end());
      EXPECT_EQ(got.tokens, rest) << "request " << request.key.handle << " choice " << choice.index;
      EXPECT_EQ(got.finish, expected.finish);
    }
  }

  EngineConfig config_;
  FakeModel model;
  std::unique_ptr<Engine> engine;
  absl::Time now = absl::UnixEpoch();

  std::map<uint64_t, AckEvent> acks;
  std::map<uint64_t, DoneEvent> dones;
  std::map<std::pair<uint64_t, int32_t>, Answer> answers;
  std::map<std::pair<uint64_t, int32_t>, size_t> starts;
  std::set<std::pair<uint64_t, uint64_t>> cached;  // the router's view
};

}  // namespace bough::testing
