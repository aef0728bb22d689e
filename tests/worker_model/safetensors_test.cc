#include "worker/model/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "tests/worker_model/model_folder.h"

namespace bough {
namespace {

using ::testing::AllOf;
using testing::F32Tensor;
using ::testing::HasSubstr;
using ::testing::Not;
using testing::SafetensorsBytes;
using testing::SafetensorsHeader;
using testing::TestTensor;

// Two tensors: a = [2, 3] f32 in bytes [0, 24), b = [2] bf16 in [24, 28).
std::map<std::string, TestTensor> TwoTensors() {
  return {{"a", F32Tensor({2, 3}, {1, 2, 3, 4, 5, 6})},
          {"b", {"BF16", {2}, std::string("\x80\x3f\x00\x40", 4)}}};
}

std::string TwoTensorData() {
  std::string data;
  for (const auto& [name, tensor] : TwoTensors()) data += tensor.bytes;
  return data;
}

absl::StatusOr<std::vector<TensorView>> Parse(const std::string& bytes) {
  return ParseSafetensors({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()},
                          "m.safetensors");
}

// The error of a file with this header over the data of TwoTensors(); always one line naming the
// file.
std::string ErrorOf(const std::string& bytes) {
  const auto tensors = Parse(bytes);
  EXPECT_FALSE(tensors.ok());
  const std::string message(tensors.status().message());
  EXPECT_THAT(message, AllOf(HasSubstr("m.safetensors: "), Not(HasSubstr("\n"))));
  return message;
}

std::string ErrorOfHeader(const nlohmann::json& header) {
  return ErrorOf(SafetensorsBytes(header.dump(), TwoTensorData()));
}

TEST(Safetensors, ReadsNamesShapesDtypesAndBytes) {
  const std::string bytes = SafetensorsBytes(TwoTensors());
  const auto tensors = Parse(bytes);
  ASSERT_TRUE(tensors.ok()) << tensors.status();
  ASSERT_EQ(tensors->size(), 2u);
  EXPECT_EQ((*tensors)[0].name, "a");
  EXPECT_EQ((*tensors)[0].shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ((*tensors)[0].dtype, DType::kF32);
  float last;
  std::memcpy(&last, (*tensors)[0].bytes.data() + 20, 4);
  EXPECT_EQ(last, 6);
  EXPECT_EQ((*tensors)[1].dtype, DType::kBF16);
  EXPECT_EQ((*tensors)[1].bytes.size(), 4u);
}

TEST(Safetensors, RefusesAFileTooShortForALength) {
  EXPECT_THAT(ErrorOf("1234567"), HasSubstr("has 7 bytes"));
}

TEST(Safetensors, RefusesAHugeHeaderLength) {
  std::string bytes = SafetensorsBytes(TwoTensors());
  std::memset(bytes.data(), 0xff, 8);
  EXPECT_THAT(ErrorOf(bytes), HasSubstr("header length 18446744073709551615 exceeds"));
}

TEST(Safetensors, RefusesAHeaderLengthPastTheEnd) {
  std::string bytes = SafetensorsBytes("{}", "");
  bytes[0] = 3;
  EXPECT_THAT(ErrorOf(bytes), HasSubstr("header length 3 exceeds 2"));
}

TEST(Safetensors, RefusesAHeaderThatIsNotJson) {
  EXPECT_THAT(ErrorOf(SafetensorsBytes("{\"a\": [}", "")),
              HasSubstr("header is not a JSON object"));
  EXPECT_THAT(ErrorOf(SafetensorsBytes("[1, 2]", "")), HasSubstr("header is not a JSON object"));
}

TEST(Safetensors, RefusesATruncatedFile) {
  std::string bytes = SafetensorsBytes(TwoTensors());
  bytes.pop_back();
  EXPECT_THAT(ErrorOf(bytes), AllOf(HasSubstr("tensor 'b': data_offsets [24, 28) end past"),
                                    HasSubstr("27 bytes"), HasSubstr("truncated")));
}

TEST(Safetensors, RefusesBytesBehindTheLastTensor) {
  EXPECT_THAT(ErrorOf(SafetensorsBytes(TwoTensors()) + "xyz"),
              HasSubstr("bytes [28, 31) at the end belong to no tensor"));
}

TEST(Safetensors, RefusesOverlappingTensors) {
  auto header = SafetensorsHeader(TwoTensors());
  header["b"]["data_offsets"] = {20, 24};
  EXPECT_THAT(ErrorOfHeader(header),
              HasSubstr("tensor 'b' begins at byte 20 and overlaps tensor 'a', which ends at 24"));
}

TEST(Safetensors, RefusesAGapBetweenTensors) {
  auto header = SafetensorsHeader(TwoTensors());
  header["b"]["data_offsets"] = {26, 28};
  header["b"]["shape"] = {1};
  EXPECT_THAT(ErrorOfHeader(header), HasSubstr("bytes [24, 26) before tensor 'b'"));
}

TEST(Safetensors, RefusesOffsetsThatRunBackwards) {
  auto header = SafetensorsHeader(TwoTensors());
  header["b"]["data_offsets"] = {28, 24};
  EXPECT_THAT(ErrorOfHeader(header), HasSubstr("tensor 'b': data_offsets [28, 24) run backwards"));
}

TEST(Safetensors, RefusesASizeThatIsNotTheShapes) {
  auto header = SafetensorsHeader(TwoTensors());
  header["a"]["shape"] = {2, 4};
  EXPECT_THAT(ErrorOfHeader(header), AllOf(HasSubstr("tensor 'a'"), HasSubstr("hold 24 bytes"),
                                           HasSubstr("shape [2, 4] of F32 needs 32")));
}

TEST(Safetensors, RefusesAShapeWhoseProductOverflows) {
  auto header = SafetensorsHeader(TwoTensors());
  header["a"]["shape"] = {int64_t{1} << 62, int64_t{1} << 62, 4};
  EXPECT_THAT(ErrorOfHeader(header), HasSubstr("needs more than any file has"));
}

TEST(Safetensors, RefusesADtypeThatIsNotServedByName) {
  auto header = SafetensorsHeader(TwoTensors());
  header["b"]["dtype"] = "F8_E5M2";
  EXPECT_THAT(ErrorOfHeader(header), HasSubstr("tensor 'b': dtype F8_E5M2 is not served"));
}

TEST(Safetensors, ReadsFp8AsOneByteAnElement) {
  const auto tensors = Parse(SafetensorsBytes({{"w", {"F8_E4M3", {2, 3}, "abcdef"}}}));
  ASSERT_TRUE(tensors.ok()) << tensors.status();
  EXPECT_EQ((*tensors)[0].dtype, DType::kF8E4M3);
  EXPECT_EQ((*tensors)[0].bytes.size(), 6u);
}

TEST(Safetensors, RefusesEntriesOfTheWrongType) {
  for (const char* entry : {R"([])", R"({"shape": [2], "data_offsets": [24, 28]})",
                            R"({"dtype": "BF16", "shape": 2, "data_offsets": [24, 28]})",
                            R"({"dtype": "BF16", "shape": [-2], "data_offsets": [24, 28]})",
                            R"({"dtype": "BF16", "shape": [2], "data_offsets": [24, 28, 32]})",
                            R"({"dtype": "BF16", "shape": [2], "data_offsets": [-1, 28]})",
                            R"({"dtype": "BF16", "shape": [2], "data_offsets": [24, 1e30]})"}) {
    auto header = SafetensorsHeader(TwoTensors());
    header["b"] = nlohmann::json::parse(entry);
    EXPECT_THAT(ErrorOfHeader(header), HasSubstr("tensor 'b'")) << entry;
  }
}

// Whatever one or two flipped bytes make of a file: an error, or tensors that lie inside it.
TEST(Safetensors, SurvivesFlippedBytes) {
  const std::string good = SafetensorsBytes(TwoTensors());
  const auto flip_and_parse = [&](size_t i, size_t j, uint8_t mask) {
    std::string bytes = good;
    bytes[i] ^= mask;
    bytes[j] ^= mask >> 1;
    const auto tensors = Parse(bytes);
    if (!tensors.ok()) return;
    const auto* begin = reinterpret_cast<const uint8_t*>(bytes.data());
    for (const TensorView& t : *tensors) {
      ASSERT_GE(t.bytes.data(), begin);
      ASSERT_LE(t.bytes.data() + t.bytes.size(), begin + bytes.size());
    }
  };
  for (size_t i = 0; i < good.size(); ++i) {
    for (int mask = 1; mask < 256; ++mask) flip_and_parse(i, i, static_cast<uint8_t>(mask));
  }
  std::mt19937 random(1);
  for (int trial = 0; trial < 20000; ++trial) {
    flip_and_parse(random() % good.size(), random() % good.size(), random() % 256);
  }
}

TEST(MappedFile, NamesAFileThatIsNotThereOrEmpty) {
  const testing::TempFolder folder;
  const auto missing = MappedFile::Open(folder.File("none.safetensors"));
  EXPECT_EQ(missing.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(missing.status().message()), HasSubstr("none.safetensors: No such file"));
  folder.Write("empty.safetensors", "");
  EXPECT_THAT(std::string(MappedFile::Open(folder.File("empty.safetensors")).status().message()),
              HasSubstr("empty.safetensors: is empty"));
  EXPECT_THAT(std::string(MappedFile::Open(folder.path()).status().message()),
              HasSubstr("is not a file"));
}

}  // namespace
}  // namespace bough
