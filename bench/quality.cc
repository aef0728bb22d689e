// How far a backend and a precision are from the definition: the model on the CPU in f32 with its
// weights as stored, on text that it was not trained on.
//
//   bench-quality --variants=cpu-fp8,cpu-fp8-kv8
//   bench-quality --variants=cuda,cuda-kv8,cuda-kv8-att8,cuda-fp8,cuda-fp8-kv8
//     --out=bench/results/h200/quality_demo.json
//
// A variant is a device, then -fp8 (weights and what they meet), -kv8 (the KV cache), -att8 (what
// attention multiplies with it, on CUDA) or, as a control that has to look bad, -int4 (weights
// rounded to 4 bits). Per variant:
//   heldout   every position of held-out text, in windows: perplexity ratio, KL divergence from the
//             reference, share of positions with the same likeliest token
//   greedy    decode steps along the reference's own greedy answers (teacher-forced, so that one
//             difference does not hide what follows): share of positions with the same token
// Ends with 1 when a variant misses a gate: the same greedy token on 99 % of positions when nothing
// is quantised; of FP8 a perplexity ratio of 1.005, a mean KLD of 0.005, the same likeliest token on
// 97 %; the control must miss the last two.
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "bench/agreement.h"
#include "bench/results.h"
#include "common/block_hash.h"
#include "common/check.h"
#include "common/tokenizer.h"
#include "tests/worker_cuda/one_rank.h"
#include "tests/worker_model/hand_batch.h"
#include "worker/clock.h"

ABSL_FLAG(std::string, model, "models/demo", "Hugging Face folder with tokenizer.model");
ABSL_FLAG(std::string, text, "models/demo/heldout.txt", "UTF-8 text");
ABSL_FLAG(std::vector<std::string>, variants, (std::vector<std::string>{"cpu-fp8", "cpu-fp8-kv8"}),
          "what to compare with the reference");
ABSL_FLAG(int, max_tokens, 0, "of the text; 0 = all");
ABSL_FLAG(int, window, 1024, "tokens that are read together, BOS in front included");
ABSL_FLAG(std::string, out, "", "path of the JSON file; empty: print only");
ABSL_FLAG(std::string, git, "", "commit, where the working directory is no checkout");

namespace bough {
namespace {

using testing::HandBatches;
using testing::OneRank;
using testing::OneRankOptions;
using testing::TokenIds;

constexpr int kNumPrompts = 32, kPromptTokens = 64, kAnswerTokens = 64;

constexpr double kMinSameGreedy = 0.99;  // nothing quantised
constexpr double kMaxPplRatio = 1.005, kMaxMeanKld = 0.005, kMinSameTop = 0.97;  // FP8

std::string ReadText(const std::string& path) {
  std::ifstream file(path);
  CHECK(file.good()) << path;
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

int BlocksOf(int num_tokens) { return (num_tokens + kBlockSize - 1) / kBlockSize; }

OneRankOptions ParseVariant(const std::string& name) {
  const std::vector<std::string> parts = absl::StrSplit(name, '-');
  OneRankOptions options;
  options.model_dir = absl::GetFlag(FLAGS_model);
  options.device = parts[0];
  for (size_t i = 1; i < parts.size(); ++i) {
    bool* const option = parts[i] == "fp8"    ? &options.fp8_weights
                         : parts[i] == "kv8"  ? &options.fp8_kv_cache
                         : parts[i] == "att8" ? &options.attention.enable_fp8
                         : parts[i] == "int4" ? &options.int4_weights
                                              : nullptr;
    CHECK(option != nullptr) << "--variants: " << name;
    *option = true;
  }
  options.max_num_tokens = absl::GetFlag(FLAGS_window);
  options.num_blocks = std::max(BlocksOf(absl::GetFlag(FLAGS_window)),
                                kNumPrompts * BlocksOf(kPromptTokens + kAnswerTokens));
  return options;
}

std::unique_ptr<OneRank> Load(const std::string& variant) {
  auto model = OneRank::Load(ParseVariant(variant));
  CHECK_OK(model.status());
  return *std::move(model);
}

// A prefill of the tokens, with the logits of all.
Batch WholeWindow(const TokenIds& tokens) {
  HandBatches window({tokens}, static_cast<int>(tokens.size()));
  Batch batch = window.Prefill(0, static_cast<int>(tokens.size()));
  batch.logits_tokens.clear();
  for (int t = 0; t < batch.num_tokens(); ++t) batch.logits_tokens.push_back(t);
  return batch;
}

class Quality {
 public:
  Quality(std::string command, TokenIds text)
      : text_(std::move(text)), names_(absl::GetFlag(FLAGS_variants)), reference_(Load("cpu")) {
    for (const std::string& name : names_) variants_.push_back(Load(name));
    agreements_.resize(names_.size());
    results_.scenario =
        absl::StrCat("quality ", absl::GetFlag(FLAGS_model), " ", absl::GetFlag(FLAGS_text));
    results_.command = std::move(command);
    results_.git = absl::GetFlag(FLAGS_git);
    results_.device = CpuName();
    if (const auto gpu = OpenCudaDevice(0); gpu.ok()) results_.device = (*gpu)->name();
  }

  int Main() {
    ReadHeldout();
    std::printf("%lld positions, reference %.4f nats/token\n",
                static_cast<long long>(agreements_[0].num_positions()),
                agreements_[0].ReferenceNll());
    Report("reference/nats_per_token", agreements_[0].ReferenceNll(), "nats");
    for (size_t v = 0; v < names_.size(); ++v) ReportHeldout(v);
    FollowAnswers();
    const std::string out = absl::GetFlag(FLAGS_out);
    const bool written = out.empty() || WriteFile(out, ToJson(results_));
    std::printf(all_pass_ ? "every gate is kept\n" : "a gate is missed\n");
    return written && all_pass_ ? 0 : 1;
  }

 private:
  bool Quantized(size_t v) const { return names_[v].find('-') != std::string::npos; }
  bool IsControl(size_t v) const { return absl::StrContains(names_[v], "int4"); }

  void ReadHeldout() {
    const int window = absl::GetFlag(FLAGS_window);
    const int bos = reference_->config().bos_token_id;
    for (size_t begin = 0; begin < text_.size(); begin += window - 1) {
      const size_t end = std::min(text_.size(), begin + window - 1);
      const TokenIds next(text_.begin() + begin, text_.begin() + end);
      TokenIds tokens = {bos};
      tokens.insert(tokens.end(), next.begin(), next.end() - 1);
      const Batch batch = WholeWindow(tokens);
      const std::vector<float> want = reference_->Logits(batch);
      for (size_t v = 0; v < variants_.size(); ++v) {
        agreements_[v].Add(want, variants_[v]->Logits(batch), next);
      }
    }
  }

  void ReportHeldout(size_t v) {
    const Agreement& a = agreements_[v];
    const std::string name = absl::StrCat(names_[v], "/heldout/");
    const bool gated = Quantized(v), control = IsControl(v);
    Report(name + "ppl_ratio", a.PplRatio(), "", gated && !control ? kMaxPplRatio : 0, false);
    Report(name + "ppl_ratio_ci95", a.PplRatioCi95(), "");
    Report(name + "mean_kld", a.MeanKld(), "nats", gated ? kMaxMeanKld : 0, control);
    Report(name + "kld_99", a.KldQuantile(0.99), "nats");
    Report(name + "kld_99.9", a.KldQuantile(0.999), "nats");
    Report(name + "same_top", a.SameTop(), "", gated ? kMinSameTop : 0, !control);
    Report(name + "rms_delta_p", a.RmsDelta(), "");
  }

  // Prompts from all over the text.
  std::vector<TokenIds> Prompts() const {
    std::vector<TokenIds> prompts;
    const size_t stride = text_.size() / kNumPrompts;
    CHECK_GE(stride, static_cast<size_t>(kPromptTokens)) << "the text is too short";
    for (int i = 0; i < kNumPrompts; ++i) {
      const auto begin = text_.begin() + i * stride;
      prompts.push_back({reference_->config().bos_token_id});
      prompts.back().insert(prompts.back().end(), begin, begin + kPromptTokens - 1);
    }
    return prompts;
  }

  void FollowAnswers() {
    const std::vector<TokenIds> prompts = Prompts();
    const int max_len = kPromptTokens + kAnswerTokens;
    HandBatches sequences(prompts, max_len);
    const std::vector<TokenIds> answers =
        GreedyTokens(&sequences, kAnswerTokens, kPromptTokens,
                     [&](const Batch& batch) { return reference_->Greedy(batch); });
    for (size_t v = 0; v < variants_.size(); ++v) {
      const double share = SameGreedy(prompts, answers, variants_[v].get());
      Report(absl::StrCat(names_[v], "/greedy/same_token"), share, "",
             Quantized(v) ? 0 : kMinSameGreedy, true);
    }
  }

  // Share of the answers' positions where the model would have gone on in the same way.
  static double SameGreedy(const std::vector<TokenIds>& prompts,
                           const std::vector<TokenIds>& answers, OneRank* model) {
    HandBatches sequences(prompts, kPromptTokens + kAnswerTokens);
    int num_same = 0;
    for (int seq = 0; seq < kNumPrompts; ++seq) {
      const TokenIds first = model->Greedy(sequences.Prefill(seq, kPromptTokens)).tokens;
      num_same += first[0] == answers[seq][0];
      sequences.Append(seq, answers[seq][0]);
    }
    for (int step = 1; step < kAnswerTokens; ++step) {
      const TokenIds tokens = model->Greedy(sequences.Decode()).tokens;
      for (int seq = 0; seq < kNumPrompts; ++seq) {
        num_same += tokens[seq] == answers[seq][step];
        sequences.Append(seq, answers[seq][step]);
      }
    }
    return 1.0 * num_same / (kNumPrompts * kAnswerTokens);
  }

  // gate 0: none.
  void Report(const std::string& name, double value, const std::string& unit, double gate = 0,
              bool at_least = false) {
    BenchCase c = {.name = name, .value = value, .unit = unit};
    std::printf("%-36s %10.6f", name.c_str(), value);
    if (gate > 0) {
      c.gate = gate;
      const bool pass = at_least ? value >= gate : value <= gate;
      std::printf("   %s %g: %s", at_least ? "at least" : "at most", gate, pass ? "yes" : "NO");
      all_pass_ = all_pass_ && pass;
    }
    std::printf("\n");
    std::fflush(stdout);
    results_.cases.push_back(std::move(c));
  }

  const TokenIds text_;
  const std::vector<std::string> names_;
  const std::unique_ptr<OneRank> reference_;
  std::vector<std::unique_ptr<OneRank>> variants_;
  std::vector<Agreement> agreements_;  // by variant
  BenchResults results_;
  bool all_pass_ = true;
};

TokenIds ReadTokens() {
  const auto tokenizer = Tokenizer::Load(absl::GetFlag(FLAGS_model) + "/tokenizer.model");
  CHECK_OK(tokenizer.status());
  TokenIds tokens = (*tokenizer)->Encode(ReadText(absl::GetFlag(FLAGS_text)));
  const size_t max_tokens = absl::GetFlag(FLAGS_max_tokens);
  if (max_tokens > 0 && tokens.size() > max_tokens) tokens.resize(max_tokens);
  return tokens;
}

}  // namespace
}  // namespace bough

int main(int argc, char** argv) {
  const std::string command = bough::CommandLine(argc, argv);
  absl::ParseCommandLine(argc, argv);
  return bough::Quality(command, bough::ReadTokens()).Main();
}
