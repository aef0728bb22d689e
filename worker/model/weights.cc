#include "worker/model/weights.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace bough {
namespace {

constexpr int64_t kProgressBytes = int64_t{64} << 20;

// A weight and the slices that it is made of, one below the other.
struct Placement {
  Weight* weight;
  std::vector<TensorSlice> slices;
  bool is_norm = false;

  int64_t num_bytes() const {
    int64_t elements = 0;
    for (const TensorSlice& slice : slices) elements += slice.num_elements();
    return elements * static_cast<int64_t>(SizeOf(weight->dtype));
  }
};

// All weights of a shard as slices of the checkpoint's tensors.
class Plan {
 public:
  Plan(const ModelConfig& config, const Shard& shard, Weights* weights) : c_(config), s_(shard) {
    const Range vocab = {0, c_.vocab_size};
    placements_.push_back(
        {&weights->embedding, {Rows("model.embed_tokens.weight", c_.vocab_size, hidden_, vocab)}});
    for (int i = 0; i < c_.num_hidden_layers; ++i) {
      AddLayer(absl::StrCat("model.layers.", i, "."), &weights->layers[i]);
    }
    AddNorm("model.norm.weight", &weights->norm);
    if (!c_.tie_word_embeddings) {
      placements_.push_back(
          {&weights->lm_head, {Rows("lm_head.weight", c_.vocab_size, hidden_, s_.vocab)}});
    }
  }

  std::vector<Placement>& placements() { return placements_; }

 private:
  static TensorSlice Rows(std::string name, int64_t rows, int64_t cols, Range range) {
    return {std::move(name), {rows, cols}, range, {0, cols}};
  }
  static TensorSlice Cols(std::string name, int64_t rows, int64_t cols, Range range) {
    return {std::move(name), {rows, cols}, {0, rows}, range};
  }
  Range HeadRows(Range heads) const { return {heads.begin * c_.head_dim, heads.end * c_.head_dim}; }

  void AddNorm(std::string name, Weight* weight) {
    placements_.push_back(
        {weight, {{std::move(name), {hidden_}, {0, hidden_}, {0, 1}}}, /*is_norm=*/true});
  }

  void AddLayer(const std::string& prefix, LayerWeights* layer) {
    AddNorm(prefix + "input_layernorm.weight", &layer->input_norm);
    AddAttention(prefix + "self_attn.", layer);
    AddNorm(prefix + "post_attention_layernorm.weight", &layer->post_attention_norm);
    if (c_.is_moe()) {
      AddMoe(prefix + "block_sparse_moe.", layer);
    } else {
      placements_.push_back({&layer->gate_up,
                             {IntermediateRows(prefix + "mlp.gate_proj.weight"),
                              IntermediateRows(prefix + "mlp.up_proj.weight")}});
      placements_.push_back({&layer->down, {IntermediateCols(prefix + "mlp.down_proj.weight")}});
    }
  }

  void AddAttention(const std::string& prefix, LayerWeights* layer) {
    const int64_t q_size = int64_t{c_.num_attention_heads} * c_.head_dim;
    const int64_t kv_size = int64_t{c_.num_key_value_heads} * c_.head_dim;
    placements_.push_back(
        {&layer->qkv,
         {Rows(prefix + "q_proj.weight", q_size, hidden_, HeadRows(s_.heads)),
          Rows(prefix + "k_proj.weight", kv_size, hidden_, HeadRows(s_.kv_heads)),
          Rows(prefix + "v_proj.weight", kv_size, hidden_, HeadRows(s_.kv_heads))}});
    placements_.push_back(
        {&layer->o, {Cols(prefix + "o_proj.weight", hidden_, q_size, HeadRows(s_.heads))}});
  }

  // Mixtral's names: w1 = gate, w3 = up, w2 = down.
  void AddMoe(const std::string& prefix, LayerWeights* layer) {
    const int64_t num_experts = c_.num_local_experts;
    placements_.push_back(
        {&layer->gate, {Rows(prefix + "gate.weight", num_experts, hidden_, {0, num_experts})}});
    Placement gate_up = {&layer->gate_up, {}}, down = {&layer->down, {}};
    for (int64_t e = s_.experts.begin; e < s_.experts.end; ++e) {
      const std::string expert = absl::StrCat(prefix, "experts.", e, ".");
      gate_up.slices.push_back(IntermediateRows(expert + "w1.weight"));
      gate_up.slices.push_back(IntermediateRows(expert + "w3.weight"));
      down.slices.push_back(IntermediateCols(expert + "w2.weight"));
    }
    placements_.push_back(std::move(gate_up));
    placements_.push_back(std::move(down));
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
  std::vector<Placement> placements_;
};

// Fails on the first tensor that is not there or not as the config says.
absl::Status ChooseDType(const WeightSource& source, Placement* placement) {
  bool all_bf16 = !placement->is_norm;
  for (const TensorSlice& slice : placement->slices) {
    ASSIGN_OR_RETURN(const DType stored, source.Find(slice));
    all_bf16 = all_bf16 && stored == DType::kBF16;
  }
  placement->weight->dtype = all_bf16 ? DType::kBF16 : DType::kF32;
  return absl::OkStatus();
}

// In bands of rows small enough for `copied` to be called every 64 MiB.
void CopySlices(const WeightSource& source, const Placement& placement, uint8_t* out,
                const std::function<void(int64_t)>& copied) {
  for (const TensorSlice& slice : placement.slices) {
    const int64_t row_bytes = slice.cols.size() * SizeOf(placement.weight->dtype);
    const int64_t band_rows = std::max<int64_t>(1, kProgressBytes / 2 / row_bytes);
    TensorSlice band = slice;
    for (int64_t row = slice.rows.begin; row < slice.rows.end; row = band.rows.end) {
      band.rows = {row, std::min(row + band_rows, slice.rows.end)};
      source.Copy(band, placement.weight->dtype, out);
      const int64_t band_bytes = band.rows.size() * row_bytes;
      out += band_bytes;
      copied(band_bytes);
    }
  }
}

// lm_head's rows lie in the embedding.
Weight TiedHead(const Weight& embedding, const ModelConfig& config, const Shard& shard) {
  const int64_t offset = shard.vocab.begin * config.hidden_size * SizeOf(embedding.dtype);
  return {static_cast<const uint8_t*>(embedding.data) + offset, embedding.dtype};
}

}  // namespace

absl::StatusOr<Weights> LoadWeights(const ModelConfig& config, const Shard& shard,
                                    const WeightSource& source,
                                    const std::function<void(int64_t, int64_t)>& progress) {
  Weights weights;
  weights.layers.resize(config.num_hidden_layers);
  Plan plan(config, shard, &weights);
  int64_t total_bytes = 0;
  for (Placement& placement : plan.placements()) {
    RETURN_IF_ERROR(ChooseDType(source, &placement));
    total_bytes += placement.num_bytes();
  }

  int64_t done_bytes = 0, reported_bytes = 0;
  const auto copied = [&](int64_t num_bytes) {
    done_bytes += num_bytes;
    if (done_bytes - reported_bytes >= kProgressBytes || done_bytes == total_bytes) {
      progress(done_bytes, total_bytes);
      reported_bytes = done_bytes;
    }
  };
  progress(0, total_bytes);
  for (const Placement& placement : plan.placements()) {
    ASSIGN_OR_RETURN(DeviceBuffer buffer, DeviceBuffer::Allocate(placement.num_bytes(), "weights"));
    CopySlices(source, placement, buffer.as<uint8_t>(), copied);
    placement.weight->data = buffer.data();
    weights.storage.push_back(std::move(buffer));
  }
  if (config.tie_word_embeddings) weights.lm_head = TiedHead(weights.embedding, config, shard);
  return weights;
}

}  // namespace bough
