#include <memory>

#include "gtest/gtest.h"
#include "tests/integration/serving_system.h"

namespace bough::integration {
namespace {

constexpr int kBlock = 64;  // tokens of a KV block

class Serving : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { system_ = std::make_unique<ServingSystem>(); }
  static void TearDownTestSuite() { system_.reset(); }

  static std::unique_ptr<ServingSystem> system_;
};
std::unique_ptr<ServingSystem> Serving::system_;

TEST_F(Serving, StreamsAnAnswerToText) {
  v1::GenerateRequest request;
  request.set_text("The history of the city begins");
  request.mutable_sampling()->set_temperature(0);
  request.mutable_stop()->set_max_tokens(24);
  const Streamed s = system_->Stream(request);
  ASSERT_TRUE(s.status.ok()) << s.status.error_message();
  ASSERT_EQ(s.texts.size(), 1u);
  EXPECT_FALSE(s.texts[0].empty());
  EXPECT_TRUE(s.start.group() == "g0" || s.start.group() == "g1") << s.start.group();
  EXPECT_GT(s.end.usage().prompt_tokens(), 1);
  EXPECT_GT(s.end.usage().completion_tokens(), 0);
  EXPECT_LE(s.end.usage().completion_tokens(), 24);
  EXPECT_GT(s.end.timings().ttft_seconds(), 0);
}

TEST_F(Serving, UnaryAnswerEqualsTheStream) {
  const v1::GenerateRequest request = GreedyRequest(Prompt(40, 1), 16);
  grpc::ClientContext context;
  v1::GenerateResponse response;
  const grpc::Status status = system_->generation().Generate(&context, request, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  const Streamed s = system_->Stream(request);
  ASSERT_EQ(response.choices_size(), 1);
  ASSERT_EQ(s.texts.size(), 1u);
  EXPECT_EQ(response.choices(0).text(), s.texts[0]);
}

TEST_F(Serving, ASharedPrefixGoesWhereItsBlocksAre) {
  const std::vector<int32_t> prefix = Prompt(2 * kBlock, 2);
  std::vector<int32_t> first = prefix, second = prefix;
  for (int i = 0; i < 20; ++i) {
    first.push_back(400 + i);
    second.push_back(800 + i);
  }
  const Streamed a = system_->Stream(GreedyRequest(first, 4));
  const Streamed b = system_->Stream(GreedyRequest(second, 4));
  ASSERT_TRUE(a.status.ok()) << a.status.error_message();
  ASSERT_TRUE(b.status.ok()) << b.status.error_message();
  EXPECT_EQ(a.end.usage().cached_prompt_tokens(), 0);
  EXPECT_EQ(b.start.group(), a.start.group());
  EXPECT_EQ(b.end.usage().cached_prompt_tokens(), 2 * kBlock);
}

TEST_F(Serving, AnotherSaltDoesNotSeeTheBlocks) {
  v1::GenerateRequest request = GreedyRequest(Prompt(2 * kBlock + 8, 3), 4);
  ASSERT_TRUE(system_->Stream(request).status.ok());
  request.set_cache_salt("someone else");
  const Streamed s = system_->Stream(request);
  ASSERT_TRUE(s.status.ok()) << s.status.error_message();
  EXPECT_EQ(s.end.usage().cached_prompt_tokens(), 0);
}

TEST_F(Serving, SixteenSamplesShareThePromptsBlocks) {
  v1::GenerateRequest request = GreedyRequest(Prompt(2 * kBlock + 20, 4), 8);
  request.mutable_sampling()->set_temperature(1);
  request.mutable_sampling()->set_seed(7);
  request.mutable_sampling()->set_n(16);
  const Streamed s = system_->Stream(request);
  ASSERT_TRUE(s.status.ok()) << s.status.error_message();
  EXPECT_EQ(s.end.usage().shared_kv_blocks(), 2);
  EXPECT_EQ(s.end.usage().completion_tokens(), 16 * 8);
  ASSERT_EQ(s.token_ids.size(), 16u);
  for (const std::vector<int32_t>& ids : s.token_ids) EXPECT_EQ(ids.size(), 8u);
  EXPECT_NE(s.token_ids[0], s.token_ids[1]);
}

TEST_F(Serving, GreedyTokensAreTheSameInBothLayouts) {
  const v1::GenerateRequest request = GreedyRequest(Prompt(90, 5), 32);
  system_->Drain("g1");
  const Streamed tp = system_->Stream(request);
  system_->Undrain("g1");
  system_->Drain("g0");
  const Streamed ep = system_->Stream(request);
  system_->Undrain("g0");
  ASSERT_TRUE(tp.status.ok()) << tp.status.error_message();
  ASSERT_TRUE(ep.status.ok()) << ep.status.error_message();
  EXPECT_EQ(tp.start.group(), "g0");
  EXPECT_EQ(ep.start.group(), "g1");
  ASSERT_EQ(tp.token_ids.size(), 1u);
  EXPECT_EQ(tp.token_ids, ep.token_ids);
  EXPECT_EQ(tp.texts, ep.texts);
}

// A stream that would run for long, read until its group holds blocks for it.
class LongStream {
 public:
  LongStream(ServingSystem& system, int salt, absl::Duration timeout) {
    *request_.mutable_request() = GreedyRequest(Prompt(100, salt), 2000);
    request_.mutable_request()->mutable_sampling()->set_n(8);
    context_.set_deadline(absl::ToChronoTime(absl::Now() + timeout));
    reader_ = system.generation().GenerateStream(&context_, request_);
    v1::GenerateStreamResponse event;
    while (!event.has_delta() && reader_->Read(&event)) {
    }
    EXPECT_TRUE(event.has_delta());
    EXPECT_TRUE(system.BlocksAreInUse());
  }
  void Cancel() { context_.TryCancel(); }
  grpc::Status ReadToEnd() {
    v1::GenerateStreamResponse event;
    while (reader_->Read(&event)) {
    }
    return reader_->Finish();
  }

 private:
  grpc::ClientContext context_;
  v1::GenerateStreamRequest request_;
  std::unique_ptr<grpc::ClientReader<v1::GenerateStreamResponse>> reader_;
};

TEST_F(Serving, CancelFreesTheBlocks) {
  LongStream stream(*system_, 6, absl::Seconds(60));
  stream.Cancel();
  EXPECT_EQ(stream.ReadToEnd().error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_TRUE(system_->AllBlocksComeBack());
}

TEST_F(Serving, ADeadlineEndsTheRequestAndFreesItsBlocks) {
  LongStream stream(*system_, 7, absl::Seconds(2));
  EXPECT_EQ(stream.ReadToEnd().error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_TRUE(system_->AllBlocksComeBack());
}

}  // namespace
}  // namespace bough::integration
