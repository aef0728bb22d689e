#include "worker/model/weight_plan.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace bough {
namespace {

constexpr int64_t kScaleAlignment = 256;  // bytes

// All weights of a shard as slices of the checkpoint's tensors.
class Names {
 public:
  Names(const ModelConfig& config, const Shard& shard, Weights* weights) : c_(config), s_(shard) {
    const Range vocab = {0, c_.vocab_size};
    Add(&weights->embedding, WeightKind::kOther,
        {Rows("model.embed_tokens.weight", c_.vocab_size, hidden_, vocab)});
    for (int i = 0; i < c_.num_hidden_layers; ++i) {
      AddLayer(absl::StrCat("model.layers.", i, "."), &weights->layers[i]);
    }
    AddNorm("model.norm.weight", &weights->norm);
    if (!c_.tie_word_embeddings) {
      Add(&weights->lm_head, WeightKind::kOther,
          {Rows("lm_head.weight", c_.vocab_size, hidden_, s_.vocab)});
    }
  }

  std::vector<PlannedWeight>& weights() { return planned_; }

 private:
  static TensorSlice Rows(std::string name, int64_t rows, int64_t cols, Range range) {
    return {std::move(name), {rows, cols}, range, {0, cols}, {}};
  }
  static TensorSlice Cols(std::string name, int64_t rows, int64_t cols, Range range) {
    return {std::move(name), {rows, cols}, {0, rows}, range, {}};
  }
  Range HeadRows(Range heads) const { return {heads.begin * c_.head_dim, heads.end * c_.head_dim}; }

  void Add(Weight* weight, WeightKind kind, std::vector<TensorSlice> slices) {
    planned_.push_back({weight, kind, std::move(slices)});
  }
  void AddNorm(std::string name, Weight* weight) {
    Add(weight, WeightKind::kNorm, {{std::move(name), {hidden_}, {0, hidden_}, {0, 1}, {}}});
  }

  void AddLayer(const std::string& prefix, LayerWeights* layer) {
    AddNorm(prefix + "input_layernorm.weight", &layer->input_norm);
    AddAttention(prefix + "self_attn.", layer);
    AddNorm(prefix + "post_attention_layernorm.weight", &layer->post_attention_norm);
    if (c_.is_moe()) {
      AddMoe(prefix + "block_sparse_moe.", layer);
    } else {
      Add(&layer->gate_up, WeightKind::kLinear,
          {IntermediateRows(prefix + "mlp.gate_proj.weight"),
           IntermediateRows(prefix + "mlp.up_proj.weight")});
      Add(&layer->down, WeightKind::kLinear, {IntermediateCols(prefix + "mlp.down_proj.weight")});
    }
  }

  void AddAttention(const std::string& prefix, LayerWeights* layer) {
    const int64_t q_size = int64_t{c_.num_attention_heads} * c_.head_dim;
    const int64_t kv_size = int64_t{c_.num_key_value_heads} * c_.head_dim;
    Add(&layer->qkv, WeightKind::kLinear,
        {Rows(prefix + "q_proj.weight", q_size, hidden_, HeadRows(s_.heads)),
         Rows(prefix + "k_proj.weight", kv_size, hidden_, HeadRows(s_.kv_heads)),
         Rows(prefix + "v_proj.weight", kv_size, hidden_, HeadRows(s_.kv_heads))});
    Add(&layer->o, WeightKind::kLinear,
        {Cols(prefix + "o_proj.weight", hidden_, q_size, HeadRows(s_.heads))});
  }

  // Mixtral's names: w1 = gate, w3 = up, w2 = down.
  void AddMoe(const std::string& prefix, LayerWeights* layer) {
    const int64_t num_experts = c_.num_local_experts;
    Add(&layer->gate, WeightKind::kOther,
        {Rows(prefix + "gate.weight", num_experts, hidden_, {0, num_experts})});
    std::vector<TensorSlice> gate_up, down;
    for (int64_t e = s_.experts.begin; e < s_.experts.end; ++e) {
      const std::string expert = absl::StrCat(prefix, "experts.", e, ".");
      gate_up.push_back(IntermediateRows(expert + "w1.weight"));
      gate_up.push_back(IntermediateRows(expert + "w3.weight"));
      down.push_back(IntermediateCols(expert + "w2.weight"));
    }
    Add(&layer->gate_up, WeightKind::kLinear, std::move(gate_up));
    Add(&layer->down, WeightKind::kLinear, std::move(down));
  }

  TensorSlice IntermediateRows(std::string name) const {
    return Rows(std::move(name), c_.intermediate_size, hidden_, s_.intermediate);
  }
  TensorSlice IntermediateCols(std::string name) const {
    return Cols(std::move(name), hidden_, c_.intermediate_size, s_.intermediate);
  }

  const ModelConfig& c_;
  const Shard& s_;
  const int64_t hidden_ = c_.hidden_size;
  std::vector<PlannedWeight> planned_;
};

// As weights.h says.
absl::StatusOr<DType> ChooseDType(const PlannedWeight& planned, bool quantize, bool is_cuda) {
  const TensorSlice *fp8 = nullptr, *wider = nullptr;
  bool all_bf16 = true;
  for (const TensorSlice& slice : planned.slices) {
    (slice.stored.dtype == DType::kF8E4M3 ? fp8 : wider) = &slice;
    all_bf16 = all_bf16 && slice.stored.dtype == DType::kBF16;
  }
  if (fp8 != nullptr && planned.kind != WeightKind::kLinear) {
    return absl::InvalidArgumentError(absl::StrCat(
        "tensor '", fp8->tensor, "' is F8_E4M3, which is served for the linear layers ",
        "of attention, experts and MLP only"));
  }
  if (planned.kind == WeightKind::kNorm) return DType::kF32;
  if (planned.kind == WeightKind::kLinear && (quantize || wider == nullptr)) return DType::kF8E4M3;
  if (fp8 != nullptr) {
    return absl::InvalidArgumentError(absl::StrCat(
        "tensor '", fp8->tensor, "' is F8_E4M3 and '", wider->tensor, "' is ",
        Name(wider->stored.dtype),
        ": they are multiplied as one and must be alike; --quantization=fp8 quantises the second"));
  }
  return is_cuda || all_bf16 ? DType::kBF16 : DType::kF32;
}

// Exporters differ in where they put the scale of K or V.
absl::StatusOr<std::vector<float>> FindKvScale(const WeightSource& source, const std::string& layer,
                                               const std::string& letter, int64_t num_kv_heads) {
  const std::string attention = layer + "self_attn.";
  for (const std::string& name :
       {attention + letter + "_scale", attention + letter + "_proj." + letter + "_scale",
        attention + letter + "_proj.output_scale"}) {
    ASSIGN_OR_RETURN(std::vector<float> scale, source.FindScale(name, num_kv_heads));
    if (!scale.empty()) return scale;
  }
  return std::vector<float>();
}

absl::Status PlanKvScales(const ModelConfig& config, const Shard& shard, const WeightSource& source,
                          Weights* weights, std::vector<PlannedKvScale>* planned) {
  for (int i = 0; i < config.num_hidden_layers; ++i) {
    const std::string prefix = absl::StrCat("model.layers.", i, ".");
    LayerWeights& layer = weights->layers[i];
    for (const auto& [letter, pointer] :
         {std::pair("k", &layer.k_scale), std::pair("v", &layer.v_scale)}) {
      ASSIGN_OR_RETURN(const std::vector<float> scale,
                       FindKvScale(source, prefix, letter, config.num_key_value_heads));
      if (scale.empty()) continue;
      PlannedKvScale kv = {pointer, {}};
      for (int64_t head = shard.kv_heads.begin; head < shard.kv_heads.end; ++head) {
        kv.values.push_back(scale.size() == 1 ? scale[0] : scale[head]);
      }
      planned->push_back(std::move(kv));
    }
  }
  return absl::OkStatus();
}

}  // namespace

int64_t PlannedWeight::num_rows() const {
  int64_t rows = 0;
  for (const TensorSlice& slice : slices) rows += slice.rows.size();
  return rows;
}

int64_t PlannedWeight::element_bytes() const {
  return num_rows() * num_cols() * static_cast<int64_t>(SizeOf(dtype));
}

int64_t PlannedWeight::scale_begin() const {
  return (element_bytes() + kScaleAlignment - 1) / kScaleAlignment * kScaleAlignment;
}

int64_t PlannedWeight::num_bytes() const {
  if (dtype != DType::kF8E4M3) return element_bytes();
  return scale_begin() + num_rows() * static_cast<int64_t>(sizeof(float));
}

int64_t WeightPlan::num_bytes() const {
  int64_t bytes = 0;
  for (const PlannedWeight& planned : weights) bytes += planned.num_bytes();
  for (const PlannedKvScale& scale : kv_scales) bytes += scale.values.size() * sizeof(float);
  return bytes;
}

absl::StatusOr<WeightPlan> PlanWeights(const ModelConfig& config, const Shard& shard,
                                       const WeightSource& source, bool quantize, bool is_cuda,
                                       Weights* weights) {
  WeightPlan plan;
  plan.weights = std::move(Names(config, shard, weights).weights());
  for (PlannedWeight& planned : plan.weights) {
    for (TensorSlice& slice : planned.slices) {
      ASSIGN_OR_RETURN(slice.stored, source.Find(slice.tensor, slice.shape));
    }
    ASSIGN_OR_RETURN(planned.dtype, ChooseDType(planned, quantize, is_cuda));
    planned.weight->dtype = planned.dtype;
  }
  RETURN_IF_ERROR(PlanKvScales(config, shard, source, weights, &plan.kv_scales));
  return plan;
}

}  // namespace bough
