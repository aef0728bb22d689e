#include "worker/model/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/worker_model/model_folder.h"

namespace bough {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using testing::F32Tensor;
using ::testing::HasSubstr;
using testing::SafetensorsBytes;

constexpr char kIndex[] = "model.safetensors.index.json";

class CheckpointTest : public ::testing::Test {
 protected:
  std::string OpenError() const {
    const auto checkpoint = Checkpoint::Open(folder_.path());
    EXPECT_FALSE(checkpoint.ok());
    return std::string(checkpoint.status().message());
  }

  void WriteTwoShards() const {
    folder_.Write("one.safetensors", SafetensorsBytes({{"a", F32Tensor({2, 2}, {1, 2, 3, 4})}}));
    folder_.Write("two.safetensors", SafetensorsBytes({{"b", F32Tensor({1}, {5})}}));
    folder_.Write(kIndex, R"({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}})");
  }

  testing::TempFolder folder_;
};

TEST_F(CheckpointTest, ReadsShardsThroughTheIndex) {
  WriteTwoShards();
  const auto checkpoint = Checkpoint::Open(folder_.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_NE((*checkpoint)->FindTensor("a"), nullptr);
  EXPECT_NE((*checkpoint)->FindTensor("b"), nullptr);
  EXPECT_EQ((*checkpoint)->FindTensor("c"), nullptr);
}

TEST_F(CheckpointTest, CopiesARectangle) {
  WriteTwoShards();
  const auto checkpoint = Checkpoint::Open(folder_.path());
  ASSERT_TRUE(checkpoint.ok());
  float column[2] = {};
  (*checkpoint)->Copy({"a", {2, 2}, {0, 2}, {1, 2}}, DType::kF32, column);
  EXPECT_THAT(column, ElementsAre(2, 4));
}

TEST_F(CheckpointTest, WidensHalfPrecisionExactly) {
  folder_.Write("model.safetensors",
                SafetensorsBytes({{"bf", {"BF16", {2}, std::string("\xc0\x3f\x00\xc0", 4)}},
                                  {"f", {"F16", {2}, std::string("\x00\x3e\x00\xc0", 4)}}}));
  const auto checkpoint = Checkpoint::Open(folder_.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  for (const char* name : {"bf", "f"}) {
    float values[2] = {};
    (*checkpoint)->Copy({name, {2}, {0, 2}, {0, 1}}, DType::kF32, values);
    EXPECT_THAT(values, ElementsAre(1.5f, -2.0f)) << name;
  }
}

TEST_F(CheckpointTest, NamesAMissingTensor) {
  WriteTwoShards();
  const auto checkpoint = Checkpoint::Open(folder_.path());
  const auto found = (*checkpoint)->Find({"c", {1}, {0, 1}, {0, 1}});
  EXPECT_THAT(std::string(found.status().message()),
              AllOf(HasSubstr(folder_.path()), HasSubstr("tensor 'c' is missing")));
}

TEST_F(CheckpointTest, NamesAWrongShape) {
  WriteTwoShards();
  const auto checkpoint = Checkpoint::Open(folder_.path());
  const auto found = (*checkpoint)->Find({"a", {2, 3}, {0, 2}, {0, 3}});
  EXPECT_THAT(std::string(found.status().message()),
              HasSubstr("tensor 'a' has shape [2, 2], config.json says [2, 3]"));
}

TEST_F(CheckpointTest, NamesAFolderWithoutWeights) {
  EXPECT_THAT(OpenError(), HasSubstr("has neither model.safetensors nor model.safetensors.index"));
}

TEST_F(CheckpointTest, NamesAMissingShard) {
  WriteTwoShards();
  std::filesystem::remove(folder_.File("two.safetensors"));
  EXPECT_THAT(OpenError(), HasSubstr("two.safetensors: No such file"));
}

TEST_F(CheckpointTest, NamesATensorThatItsShardLacks) {
  WriteTwoShards();
  folder_.Write(kIndex, R"({"weight_map": {"a": "two.safetensors", "b": "two.safetensors"}})");
  EXPECT_THAT(OpenError(),
              HasSubstr("puts tensor 'a' into two.safetensors, which has no such tensor"));
}

TEST_F(CheckpointTest, RefusesABrokenIndex) {
  WriteTwoShards();
  folder_.Write(kIndex, R"({"weight_map": )");
  EXPECT_THAT(OpenError(), HasSubstr("index.json: is not valid JSON"));
  folder_.Write(kIndex, R"({"weight_map": 3})");
  EXPECT_THAT(OpenError(), HasSubstr("weight_map is missing or not an object"));
  folder_.Write(kIndex, R"({"weight_map": {"a": "../one.safetensors"}})");
  EXPECT_THAT(OpenError(), HasSubstr("weight_map['a'] must be a file name"));
}

TEST_F(CheckpointTest, FingerprintSeesShapesAndNotTheSharding) {
  WriteTwoShards();
  const std::string sharded = (*Checkpoint::Open(folder_.path()))->fingerprint();
  const testing::TempFolder single, other;
  single.Write("model.safetensors", SafetensorsBytes({{"a", F32Tensor({2, 2}, {1, 2, 3, 4})},
                                                      {"b", F32Tensor({1}, {5})}}));
  other.Write("model.safetensors", SafetensorsBytes({{"a", F32Tensor({4, 1}, {1, 2, 3, 4})},
                                                     {"b", F32Tensor({1}, {5})}}));
  EXPECT_EQ((*Checkpoint::Open(single.path()))->fingerprint(), sharded);
  EXPECT_NE((*Checkpoint::Open(other.path()))->fingerprint(), sharded);
}

}  // namespace
}  // namespace bough
