// Model folders for tests, written to disk byte by byte so that they can be damaged.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "nlohmann/json.hpp"

namespace bough::testing {

// A folder of its own for the running test; removed with the object.
class TempFolder {
 public:
  TempFolder();
  ~TempFolder();
  std::string path() const { return path_.string(); }
  std::string File(const std::string& name) const { return (path_ / name).string(); }
  void Write(const std::string& name, const std::string& bytes) const;

 private:
  std::filesystem::path path_;
};

struct TestTensor {
  std::string dtype;  // as in a header: "F32"
  std::vector<int64_t> shape;
  std::string bytes;
};

TestTensor F32Tensor(std::vector<int64_t> shape, const std::vector<float>& values);

// Length, header, data.
std::string SafetensorsBytes(const std::string& header, const std::string& data);
// The header of tensors whose data lie in map order.
nlohmann::json SafetensorsHeader(const std::map<std::string, TestTensor>& tensors);
std::string SafetensorsBytes(const std::map<std::string, TestTensor>& tensors);

// A whole file.
std::string ReadFile(const std::string& path);

}  // namespace bough::testing
