#include "worker/model/checkpoint.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/check.h"
#include "common/status_macros.h"
#include "nlohmann/json.hpp"
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

float Widen(DType dtype, const uint8_t* bytes, int64_t i) {
  if (dtype == DType::kF32) {
    float value;
    std::memcpy(&value, bytes + 4 * i, sizeof(value));
    return value;
  }
  uint16_t half;
  std::memcpy(&half, bytes + 2 * i, sizeof(half));
  return dtype == DType::kBF16 ? BF16ToFloat(half) : F16ToFloat(half);
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

absl::StatusOr<DType> Checkpoint::Find(const TensorSlice& slice) const {
  const TensorView* view = FindTensor(slice.tensor);
  if (view == nullptr) {
    return absl::NotFoundError(
        absl::StrCat(model_dir_, ": tensor '", slice.tensor, "' is missing"));
  }
  if (view->shape != slice.shape) {
    return Bad(model_dir_, ": tensor '", slice.tensor, "' has shape ", ShapeText(view->shape),
               ", config.json says ", ShapeText(slice.shape));
  }
  if (view->dtype == DType::kI32) {
    return Bad(model_dir_, ": tensor '", slice.tensor, "' has dtype I32, a weight must be ",
               "F32, F16 or BF16");
  }
  return view->dtype;
}

void Checkpoint::Copy(const TensorSlice& slice, DType dtype, void* out) const {
  const TensorView& view = *FindTensor(slice.tensor);
  const int64_t num_cols = slice.shape.size() > 1 ? slice.shape[1] : 1;
  const int64_t width = slice.cols.size();
  for (int64_t row = 0; row < slice.rows.size(); ++row) {
    const int64_t first = (slice.rows.begin + row) * num_cols + slice.cols.begin;
    const uint8_t* in = view.bytes.data() + first * SizeOf(view.dtype);
    if (dtype == view.dtype) {
      const int64_t row_bytes = width * SizeOf(dtype);
      std::memcpy(static_cast<uint8_t*>(out) + row * row_bytes, in, row_bytes);
    } else {
      CHECK(dtype == DType::kF32) << "cannot narrow " << Name(view.dtype);
      float* out_row = static_cast<float*>(out) + row * width;
      for (int64_t col = 0; col < width; ++col) out_row[col] = Widen(view.dtype, in, col);
    }
  }
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
