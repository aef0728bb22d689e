// A Hugging Face folder's tensors: model.safetensors, or the shards that
// model.safetensors.index.json names.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "worker/model/safetensors.h"
#include "worker/model/weight_source.h"

namespace bough {

class Checkpoint : public WeightSource {
 public:
  // Maps and checks every file; reads no tensor yet.
  static absl::StatusOr<std::unique_ptr<Checkpoint>> Open(const std::string& model_dir);

  // nullptr when there is no such tensor.
  const TensorView* FindTensor(const std::string& name) const;

  // The scales of an f8_e4m3 tensor X are the tensor X_scale: f32, bf16 or f16, of shape [] or [1]
  // (one for the tensor), [rows] or [rows, 1] (one an output channel).
  absl::StatusOr<StoredTensor> Find(const std::string& tensor, const Shape& shape) const override;
  absl::StatusOr<std::vector<float>> FindScale(const std::string& tensor,
                                               int64_t count) const override;
  // Of the headers: names, dtypes, shapes.
  std::string fingerprint() const override;

 private:
  absl::StatusOr<std::vector<TensorView>> Map(const std::string& file);
  absl::StatusOr<std::vector<float>> ReadScale(const TensorView& view, int64_t count) const;
  absl::Status OpenShards(const std::string& index_path);

  std::string model_dir_;
  std::vector<std::unique_ptr<MappedFile>> files_;
  absl::flat_hash_map<std::string, TensorView> tensors_;
};

}  // namespace bough
