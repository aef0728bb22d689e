// A model whose KV cache can be read back: each slot keeps the token that was written to it, and
// the next token is a hash of the whole history as found through the row's own block table. A wrong
// block, copy, position or shared prefix therefore gives a wrong token. A slot also keeps, as real
// KV does, what stood before it: whoever reads a slot that another context or nobody wrote, dies.
// It also checks what every batch promises.
//
// Steps run in the order of their launch; a token in flight is resolved from the step before, and
// what a step sampled is told at its Wait only.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "common/block_hash.h"
#include "common/check.h"
#include "worker/batch.h"

namespace bough::testing {

inline constexpr int kVocabSize = 97;

inline uint64_t Mix(uint64_t h, uint64_t x) {
  h = (h ^ x) * 0x9E3779B97F4A7C15ull;
  return h ^ (h >> 29);
}

// What the penalties see, as one number: tokens of prompt and answer with their counts in the
// answer, in any order. 0 without penalties.
inline uint64_t SeenHash(std::span<const int32_t> ids, std::span<const int32_t> counts) {
  uint64_t sum = 0;
  for (size_t i = 0; i < ids.size(); ++i) sum += Mix(Mix(3, ids[i]), counts[i]);
  return sum;
}

// The token after `history`, drawn for a choice; the first that is not banned.
inline int32_t NextToken(std::span<const int32_t> history, uint64_t seed, int32_t choice,
                         int32_t position, uint64_t seen, std::span<const int32_t> banned) {
  uint64_t h = Mix(Mix(Mix(Mix(1, seed), choice), position), seen);
  for (int32_t token : history) h = Mix(h, token);
  int32_t token = static_cast<int32_t>(h % kVocabSize);
  while (std::find(banned.begin(), banned.end(), token) != banned.end()) {
    token = (token + 1) % kVocabSize;
  }
  return token;
}

class FakeModel : public StepExecutor {
 public:
  FakeModel(int num_blocks, int max_rows, int max_tokens, int max_in_flight = 1)
      : max_rows_(max_rows),
        max_tokens_(max_tokens),
        max_in_flight_(max_in_flight),
        kv_(num_blocks * kBlockSize) {}
  ~FakeModel() override { CHECK(results_.empty()) << "a step was not waited for"; }

  void Launch(const Batch& batch) override {
    CHECK_LT(results_.size(), static_cast<size_t>(max_in_flight_));
    if (on_step) on_step(batch);
    CheckShape(batch);
    CheckForest(batch);
    CopyBlocks(batch);
    WriteTokens(batch);
    ++num_steps;
    max_rows_seen = std::max(max_rows_seen, batch.num_seqs());
    results_.push_back(Sample(batch));
    sampled_ = results_.back().tokens;
  }

  StepResult Wait() override {
    CHECK(!results_.empty());
    if (on_wait) on_wait();
    StepResult result = std::move(results_.front());
    results_.pop_front();
    return result;
  }

  int max_steps_in_flight() const override { return max_in_flight_; }
  int num_in_flight() const { return static_cast<int>(results_.size()); }

  std::function<void(const Batch&)> on_step;  // at Launch
  std::function<void()> on_wait;
  int num_steps = 0;
  int max_rows_seen = 0;
  int64_t num_copies = 0, num_shared_rows = 0, num_computed = 0, num_resolved = 0;

 private:
  struct Slot {
    int32_t token = -7;    // unwritten
    uint64_t context = 0;  // hash of the tokens up to here
  };

  std::span<const int32_t> Table(const Batch& b, int row) const {
    return std::span(b.block_tables).subspan(row * b.max_blocks, b.max_blocks);
  }

  void CheckShape(const Batch& b) const {
    CHECK_GT(b.num_tokens(), 0);
    CHECK_LE(b.num_tokens(), max_tokens_);
    CHECK_LE(b.num_seqs(), max_rows_);
    CHECK_LE(b.samples.size(), static_cast<size_t>(max_rows_));
    CHECK_EQ(b.cu_seqlens_q.size(), b.seqlens_kv.size() + 1);
    CHECK_EQ(b.cu_seqlens_q.back(), b.num_tokens());
    CHECK_EQ(b.positions.size(), b.tokens.size());
    CHECK_EQ(b.slot_mapping.size(), b.tokens.size());
    CHECK_EQ(b.block_tables.size(), b.seqlens_kv.size() * b.max_blocks);
    std::set<int32_t> written;
    for (int row = 0; row < b.num_seqs(); ++row) {
      const int begin = b.cu_seqlens_q[row], end = b.cu_seqlens_q[row + 1];
      CHECK_GT(end, begin);
      if (row < b.num_decode) CHECK_EQ(end - begin, 1);
      CHECK_EQ(b.positions[end - 1] + 1, b.seqlens_kv[row]);
      const auto table = Table(b, row);
      for (int i = begin; i < end; ++i) {
        const int pos = b.seqlens_kv[row] - (end - i);
        CHECK_EQ(b.positions[i], pos);
        CHECK_EQ(b.slot_mapping[i], table[pos / kBlockSize] * kBlockSize + pos % kBlockSize);
        written.insert(table[pos / kBlockSize]);
      }
      for (int col = 0; col < b.max_blocks; ++col) {
        const bool is_read = col * kBlockSize < b.seqlens_kv[row];
        CHECK_EQ(table[col] >= 0, is_read) << "row " << row << " column " << col;
      }
    }
    // A block that is written in this step is in one table only.
    std::map<int32_t, int> owner;
    for (int row = 0; row < b.num_seqs(); ++row) {
      for (int32_t block : Table(b, row)) {
        if (block < 0 || !written.contains(block)) continue;
        const auto [it, is_new] = owner.try_emplace(block, row);
        CHECK(is_new) << "rows " << it->second << " and " << row << " share written block "
                      << block;
      }
    }
  }

  void CheckForest(const Batch& b) {
    std::vector<int32_t> covered(b.num_seqs(), 0);
    for (const SharedNode& node : b.nodes) {
      CHECK_LT(node.seq_begin, node.seq_end);
      CHECK_LE(node.seq_end, b.num_decode);
      CHECK_LT(node.key_begin, node.key_end);
      CHECK_EQ(node.key_end % kBlockSize, 0);
      const auto first = Table(b, node.seq_begin);
      for (int row = node.seq_begin; row < node.seq_end; ++row) {
        CHECK_LT(node.key_end, b.seqlens_kv[row]);
        CHECK_EQ(covered[row], node.key_begin);
        covered[row] = node.key_end;
        CHECK(std::equal(first.begin(), first.begin() + node.key_end / kBlockSize,
                         Table(b, row).begin()));
      }
    }
    CHECK(covered == b.own_begin);
    num_shared_rows += std::count_if(covered.begin(), covered.end(), [](int n) { return n > 0; });
  }

  // In any order, so no block may be source and destination, or destination twice.
  void CopyBlocks(const Batch& b) {
    CHECK_EQ(b.copy_src.size(), b.copy_dst.size());
    std::set<int32_t> sources(b.copy_src.begin(), b.copy_src.end()), destinations;
    for (size_t i = 0; i < b.copy_src.size(); ++i) {
      CHECK(!sources.contains(b.copy_dst[i]));
      CHECK(destinations.insert(b.copy_dst[i]).second);
      std::copy_n(kv_.begin() + b.copy_src[i] * kBlockSize, kBlockSize,
                  kv_.begin() + b.copy_dst[i] * kBlockSize);
      ++num_copies;
    }
  }

  // As kernels/elementwise.h, Embedding. Each token in flight has one row that goes on from it.
  std::vector<int32_t> Resolve(const Batch& b) {
    std::vector<int32_t> tokens = b.tokens;
    std::set<int32_t> used;
    for (size_t i = 0; i < tokens.size(); ++i) {
      if (tokens[i] >= 0) continue;
      const int32_t row = -1 - tokens[i];
      CHECK(!results_.empty()) << "step " << b.step << ": nothing is in flight";
      CHECK_LT(static_cast<size_t>(row), sampled_.size());
      CHECK_LT(i, static_cast<size_t>(b.num_decode));
      CHECK(used.insert(row).second) << "row " << row << " of the step before goes on twice";
      tokens[i] = sampled_[row];
      ++num_resolved;
    }
    return tokens;
  }

  void WriteTokens(const Batch& b) {
    const std::vector<int32_t> tokens = Resolve(b);
    for (int row = 0; row < b.num_seqs(); ++row) {
      const int begin = b.cu_seqlens_q[row], end = b.cu_seqlens_q[row + 1];
      uint64_t context = b.positions[begin] == 0 ? 0 : At(b, row, b.positions[begin] - 1).context;
      for (int i = begin; i < end; ++i) {
        context = Mix(context, tokens[i]);
        kv_[b.slot_mapping[i]] = {tokens[i], context};
      }
    }
    num_computed += b.num_tokens();
  }

  const Slot& At(const Batch& b, int row, int pos) const {
    return kv_[Table(b, row)[pos / kBlockSize] * kBlockSize + pos % kBlockSize];
  }

  std::vector<int32_t> History(const Batch& b, int row) const {
    std::vector<int32_t> history(b.seqlens_kv[row]);
    uint64_t context = 0;
    for (int pos = 0; pos < b.seqlens_kv[row]; ++pos) {
      const Slot& slot = At(b, row, pos);
      context = Mix(context, slot.token);
      CHECK(slot.token >= 0 && slot.context == context)
          << "step " << b.step << " row " << row << " reads what it did not write at " << pos;
      history[pos] = slot.token;
    }
    return history;
  }

  StepResult Sample(const Batch& b) const {
    StepResult result;
    std::map<int32_t, std::vector<int32_t>> histories;  // by logits row
    for (const SamplingRow& s : b.samples) {
      const int32_t at = b.logits_tokens[s.logits_row];
      auto [it, is_new] = histories.try_emplace(s.logits_row);
      if (is_new) {
        const auto row = std::upper_bound(b.cu_seqlens_q.begin(), b.cu_seqlens_q.end(), at) -
                         b.cu_seqlens_q.begin() - 1;
        CHECK_EQ(at + 1, b.cu_seqlens_q[row + 1]);
        it->second = History(b, static_cast<int>(row));
      }
      const auto banned =
          std::span(b.banned_ids).subspan(s.banned_begin, s.banned_end - s.banned_begin);
      const int num_seen = s.seen_end - s.seen_begin;
      const uint64_t seen = SeenHash(std::span(b.seen_ids).subspan(s.seen_begin, num_seen),
                                     std::span(b.seen_counts).subspan(s.seen_begin, num_seen));
      result.tokens.push_back(NextToken(it->second, s.seed, s.choice, s.position, seen, banned));
      result.logprobs.push_back(-0.5f);
      for (int k = 0; k < b.max_top; ++k) {
        result.top_ids.push_back(k < s.num_logprobs ? k : -1);
        result.top_logprobs.push_back(-1.0f - k);
      }
    }
    return result;
  }

  const int max_rows_, max_tokens_, max_in_flight_;
  std::vector<Slot> kv_;
  std::deque<StepResult> results_;  // of steps in flight
  std::vector<int32_t> sampled_;    // by the last step
};

}  // namespace bough::testing
