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

  absl::StatusOr<DType> Find(const TensorSlice& slice) const override;
  void Copy(const TensorSlice& slice, DType dtype, void* out) const override;
  // Of the headers: names, dtypes, shapes.
  std::string fingerprint() const override;

 private:
  absl::StatusOr<std::vector<TensorView>> Map(const std::string& file);
  absl::Status OpenShards(const std::string& index_path);

  std::string model_dir_;
  std::vector<std::unique_ptr<MappedFile>> files_;
  absl::flat_hash_map<std::string, TensorView> tensors_;
};

}  // namespace bough
