#include "worker/model/op_times.h"

#include <algorithm>
#include <type_traits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"

namespace bough {
namespace {

OpTimes* current = nullptr;

template <typename Params>
OpTime ProductOf(const char* name, int num_rows, const Params& p) {
  return {.name = absl::StrCat(name, "/n=", p.n, "/k=", p.k),
          .m = num_rows,
          .n = p.n,
          .k = p.k,
          .w_dtype = p.w_dtype};
}

OpTime Describe(const GemmParams& p) { return ProductOf("Gemm", p.m, p); }
OpTime Describe(const GroupedGemmParams& p) {
  OpTime op = ProductOf("GroupedGemm", p.num_rows, p);
  op.num_experts = p.num_experts;
  return op;
}
OpTime Describe(const EmbeddingParams& p) {
  return {.name = p.sampled != nullptr ? "Embedding" : "GatherRows"};
}
OpTime Describe(const PagedAttentionParams& p) {
  if (p.num_nodes > 0) return {.name = "PagedAttention/shared"};
  return {.name = p.max_seqlen_q == 1 ? "PagedAttention/decode" : "PagedAttention/prefill"};
}
OpTime Describe(const AddRmsNormParams&) { return {.name = "AddRmsNorm"}; }
OpTime Describe(const AddRmsNormGateParams&) { return {.name = "AddRmsNormGate"}; }
OpTime Describe(const RopeAppendParams&) { return {.name = "RopeAppend"}; }
OpTime Describe(const SiluMulParams&) { return {.name = "SiluMul"}; }
OpTime Describe(const QuantizeParams&) { return {.name = "Quantize"}; }
OpTime Describe(const CopyBlocksParams&) { return {.name = "CopyBlocks"}; }
OpTime Describe(const MoeRouteParams&) { return {.name = "MoeRoute"}; }
OpTime Describe(const MoeCombineParams&) { return {.name = "MoeCombine"}; }
OpTime Describe(const SampleParams&) { return {.name = "Sample"}; }

// The one op whose parameters are another's.
template <typename Params, Ops::Op<Params> Ops::*member>
constexpr bool IsPlan() {
  if constexpr (std::is_same_v<Params, PagedAttentionParams>) {
    return member == &Ops::PlanAttention;
  }
  return false;
}

}  // namespace

OpTimes::OpTimes(std::set<int> num_tokens) : num_tokens_(std::move(num_tokens)) {
  CHECK(current == nullptr) << "there is another OpTimes";
  current = this;
}

OpTimes::~OpTimes() { current = nullptr; }

template <typename Params, Ops::Op<Params> Ops::*member>
void OpTimes::Run(const Params& params, Stream stream) {
  // A step begins with the embedding of its tokens, among which there may be sampled ones.
  if constexpr (std::is_same_v<Params, EmbeddingParams>) {
    if (params.sampled != nullptr) current->BeginStep(params.num_tokens);
  }
  (current->ops_->*member)(params, stream);
  if (current->step_ != nullptr) {
    if constexpr (IsPlan<Params, member>()) {
      current->EndOp({.name = "PlanAttention"});
    } else {
      current->EndOp(Describe(params));
    }
  }
  // And ends with its sampling.
  if constexpr (std::is_same_v<Params, SampleParams>) current->step_ = nullptr;
}

void OpTimes::Attach(Device* device) {
  device_ = device;
  ops_ = &device->ops();
  launched_.clear();
  recorded_.clear();
  timed_ops_ = *ops_;
  timed_ops_.Embedding = Run<EmbeddingParams, &Ops::Embedding>;
  timed_ops_.AddRmsNorm = Run<AddRmsNormParams, &Ops::AddRmsNorm>;
  timed_ops_.RopeAppend = Run<RopeAppendParams, &Ops::RopeAppend>;
  timed_ops_.SiluMul = Run<SiluMulParams, &Ops::SiluMul>;
  timed_ops_.Quantize = Run<QuantizeParams, &Ops::Quantize>;
  timed_ops_.CopyBlocks = Run<CopyBlocksParams, &Ops::CopyBlocks>;
  timed_ops_.Gemm = Run<GemmParams, &Ops::Gemm>;
  timed_ops_.GroupedGemm = Run<GroupedGemmParams, &Ops::GroupedGemm>;
  timed_ops_.AddRmsNormGate = Run<AddRmsNormGateParams, &Ops::AddRmsNormGate>;
  timed_ops_.MoeRoute = Run<MoeRouteParams, &Ops::MoeRoute>;
  timed_ops_.MoeCombine = Run<MoeCombineParams, &Ops::MoeCombine>;
  timed_ops_.PlanAttention = Run<PagedAttentionParams, &Ops::PlanAttention>;
  timed_ops_.PagedAttention = Run<PagedAttentionParams, &Ops::PagedAttention>;
  timed_ops_.Sample = Run<SampleParams, &Ops::Sample>;
  device->set_ops(&timed_ops_);
}

void OpTimes::BeginStep(int num_tokens) {
  step_ = nullptr;
  if (!num_tokens_.contains(num_tokens)) return;
  step_ = &(device_->IsCapturing() ? recorded_ : launched_)[num_tokens];
  step_->num_calls = 0;
  if (step_->begin == nullptr) step_->begin = device_->NewTimeStamp();
  step_->begin->Record();
}

void OpTimes::EndOp(const OpTime& op) {
  if (step_->num_calls == step_->calls.size()) {
    step_->calls.push_back({{}, device_->NewTimeStamp()});
  }
  Call& call = step_->calls[step_->num_calls++];
  call.op = op;
  call.end->Record();
}

std::vector<OpTime> OpTimes::LastStep(int num_tokens) const {
  const auto& steps = recorded_.contains(num_tokens) ? recorded_ : launched_;
  const auto found = steps.find(num_tokens);
  if (found == steps.end()) return {};
  std::vector<OpTime> times;
  const TimeStamp* before = found->second.begin.get();
  for (size_t i = 0; i < found->second.num_calls; ++i) {
    const Call& call = found->second.calls[i];
    auto time = std::find_if(times.begin(), times.end(),
                             [&](const OpTime& t) { return t.name == call.op.name; });
    if (time == times.end()) time = times.insert(times.end(), call.op);
    time->ms += call.end->MillisecondsSince(*before);
    ++time->num_calls;
    before = call.end.get();
  }
  return times;
}

}  // namespace bough
