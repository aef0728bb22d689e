#include "worker/model/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "tests/worker_model/model_folder.h"

namespace bough {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using testing::F32Tensor;
using ::testing::HasSubstr;
using testing::SafetensorsBytes;
using testing::TestTensor;

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

  // w.weight = [2, 2] f8_e4m3 with this scale.
  void WriteFp8(const TestTensor& scale) const {
    folder_.Write("model.safetensors", SafetensorsBytes({{"w.weight", {"F8_E4M3", {2, 2}, "1234"}},
                                                         {"w.weight_scale", scale}}));
  }

  std::string FindError(const std::string& tensor, const Shape& shape) const {
    const auto checkpoint = Checkpoint::Open(folder_.path());
    EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
    return std::string((*checkpoint)->Find(tensor, shape).status().message());
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

TEST_F(CheckpointTest, FindsATensorsBytes) {
  WriteTwoShards();
  const auto checkpoint = Checkpoint::Open(folder_.path());
  const auto found = (*checkpoint)->Find("a", {2, 2});
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_EQ(found->dtype, DType::kF32);
  float values[4] = {};
  std::memcpy(values, found->bytes, sizeof(values));
  EXPECT_THAT(values, ElementsAre(1, 2, 3, 4));
  EXPECT_TRUE(found->scale.empty());
}

TEST_F(CheckpointTest, NamesAMissingTensor) {
  WriteTwoShards();
  const auto checkpoint = Checkpoint::Open(folder_.path());
  EXPECT_THAT(std::string((*checkpoint)->Find("c", {1}).status().message()),
              AllOf(HasSubstr(folder_.path()), HasSubstr("tensor 'c' is missing")));
}

TEST_F(CheckpointTest, NamesAWrongShape) {
  WriteTwoShards();
  const auto checkpoint = Checkpoint::Open(folder_.path());
  EXPECT_THAT(std::string((*checkpoint)->Find("a", {2, 3}).status().message()),
              HasSubstr("tensor 'a' has shape [2, 2], config.json says [2, 3]"));
}

TEST_F(CheckpointTest, ReadsScalesOfEveryServedShapeAndDtype) {
  const std::string bf16("\x00\x3f\x80\x3e", 4);  // 0.5, 0.25
  const std::pair<TestTensor, std::vector<float>> cases[] = {
      {F32Tensor({}, {0.5f}), {0.5f}},
      {F32Tensor({1}, {0.5f}), {0.5f}},
      {F32Tensor({2}, {0.5f, 0.25f}), {0.5f, 0.25f}},
      {F32Tensor({2, 1}, {0.5f, 0.25f}), {0.5f, 0.25f}},
      {{"BF16", {2, 1}, bf16}, {0.5f, 0.25f}},
  };
  for (const auto& [scale, expected] : cases) {
    WriteFp8(scale);
    const auto checkpoint = Checkpoint::Open(folder_.path());
    const auto found = (*checkpoint)->Find("w.weight", {2, 2});
    ASSERT_TRUE(found.ok()) << found.status();
    EXPECT_EQ(found->dtype, DType::kF8E4M3);
    EXPECT_EQ(found->scale, expected);
  }
}

TEST_F(CheckpointTest, RefusesScalesThatAreNone) {
  const std::string not_positive = "'w.weight_scale' is 0 at 1, scales must be positive";
  const std::pair<TestTensor, std::string> cases[] = {
      {F32Tensor({2}, {1, 0}), not_positive},
      {F32Tensor({2}, {1, -1}), "is -1 at 1"},
      {F32Tensor({1}, {NAN}), "is nan at 0"},
      {F32Tensor({1}, {INFINITY}), "is inf at 0"},
      {F32Tensor({3}, {1, 1, 1}), "has shape [3], scales must be [], [1], [2] or [2, 1]"},
      {F32Tensor({1, 2}, {1, 1}), "has shape [1, 2], scales must be"},
      {{"I32", {1}, "1234"}, "has dtype i32, scales must be F32, F16 or BF16"},
  };
  for (const auto& [scale, error] : cases) {
    WriteFp8(scale);
    EXPECT_THAT(FindError("w.weight", {2, 2}), AllOf(HasSubstr(folder_.path()), HasSubstr(error)));
  }
}

TEST_F(CheckpointTest, NamesAMissingScaleAndOneTooMany) {
  folder_.Write("model.safetensors", SafetensorsBytes({{"w.weight", {"F8_E4M3", {2, 2}, "1234"}}}));
  EXPECT_THAT(FindError("w.weight", {2, 2}),
              HasSubstr("'w.weight' is F8_E4M3, but its scales 'w.weight_scale' are missing"));
  folder_.Write("model.safetensors", SafetensorsBytes({{"w.weight", F32Tensor({1}, {5})},
                                                       {"w.weight_scale", F32Tensor({1}, {5})}}));
  EXPECT_THAT(FindError("w.weight", {1}),
              HasSubstr("'w.weight_scale' scales 'w.weight', which is f32 and not F8_E4M3"));
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
