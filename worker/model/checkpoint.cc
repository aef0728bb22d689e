#include "worker/model/checkpoint.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/status_macros.h"
#include "nlohmann/json.hpp"
#include "worker/model/read_ahead.h"
#include "xxhash.h"

namespace bough {
namespace {

using Json = nlohmann::json;

constexpr char kSingleFile[] = "model.safetensors";
constexpr char kIndexFile[] = "model.safetensors.index.json";

template <typename... Args>
absl::Status Bad(const Args&... args) {
  return absl::InvalidArgumentError(absl::StrCat(args...));
}

// Tensor name -> file name, from the index.
absl::StatusOr<absl::flat_hash_map<std::string, std::string>> ReadIndex(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  const Json index = Json::parse(text.str(), nullptr, /*allow_exceptions=*/false);
  if (index.is_discarded()) return Bad(path, ": is not valid JSON");
  if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object()) {
    return Bad(path, ": weight_map is missing or not an object");
  }
  absl::flat_hash_map<std::string, std::string> map;
  for (const auto& [tensor, shard] : index["weight_map"].items()) {
    // A plain name: the index must not lead out of its folder.
    if (!shard.is_string() || shard.get<std::string>().find('/') != std::string::npos) {
      return Bad(path, ": weight_map['", tensor, "'] must be a file name, is ",
                 shard.dump(-1, ' ', true, Json::error_handler_t::replace));
    }
    map[tensor] = shard.get<std::string>();
  }
  return map;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::Open(const std::string& model_dir) {
  auto checkpoint = std::make_unique<Checkpoint>();
  checkpoint->model_dir_ = model_dir;
  const std::string index_path = absl::StrCat(model_dir, "/", kIndexFile);
  std::error_code ignored;
  if (std::filesystem::exists(index_path, ignored)) {
    RETURN_IF_ERROR(checkpoint->OpenShards(index_path));
    return checkpoint;
  }
  if (!std::filesystem::exists(absl::StrCat(model_dir, "/", kSingleFile), ignored)) {
    return absl::NotFoundError(
        absl::StrCat(model_dir, ": has neither ", kSingleFile, " nor ", kIndexFile));
  }
  ASSIGN_OR_RETURN(auto tensors, checkpoint->Map(kSingleFile));
  for (TensorView& view : tensors) checkpoint->tensors_[view.name] = std::move(view);
  return checkpoint;
}

absl::Status Checkpoint::OpenShards(const std::string& index_path) {
  ASSIGN_OR_RETURN(const auto shard_of, ReadIndex(index_path));
  std::vector<std::string> shards;
  for (const auto& [tensor, shard] : shard_of) shards.push_back(shard);
  std::sort(shards.begin(), shards.end());
  shards.erase(std::unique(shards.begin(), shards.end()), shards.end());

  for (const std::string& shard : shards) {
    ASSIGN_OR_RETURN(auto tensors, Map(shard));
    for (TensorView& view : tensors) {
      const auto at = shard_of.find(view.name);
      if (at != shard_of.end() && at->second == shard) tensors_[view.name] = std::move(view);
    }
  }
  // The first in name order, so that every rank reports the same one.
  const std::pair<const std::string, std::string>* lost = nullptr;
  for (const auto& entry : shard_of) {
    if (!tensors_.contains(entry.first) && (lost == nullptr || entry.first < lost->first)) {
      lost = &entry;
    }
  }
  if (lost == nullptr) return absl::OkStatus();
  return Bad(index_path, ": puts tensor '", lost->first, "' into ", lost->second,
             ", which has no such tensor");
}

absl::StatusOr<std::vector<TensorView>> Checkpoint::Map(const std::string& file) {
  const std::string path = absl::StrCat(model_dir_, "/", file);
  ASSIGN_OR_RETURN(auto mapped, MappedFile::Open(path));
  files_.push_back(std::move(mapped));
  return ParseSafetensors(files_.back()->bytes(), path);
}

const TensorView* Checkpoint::FindTensor(const std::string& name) const {
  const auto at = tensors_.find(name);
  return at == tensors_.end() ? nullptr : &at->second;
}

absl::StatusOr<StoredTensor> Checkpoint::Find(const std::string& tensor, const Shape& shape) const {
  const TensorView* view = FindTensor(tensor);
  if (view == nullptr) {
    return absl::NotFoundError(absl::StrCat(model_dir_, ": tensor '", tensor, "' is missing"));
  }
  if (view->shape != shape) {
    return Bad(model_dir_, ": tensor '", tensor, "' has shape ", ShapeText(view->shape),
               ", config.json says ", ShapeText(shape));
  }
  if (view->dtype == DType::kI32) {
    return Bad(model_dir_, ": tensor '", tensor, "' has dtype I32, a weight must be ",
               "F32, F16, BF16 or F8_E4M3");
  }
  StoredTensor stored;
  stored.dtype = view->dtype;
  stored.bytes = view->bytes.data();
  const std::string scale_name = tensor + "_scale";
  const TensorView* scale = FindTensor(scale_name);
  if (view->dtype != DType::kF8E4M3) {
    if (scale == nullptr) return stored;
    return Bad(model_dir_, ": tensor '", scale_name, "' scales '", tensor, "', which is ",
               Name(view->dtype), " and not F8_E4M3");
  }
  if (scale == nullptr) {
    return Bad(model_dir_, ": tensor '", tensor, "' is F8_E4M3, but its scales '", scale_name,
               "' are missing");
  }
  ASSIGN_OR_RETURN(stored.scale, ReadScale(*scale, shape[0]));
  return stored;
}

absl::StatusOr<std::vector<float>> Checkpoint::FindScale(const std::string& tensor,
                                                         int64_t count) const {
  const TensorView* view = FindTensor(tensor);
  if (view == nullptr) return std::vector<float>();
  return ReadScale(*view, count);
}

absl::StatusOr<std::vector<float>> Checkpoint::ReadScale(const TensorView& view,
                                                         int64_t count) const {
  const auto bad = [&](const auto&... text) {
    return Bad(model_dir_, ": tensor '", view.name, "' ", text...);
  };
  const Shape& shape = view.shape;
  const bool one = shape.empty() || shape == Shape{1};
  if (!one && shape != Shape{count} && shape != Shape{count, 1}) {
    return bad("has shape ", ShapeText(shape), ", scales must be [], [1], [", count, "] or [",
               count, ", 1]");
  }
  if (view.dtype == DType::kI32 || view.dtype == DType::kF8E4M3) {
    return bad("has dtype ", Name(view.dtype), ", scales must be F32, F16 or BF16");
  }
  std::vector<float> scale(one ? 1 : count);
  for (size_t i = 0; i < scale.size(); ++i) {
    scale[i] = Widen(view.dtype, view.bytes.data(), i);
    if (!std::isfinite(scale[i]) || scale[i] <= 0) {
      return bad("is ", scale[i], " at ", i, ", scales must be positive numbers");
    }
  }
  return scale;
}

std::string Checkpoint::fingerprint() const {
  std::vector<std::string> lines;
  for (const auto& [name, view] : tensors_) {
    lines.push_back(absl::StrCat(name, " ", Name(view.dtype), " ", ShapeText(view.shape), "\n"));
  }
  std::sort(lines.begin(), lines.end());
  std::string text;
  for (const std::string& line : lines) text += line;
  return absl::StrFormat("%016x", XXH3_64bits(text.data(), text.size()));
}

}  // namespace bough
