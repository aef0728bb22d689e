// A damaged model folder ends start-up with one line that says what and where.
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/integration/process.h"

namespace bough::integration {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr char kModel[] = "models/demo";

// A safetensors file: 8 bytes of header length, the header, the data.
struct SafetensorsFile {
  explicit SafetensorsFile(const fs::path& path) : path_(path) {
    std::ifstream in(path, std::ios::binary);
    uint64_t length = 0;
    in.read(reinterpret_cast<char*>(&length), sizeof(length));
    std::string text(length, ' ');
    in.read(text.data(), static_cast<std::streamsize>(length));
    header = nlohmann::json::parse(text);
    data.assign(std::istreambuf_iterator<char>(in), {});
  }
  void Write() const {
    const std::string text = header.dump();
    const uint64_t length = text.size();
    std::ofstream out(path_, std::ios::binary | std::ios::trunc);
    out.write(reinterpret_cast<const char*>(&length), sizeof(length));
    out << text << data;
  }
  // Some matrix of the file.
  std::string AnyMatrix() const {
    for (const auto& [name, tensor] : header.items()) {
      if (name != "__metadata__" && tensor["shape"].size() == 2) return name;
    }
    return "";
  }

  // One that does not begin the data.
  std::string AnyMatrixBehindAnother() const {
    for (const auto& [name, tensor] : header.items()) {
      if (name != "__metadata__" && tensor["shape"].size() == 2 && tensor["data_offsets"][0] > 0) {
        return name;
      }
    }
    return "";
  }

  nlohmann::json header;
  std::string data;

 private:
  const fs::path path_;
};

class DamagedModel : public ::testing::Test {
 protected:
  DamagedModel() : folder_(fs::path(::testing::TempDir()) / ("bough-" + std::to_string(getpid()))) {
    fs::remove_all(folder_);
    fs::create_directories(folder_);
    for (const auto& file : fs::directory_iterator(kModel)) {
      fs::copy(file.path(), folder_ / file.path().filename());
      if (file.path().extension() == ".safetensors") {
        shard_ = std::max(shard_, folder_ / file.path().filename());
      }
    }
  }
  ~DamagedModel() override { fs::remove_all(folder_); }

  // The one line that bough-worker says; its exit code must be 1.
  std::string Refusal() {
    const std::string log = folder_.string() + ".log";
    Process worker(
        {BOUGH_BIN_DIR "/bough-worker", "--model=" + folder_.string(), "--check", "--threads=1"},
        log);
    EXPECT_EQ(worker.Wait(absl::Seconds(30)), 1);
    const std::string said = worker.Log();
    fs::remove(log);
    EXPECT_EQ(std::count(said.begin(), said.end(), '\n'), 1) << said;
    EXPECT_EQ(said.rfind("bough-worker: ", 0), 0u) << said;
    return said;
  }

  const fs::path folder_;
  fs::path shard_;
};

TEST_F(DamagedModel, TruncatedSafetensors) {
  fs::resize_file(shard_, fs::file_size(shard_) - 1000);
  EXPECT_THAT(Refusal(), HasSubstr(shard_.filename().string()));
}

TEST_F(DamagedModel, OverlappingOffsets) {
  SafetensorsFile file(shard_);
  const std::string name = file.AnyMatrixBehindAnother();
  // Back into the tensor before it, so that the first thing wrong is an overlap and not a gap.
  for (auto& offset : file.header[name]["data_offsets"]) offset = offset.get<int64_t>() - 64;
  file.Write();
  EXPECT_THAT(Refusal(),
              AllOf(HasSubstr(shard_.filename().string()), HasSubstr(name), HasSubstr("overlap")));
}

TEST_F(DamagedModel, MissingTensor) {
  SafetensorsFile file(shard_);
  const std::string name = file.AnyMatrix();
  file.header["another.name"] = file.header[name];
  file.header.erase(name);
  file.Write();
  EXPECT_THAT(Refusal(), HasSubstr(name));
}

TEST_F(DamagedModel, WrongShape) {
  SafetensorsFile file(shard_);
  const std::string name = file.AnyMatrix();
  auto& shape = file.header[name]["shape"];
  std::swap(shape[0], shape[1]);
  if (shape[0] == shape[1]) shape = {shape[0].get<int>() / 2, shape[1].get<int>() * 2};
  file.Write();
  EXPECT_THAT(Refusal(), AllOf(HasSubstr(name), HasSubstr("shape")));
}

TEST_F(DamagedModel, BrokenJson) {
  std::ofstream(folder_ / "config.json") << "{\"hidden_size\": ";
  EXPECT_THAT(Refusal(), HasSubstr("config.json"));
}

TEST_F(DamagedModel, NoWeights) {
  for (const auto& file : fs::directory_iterator(kModel)) {
    if (file.path().extension() == ".safetensors") fs::remove(folder_ / file.path().filename());
  }
  EXPECT_THAT(Refusal(), HasSubstr("safetensors"));
}

// The worker knows no text: the tokenizer is the router's.
TEST_F(DamagedModel, NoTokenizerEndsTheRouter) {
  fs::remove(folder_ / "tokenizer.model");
  const std::string log = folder_.string() + ".log";
  Process router({BOUGH_BIN_DIR "/bough-router", "--model=" + folder_.string(),
                  "--groups=g0=127.0.0.1:1", "--metrics-listen="},
                 log);
  EXPECT_EQ(router.Wait(absl::Seconds(30)), 1);
  const std::string said = router.Log();
  fs::remove(log);
  EXPECT_EQ(std::count(said.begin(), said.end(), '\n'), 1) << said;
  EXPECT_THAT(said, AllOf(HasSubstr("bough-router: "), HasSubstr("tokenizer.model")));
}

}  // namespace
}  // namespace bough::integration
