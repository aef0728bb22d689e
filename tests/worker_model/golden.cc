#include "tests/worker_model/golden.h"

#include <cstring>
#include <map>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "nlohmann/json.hpp"
#include "tests/worker_model/model_folder.h"
#include "worker/model/safetensors.h"

namespace bough::testing {
namespace {

// A mapped file's tensors as vectors.
class TensorFile {
 public:
  explicit TensorFile(const std::string& path) : file_(*MappedFile::Open(path)) {
    auto tensors = ParseSafetensors(file_->bytes(), path);
    CHECK_OK(tensors.status());
    for (const TensorView& view : *tensors) tensors_[view.name] = view;
  }
  bool Has(const std::string& name) const { return tensors_.count(name) > 0; }
  template <typename T>
  std::vector<T> Read(const std::string& name) const {
    const TensorView& view = tensors_.at(name);
    std::vector<T> values(view.bytes.size() / sizeof(T));
    std::memcpy(values.data(), view.bytes.data(), view.bytes.size());
    return values;
  }

 private:
  std::unique_ptr<MappedFile> file_;
  std::map<std::string, TensorView> tensors_;
};

}  // namespace

std::vector<TinyCase> ReadTinyCases(const std::string& model_dir) {
  const TensorFile file(model_dir + "/golden.safetensors");
  std::vector<TinyCase> cases;
  for (int i = 0; file.Has(absl::StrCat("ids_", i)); ++i) {
    cases.push_back({file.Read<int32_t>(absl::StrCat("ids_", i)),
                     file.Read<float>(absl::StrCat("logits_", i)),
                     file.Read<int32_t>(absl::StrCat("greedy_", i))});
  }
  CHECK(!cases.empty()) << model_dir;
  return cases;
}

DemoGolden ReadDemoGolden() {
  const auto json = nlohmann::json::parse(ReadFile("tests/golden/demo.json"));
  return {json.at("logits").at("prompts").get<std::vector<TokenIds>>(),
          TensorFile("tests/golden/demo.safetensors").Read<float>("logits"),
          json.at("greedy").at("prompts").get<std::vector<TokenIds>>(),
          json.at("greedy").at("tokens").get<std::vector<TokenIds>>()};
}

}  // namespace bough::testing
