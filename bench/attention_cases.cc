#include "bench/attention_cases.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kernels/dtype.h"

namespace bough {
namespace {

constexpr double kReadBytesPerUs = 4.6e6, kF16FlopsPerUs = 774e6, kFp8FlopsPerUs = 1450e6;

const char* NameOf(AttentionPrecision p) {
  switch (p) {
    case AttentionPrecision::kBF16:
      return "bf16";
    case AttentionPrecision::kFp8:
      return "fp8";
    case AttentionPrecision::kFp8OneLevel:
      return "fp8one";
    case AttentionPrecision::kFp8Kv:
      return "fp8kv";
  }
  return "";
}

// `num_seqs` sequences of `len` keys.
AttentionCase Plain(const std::string& kind, const std::string& shape, int num_seqs, int len) {
  AttentionCase c = {.kind = kind, .shape = shape};
  c.seqlens.assign(num_seqs, len);
  c.own_begin.assign(num_seqs, 0);
  return c;
}

// Puts keys [begin, end) of sequences [first, last) into one node.
void Share(AttentionCase* c, int first, int last, int begin, int end) {
  c->nodes.push_back({first, last, begin, end});
  std::fill(c->own_begin.begin() + first, c->own_begin.begin() + last, end);
}

AttentionCase Shared(const std::string& kind, const std::string& shape, int num_seqs, int context,
                     int num_private) {
  AttentionCase c = Plain(kind, shape, num_seqs, context + num_private);
  if (num_seqs > 1) Share(&c, 0, num_seqs, 0, context);
  return c;
}

// A system prompt over eight documents over sequences.
AttentionCase Documents(int num_seqs, int num_private) {
  constexpr int kSystem = 2048, kDocs = 8, kDoc = 4096;
  AttentionCase c =
      Plain("tree", absl::StrCat("system=2048/docs=8x4096/private=", num_private, "/b=", num_seqs),
            num_seqs, kSystem + kDoc + num_private);
  const int each = num_seqs / kDocs;
  Share(&c, 0, num_seqs, 0, kSystem);
  for (int d = 0; d < kDocs; ++d) {
    Share(&c, d * each, (d + 1) * each, kSystem, kSystem + kDoc);
  }
  return c;
}

AttentionCase Prefixes(int prefix, int num_private) {
  constexpr int kPrefixes = 64, kEach = 4;
  AttentionCase c =
      Plain("tree", absl::StrCat("prefixes=64x4/prefix=", prefix, "/private=", num_private),
            kPrefixes * kEach, prefix + num_private);
  for (int p = 0; p < kPrefixes; ++p) Share(&c, p * kEach, (p + 1) * kEach, 0, prefix);
  return c;
}

// A causal prefill of `num_tokens` at the end of `context` tokens.
AttentionCase Prefill(int num_tokens, int context) {
  std::string shape = absl::StrCat("t=", num_tokens);
  if (context > num_tokens) absl::StrAppend(&shape, "/ctx=", context);
  AttentionCase c = Plain("prefill", shape, 1, context);
  c.num_q = num_tokens;
  return c;
}

// Collects cases of one precision.
class List {
 public:
  List(AttentionPrecision precision, std::vector<AttentionCase>* cases)
      : precision_(precision), cases_(cases) {}

  bool is(AttentionPrecision p) const { return precision_ == p; }
  AttentionCase& Add(AttentionCase c) {
    c.precision = precision_;
    return cases_->emplace_back(std::move(c));
  }

  void Decode(int num_kv_heads, int context, int num_seqs) {
    AttentionCase& c = Add(
        Plain("decode", absl::StrCat("heads=32:", num_kv_heads, "/ctx=", context, "/b=", num_seqs),
              num_seqs, context));
    c.num_kv_heads = num_kv_heads;
    if (!is(AttentionPrecision::kFp8)) return;
    if (num_seqs >= 32) c.gate_us = static_cast<double>(c.kv_bytes()) / (0.88 * kReadBytesPerUs);
    if (num_seqs == 1 && context == 8192 && num_kv_heads == 8) c.gate_us = 8;
  }

  void SharedContext(int num_kv_heads, int context, int num_seqs, double gate_us = 0) {
    AttentionCase& c = Add(Shared(
        "shared",
        absl::StrCat("heads=32:", num_kv_heads, "/ctx=", context, "/private=64/b=", num_seqs),
        num_seqs, context, 64));
    c.num_kv_heads = num_kv_heads;
    c.gate_us = gate_us;
  }

  void Trees() {
    for (AttentionCase c : {Documents(64, 256), Documents(256, 256), Prefixes(2048, 64)}) {
      AttentionCase& added = Add(std::move(c));
      added.gate_us = 1.3 * added.floor_us();
      added.compares = true;
    }
  }

  void Skew() {
    AttentionCase& c = Add(Plain("decode", "skew=65536+31x4096", 32, 4096));
    c.seqlens[0] = 65536;
  }

  void Speculate() {
    Add(Plain("speculate", "q=4/ctx=4096/b=32", 32, 4096)).num_q = 4;
    Add(Shared("speculate", "q=4/ctx=8192/private=64/b=64", 64, 8192, 64)).num_q = 4;
  }

  // As a step's graph is recorded: a node for every sequence, here without sequences.
  void NoShare(int context, int num_seqs) {
    AttentionCase& c =
        Add(Plain("noshare", absl::StrCat("ctx=", context, "/b=", num_seqs), num_seqs, context));
    c.nodes.resize(num_seqs);
    c.compares = true;
    c.gate_over_plain = 1.03;
  }

  void Crossover(int len, int num_seqs) {
    AttentionCase& c =
        Add(Shared("crossover", absl::StrCat("len=", len, "/b=", num_seqs), num_seqs, len, 64));
    c.compares = true;
    if (len >= 128) c.gate_over_plain = 1;
  }

  void Prefills() {
    for (int t : {1024, 4096}) Add(Prefill(t, t));
    AttentionCase& longest = Add(Prefill(16384, 16384));
    if (is(AttentionPrecision::kFp8)) longest.gate_us = longest.flops() / 800e6;
    if (is(AttentionPrecision::kBF16)) longest.gate_us = longest.flops() / 550e6;
    Add(Prefill(1024, 16384));
  }

 private:
  const AttentionPrecision precision_;
  std::vector<AttentionCase>* const cases_;
};

}  // namespace

std::string AttentionCase::name() const {
  return absl::StrCat(kind, "/", NameOf(precision), "/", shape);
}

std::string AttentionCase::peer_key() const { return absl::StrCat(kind, "/", shape); }

DType AttentionCase::kv_dtype() const {
  return precision == AttentionPrecision::kBF16 ? DType::kBF16 : DType::kF8E4M3;
}

bool AttentionCase::fp8_products() const {
  return precision == AttentionPrecision::kFp8 || precision == AttentionPrecision::kFp8OneLevel;
}

int64_t AttentionCase::num_unique_keys() const {
  int64_t keys = 0;
  for (const SharedNode& node : nodes) keys += node.key_end - node.key_begin;
  for (int s = 0; s < num_seqs(); ++s) keys += seqlens[s] - own_begin[s];
  return keys;
}

int64_t AttentionCase::kv_bytes() const {
  return num_unique_keys() * 2 * num_kv_heads * head_dim * static_cast<int64_t>(SizeOf(kv_dtype()));
}

double AttentionCase::flops() const {
  double pairs = 0;
  for (int32_t len : seqlens) pairs += num_q * (len - (num_q - 1) / 2.0);
  return 4.0 * num_heads * head_dim * pairs;
}

double AttentionCase::floor_us() const {
  const double q_and_o = 2.0 * 2 * num_tokens() * num_heads * head_dim;
  const double peak = fp8_products() ? kFp8FlopsPerUs : kF16FlopsPerUs;
  return std::max((static_cast<double>(kv_bytes()) + q_and_o) / kReadBytesPerUs, flops() / peak);
}

std::vector<AttentionCase> AttentionCases() {
  std::vector<AttentionCase> cases;
  for (AttentionPrecision p : {AttentionPrecision::kFp8, AttentionPrecision::kBF16}) {
    List list(p, &cases);
    const bool fp8 = p == AttentionPrecision::kFp8;
    for (int context : {1024, 8192, 32768}) list.Decode(8, context, 1);
    list.Decode(8, 4096, 32);
    list.Decode(8, 8192, 64);
    list.Decode(8, 1024, 256);
    list.Decode(32, 8192, 16);
    list.Skew();
    for (int b : {1, 4, 16}) list.SharedContext(8, 8192, b);
    list.SharedContext(8, 8192, 64, fp8 ? 12 : 0);
    list.SharedContext(8, 8192, 256, fp8 ? 45 : 0);
    for (int b : {1024, 2048}) list.SharedContext(8, 8192, b);
    list.SharedContext(8, 32768, 64);
    list.SharedContext(32, 8192, 16);
    list.SharedContext(32, 8192, 64, fp8 ? 0 : 55);
    list.SharedContext(32, 8192, 256);
    list.SharedContext(32, 8192, 1024);
    list.Trees();
    list.Speculate();
    list.NoShare(4096, 32);
    list.NoShare(1024, 256);
    for (int len : {64, 128, 256, 1024}) list.Crossover(len, 2);
    for (int len : {64, 128, 256, 1024}) list.Crossover(len, 16);
    list.Prefills();
  }
  List precise(AttentionPrecision::kFp8Kv, &cases);
  precise.Decode(8, 8192, 1);
  precise.Decode(8, 4096, 32);
  precise.SharedContext(8, 8192, 64);
  precise.SharedContext(8, 8192, 256);
  List one_level(AttentionPrecision::kFp8OneLevel, &cases);
  one_level.SharedContext(8, 8192, 256);
  one_level.SharedContext(8, 32768, 64);
  one_level.Prefills();
  return cases;
}

}  // namespace bough
